"""What holds in the database, noun by noun; `tests.kit.invariants` asks for all of it."""
