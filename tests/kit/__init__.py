"""What the tests stand on: real services, a proxy that takes them away, and the whole service on loopback."""
