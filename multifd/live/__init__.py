"""Memory that changes while it moves."""
