"""Fuzzing of every decoder: only typed errors come out, and memory stays flat. `python -m fuzz --help`."""
