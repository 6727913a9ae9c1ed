"""Demonstrations: the exchange between two tenants, run on one machine."""
