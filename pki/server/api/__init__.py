"""HTTP for machines: one file a noun, under ``/v1``."""
