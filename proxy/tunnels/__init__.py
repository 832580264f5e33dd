"""Tunnels: each kind brings up one way to one authenticated peer; one pure function judges the evidence."""
