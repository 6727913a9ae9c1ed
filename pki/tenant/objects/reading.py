"""Files to DER: PEM (RFC 7468), DER, or for CMS objects BER; nothing is decoded before its size is known."""

from __future__ import annotations

import base64
import binascii
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pki.core.der import header
from pki.core.errors import MalformedError, TooLargeError, UsageError
from pki.tenant.objects.ber import to_der

MAX_OBJECT = 16 * 1024 * 1024
"""Bytes of a file."""
MAX_BLOCKS = 64
"""PEM blocks of a file."""
CMS, CERTIFICATE, REQUEST, CRL = "CMS", "CERTIFICATE", "CERTIFICATE REQUEST", "X509 CRL"
PUBLIC, PRIVATE, ENCRYPTED = "PUBLIC KEY", "PRIVATE KEY", "ENCRYPTED PRIVATE KEY"
_LABELS = {one: one for one in (CMS, CERTIFICATE, REQUEST, CRL, PUBLIC, PRIVATE, ENCRYPTED)} | {
    # Older names that tools still write (RFC 7468 §4, §5.3, §8)
    "PKCS7": CMS,
    "X509 CERTIFICATE": CERTIFICATE,
    "X.509 CERTIFICATE": CERTIFICATE,
    "NEW CERTIFICATE REQUEST": REQUEST,
    "CRL": CRL,
}
_OTHERS = {
    "EC PRIVATE KEY": "openssl pkcs8 -topk8 -nocrypt -in FILE -out KEY.pem",
    "RSA PRIVATE KEY": "openssl pkcs8 -topk8 -nocrypt -in FILE -out KEY.pem",
    "RSA PUBLIC KEY": "openssl rsa -RSAPublicKey_in -pubout -in FILE -out KEY.pem",
    "EC PARAMETERS": "leave out that block: openssl pkcs8 -topk8 -nocrypt -in FILE -out KEY.pem",
}
_BEGIN, _END = re.compile(rb"-----BEGIN ([A-Z0-9. ]{1,40})-----[ \t]*\r?\n"), b"-----END "
_MARK = b"-----BEGIN "
_AGAIN = "copy the file again, whole, from the first mark to the last"


@dataclass(frozen=True)
class Source:
    """One object: its DER, the PEM ``label`` (empty: there was none), whether it was ``ber``, the file's name.

    ``size`` is that of the encoding before it became DER, in bytes. The bytes may be secret.
    """

    der: bytes = field(repr=False)
    label: str
    ber: bool
    size: int
    name: str


def read(path: Path, *, label: str = "") -> Source:
    """Return the first object of a file (``-`` is stdin), with ``label`` the first PEM block of that label.

    Raises UsageError when the file cannot be read or holds no such block, TooLargeError, MalformedError.
    """
    return next(read_all(path, label=label))


def read_all(path: Path, *, label: str = "") -> Iterator[Source]:
    """Yield all objects of a file, at least one; see `read`."""
    return decode_all(load(path), name=str(path), label=label)


def load(path: Path, *, most: int = MAX_OBJECT) -> bytes:
    """Return the bytes of a file or of stdin (``-``), at most ``most``."""
    hint = "kmb object --help"
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(most + 1)
        else:
            with path.open("rb") as file:
                data = file.read(most + 1)
    except OSError as error:
        raise UsageError("The file cannot be read", on=f"{path}: {error.strerror}", hint=hint) from None
    if len(data) > most:
        raise TooLargeError(f"A file has at most {most} bytes", on=str(path), hint="split what it holds")
    if not data:
        raise UsageError("The file is empty", on=str(path), hint=hint)
    return data


def decode_all(data: bytes, *, name: str = "", label: str = "") -> Iterator[Source]:
    """Yield the objects in ``data``: one of DER or BER, or the PEM blocks."""
    if _MARK not in data[: 64 * 1024]:
        if data[:1] not in (b"\x30", b"\xa0"):
            raise UsageError("The file is neither PEM nor DER", on=name, hint=f"file {name or 'FILE'} tells what it is")
        yield _source(data, "", name)
        return
    found = False
    for number, (said, body) in enumerate(_blocks(data, name)):
        if number == MAX_BLOCKS:
            raise TooLargeError(f"A file has at most {MAX_BLOCKS} PEM blocks", on=name, hint="split the file")
        known = _LABELS.get(said)
        if label and known != label:
            continue
        if known is None:
            hint = _OTHERS.get(said, f"one of {', '.join(sorted(set(_LABELS.values())))}")
            raise UsageError(f"A PEM block {said} is not read here", on=name, hint=hint.replace("FILE", name or "FILE"))
        found = True
        yield _source(body, known, name)
    if not found:
        raise UsageError(f"There is no PEM block {label} in the file", on=name, hint=f"head -1 {name or 'FILE'}")


def encode_pem(der: bytes, label: str = CMS) -> bytes:
    """Return DER as one PEM block."""
    text = base64.b64encode(der)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    mark = label.encode()
    return b"\n".join([b"-----BEGIN " + mark + b"-----", *lines, b"-----END " + mark + b"-----", b""])


def _source(data: bytes, label: str, name: str) -> Source:
    der = to_der(data)
    if der[1:2] == b"\x80":
        raise MalformedError("The length is indefinite, and this is no CMS object: only those are read as BER", at=1)
    end = header(der, 0, len(der)).end
    if end != len(der):
        raise MalformedError("Bytes follow after the end", on=name, at=end)
    return Source(der=der, label=label, ber=der is not data, size=len(data), name=name)


def _blocks(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    at = 0
    while (begin := _BEGIN.search(data, at)) is not None:
        label = begin.group(1).decode()
        mark = _END + begin.group(1) + b"-----"
        end = data.find(mark, begin.end())
        if end < 0 or data.find(_MARK, begin.end(), end) >= 0:
            raise MalformedError(f"The PEM block {label} does not end", on=name, at=begin.start(), hint=_AGAIN)
        if data.find(b":", begin.end(), end) >= 0:
            raise UsageError(
                "The PEM block has headers of the old encryption",
                on=name,
                hint=f"openssl pkcs8 -topk8 -in {name or 'FILE'} -out KEY.pem",
            )
        try:
            body = base64.b64decode(data[begin.end() : end].translate(None, b" \t\r\n"), validate=True)
        except (ValueError, binascii.Error):
            raise MalformedError(
                f"The PEM block {label} is not in base64", on=name, at=begin.end(), hint=_AGAIN
            ) from None
        if not body:
            raise MalformedError(f"The PEM block {label} is empty", on=name, at=begin.start(), hint=_AGAIN)
        yield label, body
        at = end + len(mark)
    if at == 0:
        raise MalformedError("The PEM file has no block", on=name, at=data.find(_MARK))
