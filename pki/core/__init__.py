"""What both sides agree on: formats and rules, without clock, network, disk or SQL."""
