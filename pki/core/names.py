"""Distinguished names (RFC 5280 §4.1.2.4) as people read them."""

from __future__ import annotations

import warnings

from cryptography import x509

_MAX_TEXT = 200
_MAX_NAME = 16 * 1024


def safe(text: str) -> str:
    """Return text for a terminal: what does not print is written as an escape, and what is long is cut."""
    cut = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in cut)


def name_text(der: bytes) -> str:
    """Return a Name in DER as people write it, safe for a terminal."""
    if len(der) > _MAX_NAME:
        return f"a name of {len(der)} bytes"
    try:
        with warnings.catch_warnings():
            # A country of nine letters is shown as it is.
            warnings.simplefilter("ignore")
            return safe(x509.Name.from_bytes(der).rfc4514_string()) or "(empty)"
    except (ValueError, TypeError):
        return f"a name that cannot be read, {len(der)} bytes"
