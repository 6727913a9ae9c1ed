"""Use cases: each opens one unit of work, decides in core, writes state and outbox, and commits."""
