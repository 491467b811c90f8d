"""A relay that is a service: routes, metrics, logs, and what systemd wants to hear."""
