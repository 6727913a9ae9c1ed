"""Vectors: public ones (tests/vectors/public, the package cryptography-vectors) and our own text files."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import cryptography_vectors

FOLDER = Path(__file__).parent.parent / "vectors"


def public(name: str) -> dict[str, bytes]:
    """Return the values of a file of tests/vectors/public, decoded."""
    content = json.loads((FOLDER / "public" / f"{name}.json").read_text())
    return {key: b64decode(value) for key, value in content["vectors"].items()}


def answers(path: str) -> Iterator[dict[str, str]]:
    """Yield the cases of one of NIST's response files, ``name = value`` lines that start again with ``count``."""
    with cryptography_vectors.open_vector_file(path, "r") as lines:
        case: dict[str, str] = {}
        for line in lines:
            name, equals, value = line.partition(" = ")
            if name == "count" and case:
                yield case
                case = {}
            if equals:
                case[name] = value.strip()
        yield case
