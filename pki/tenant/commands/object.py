"""``kmb object``: look at, wrap, open and verify objects in files; needs neither server nor context."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import ConflictError, KeymailboxError, UsageError
from pki.tenant import output
from pki.tenant.commands.shared import Json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pki.core.packages import KeyMaterial
    from pki.tenant.holders.passphrase import Passphrase
    from pki.tenant.objects.people import Foreign
    from pki.tenant.objects.wrapping import Signer

app = typer.Typer(help="Look at, wrap, open and verify objects in files; offline.", no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE", help="PEM, DER or BER; - is stdin.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to; - is stdout, when that is no terminal.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]
Trust = Annotated[list[Path] | None, typer.Option("--trust", metavar="CERT", help="A trust anchor; may be repeated.")]
Untrusted = Annotated[
    list[Path] | None,
    typer.Option("--untrusted", metavar="CERT", help="A certificate in between, or a candidate; may be repeated."),
]


@app.command()
def show(
    file: File,
    cert: Annotated[
        list[Path] | None,
        typer.Option("--cert", metavar="CERT", help="Whose name to tell for a recipient or signer; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what an object is: fields by name, sizes, for whom, by whom, which rules it keeps. Nothing is verified.

    Example: [bold]kmb object show deposit.der --cert mine.pem[/bold]
    """
    from pki.tenant.commands.outlines import print_look, record
    from pki.tenant.objects.looking import look
    from pki.tenant.objects.reading import read_all

    certificates = _certificates(cert)
    with _about(file, f"openssl asn1parse -inform DER -in {file}"):
        seen = [look(source, certificates) for source in read_all(file)]
    if as_json:
        print(json.dumps([record(one) for one in seen], indent=1))
        return
    for one in seen:
        print_look(one)


