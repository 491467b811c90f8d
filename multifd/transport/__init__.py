"""Connections: addresses, listening, connecting, deadlines, rate."""
