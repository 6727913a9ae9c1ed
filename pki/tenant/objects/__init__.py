"""Objects of the wire profile as files: read, show, wrap, open, verify; offline, with neither journal nor network."""