@app.command()
def wrap(
    to: Annotated[list[Path], typer.Option("--to", metavar="CERT", help="For whom; may be repeated.")],
    file: Annotated[Path, typer.Option("--in", metavar="FILE", help="What to wrap; - is stdin.")],
    out: Out,
    sign_with: Annotated[
        Path | None, typer.Option("--sign-with", metavar="KEY", help="Sign with this key, in PKCS #8.")
    ] = None,
    signer_cert: Annotated[
        Path | None, typer.Option("--signer-cert", metavar="CERT", help="The certificate of the signing key.")
    ] = None,
    as_: Annotated[str, typer.Option("--as", help="data, or package: a key package.")] = "",
    media_type: Annotated[str, typer.Option("--media-type", help="What the key in the package is.")] = "",
    kdf: Annotated[str, typer.Option("--kdf", help="For KEM keys: hkdf-sha256, hkdf-sha384 or hkdf-sha512.")] = "",
    allow_classical: Annotated[
        bool, typer.Option("--allow-classical", help="Also for keys of EC or RSA, which a quantum computer opens.")
    ] = False,
    pem: Annotated[bool, typer.Option("--pem", help="Write PEM instead of DER.")] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Wrap a file for the owners of certificates, which are taken as they are: verify them first.

    Example: [bold]kmb object wrap --to globex.pem --in orders.key --out orders.cms[/bold]
    """
    from pki.core import oids
    from pki.core.kem import Hkdf
    from pki.tenant.objects.reading import encode_pem, load
    from pki.tenant.objects.wrapping import wrap as wrapped

    chosen = next((one for one in Hkdf if one.label in (kdf, f"hkdf-{kdf}") or one.title.lower() == kdf.lower()), None)
    if kdf and chosen is None:
        raise UsageError("There is no such key derivation", on=kdf, hint="--kdf hkdf-sha256")
    _check_target(out, force=force)
    whom, signer = _certificates(to), _signer(sign_with, signer_cert)
    with _about(file, "kmb object wrap --help"):
        material = _material(load(file), as_, media_type)
        done = wrapped(material, whom, now=_now(), allow_classical=allow_classical, kdf=chosen, signer=signer)
    _write(out, encode_pem(done.der) if pem else done.der, force=force)
    _tell(
        {
            "file": str(out),
            "size": len(done.der),
            "content": oids.name(done.content_type),
            "for": [{"subject": subject, "algorithm": algorithm} for subject, algorithm in done.recipients],
            "signed_by": done.signer or None,
        },
        as_json=as_json,
        aside=str(out) == "-",
    )


@app.command("open")
def open_(
    file: File,
    key: Annotated[
        Path,
        typer.Option("--key", metavar="KEY", help="The private key, in PKCS #8; its passphrase: KMB_PASSPHRASE_FILE."),
    ],
    out: Out,
    cert: Annotated[
        Path | None,
        typer.Option("--cert", metavar="CERT", help="The key's certificate, which foreign tools name."),
    ] = None,
    verify_with: Annotated[
        Path | None, typer.Option("--verify-with", metavar="CERT", help="Whose signature the object has to have.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Open an envelope with a private key and write what is in it: the content, or the key of a key package.

    Example: [bold]kmb object open orders.cms --key mine.key --cert mine.pem --out orders.key[/bold]
    """
    from pki.core import oids
    from pki.tenant.holders.pkcs8 import load_opening
    from pki.tenant.objects.opening import open_object
    from pki.tenant.objects.reading import read

    _check_target(out, force=force)
    with _about(key, "kmb object open --help"):
        private = load_opening(_private(key), _passphrase())
    mine, theirs = _certificate(cert), _certificate(verify_with)
    with _about(file):
        opened = open_object(read(file), private, mine, verify_with=theirs)
    _write(out, opened.content, force=force)
    if opened.signed and not opened.signed_by:
        output.note("The object is signed, and nobody verified by whom: --verify-with CERT")
    _tell(
        {
            "file": str(out),
            "size": len(opened.content),
            "content": oids.name(opened.content_type),
            "media_type": opened.material.media_type if opened.material else None,
            "opened_with": opened.algorithm,
            "signed": opened.signed,
            "verified_with": opened.signed_by or None,
            "signed_at": opened.signed_at.isoformat() if opened.signed_at else None,
        },
        as_json=as_json,
        aside=str(out) == "-",
    )


@app.command()
def verify(
    file: File,
    trust: Trust = None,
    untrusted: Untrusted = None,
    signer: Annotated[
        Path | None, typer.Option("--signer", metavar="CERT", help="Whose signature it has to be.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a signed object, certificate, request or revocation list under trust anchors, and say what that proves.

    Example: [bold]kmb object verify receipt.der --trust root.pem --untrusted issuing.pem --signer globex.pem[/bold]
    """
    from pki.tenant.objects.reading import read
    from pki.tenant.objects.verifying import verify as verified

    anchors, between, whose = _certificates(trust), _certificates(untrusted), _certificate(signer)
    with _about(file):
        found = verified(read(file), trust=anchors, untrusted=between, signer=whose, now=_now())
    _tell(
        {
            "file": str(file),
            "kind": str(found.kind),
            "signer": found.signer,
            "algorithm": found.algorithm,
            "path": list(found.path),
            "content": found.content_type or None,
            "signed_at": found.signed_at.isoformat() if found.signed_at else None,
            "verified": list(found.checked),
            "not_verified": list(found.unchecked),
        },
        as_json=as_json,
    )


# Files


@contextmanager
def _about(file: Path, hint: str = "") -> Iterator[None]:
    """Let no error leave without the file that it is about and what to type next; nothing in it moves the terminal."""
    try:
        yield
    except KeymailboxError as error:
        from pki.core.names import safe

        error.message = safe(error.message)
        error.on = safe(error.on if str(file) in error.on else f"{file}: {error.on}" if error.on else str(file))
        error.hint = safe(error.hint or hint or f"kmb object show {file}")
        raise


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


def _certificates(paths: Sequence[Path] | None) -> list[Foreign]:
    """Return all certificates in these files."""
    from pki.tenant.objects.people import parse
    from pki.tenant.objects.reading import CERTIFICATE, read_all

    found: list[Foreign] = []
    for path in paths or ():
        with _about(path):
            found += [parse(source.der) for source in read_all(path, label=CERTIFICATE)]
    return found


def _certificate(path: Path | None) -> Foreign | None:
    """Return the first certificate of a file."""
    return _certificates([path])[0] if path is not None else None


def _private(path: Path) -> bytes:
    """Return the private key of a file in DER."""
    from pki.tenant.objects.reading import ENCRYPTED, PRIVATE, read_all

    for source in read_all(path):
        if source.label in ("", PRIVATE, ENCRYPTED):
            return source.der
    raise UsageError("There is no private key in the file", on=str(path), hint="--key KEY, in PKCS #8")


def _passphrase() -> Passphrase | None:
    from pki.tenant.holders.passphrase import passphrase_from_environment, read_passphrase

    path = passphrase_from_environment()
    return read_passphrase(path) if path is not None else None


def _signer(key: Path | None, certificate: Path | None) -> Signer | None:
    from pki.tenant.holders.pkcs8 import load_signing
    from pki.tenant.objects.wrapping import Signer

    theirs = _certificate(certificate)
    if key is None and theirs is None:
        return None
    if key is None or theirs is None:
        raise UsageError("A signer is a key and its certificate", hint="--sign-with KEY --signer-cert CERT")
    with _about(key, "kmb object wrap --help"):
        return Signer(load_signing(_private(key), _passphrase()), theirs)


def _material(content: bytes, as_: str, media_type: str) -> bytes | KeyMaterial:
    from pki.core.packages import OCTETS, KeyMaterial

    if as_ not in ("", "data", "package") or (as_ == "data" and media_type):
        raise UsageError("A content is wrapped as data, or as a package", on=as_, hint="--as package --media-type TYPE")
    if as_ == "package" or media_type:
        return KeyMaterial(content, media_type or OCTETS)
    return content


def _check_target(out: Path, *, force: bool) -> None:
    """Refuse a terminal, and a file that is there, before anything secret is in hand."""
    if str(out) == "-":
        if sys.stdout.isatty():
            raise UsageError("What may be secret is not written to a terminal", hint="--out FILE, or a pipe")
    elif not force and os.path.lexists(out):
        raise ConflictError("The file is there already", on=str(out), hint="--out ANOTHER-FILE, or --force")


def _write(out: Path, content: bytes, *, force: bool) -> None:
    """Write a file for the owner's eyes (mode 0600), whole or not at all."""
    from pki.tenant import disk

    _check_target(out, force=force)
    if str(out) == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    try:
        if force:
            disk.replace(out.absolute(), content)
            return
        written = disk.write_new(out.absolute(), content)
    except OSError as error:
        raise UsageError("The file cannot be written", on=f"{out}: {error.strerror}", hint="--out FILE") from None
    if not written:
        raise ConflictError("The file is there already", on=str(out), hint="--out ANOTHER-FILE, or --force")


# What is shown


def _tell(record: dict[str, object], *, as_json: bool, aside: bool = False) -> None:
    """Print a result; on stderr (``aside``) when stdout has the content."""
    if as_json:
        print(json.dumps(record, indent=1), file=sys.stderr if aside else sys.stdout)
        return
    from pki.core.names import safe

    for name, value in record.items():
        listed = value if isinstance(value, list) else [value]
        for one in listed:
            text = ", ".join(str(part) for part in one.values()) if isinstance(one, dict) else _text(one)
            if one not in (None, ""):
                print(f"{name.replace('_', ' '):<13}  {safe(text)}", file=sys.stderr if aside else sys.stdout)


def _text(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
