"""Vectors that others can run against us, and we against others; see README.md."""
