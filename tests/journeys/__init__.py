"""Journeys of a key through real processes."""
