"""A report about measured migrations: one HTML file that opens offline, in light and dark, and prints."""
