"""Homes of the CA's private key: one module a kind."""
