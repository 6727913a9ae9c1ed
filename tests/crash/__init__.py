"""Every step of every use case fails both ways, and nothing is lost, doubled or stuck."""
