"""The CA's hierarchy: a root that is kept away, the ceremony in which it signs, and the issuing CAs of the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import KeymailboxError, SettingsError, UnavailableError, UsageError, VerificationError
from pki.server.commands.shared import (
    ROOT_VARIABLE,
    AsJson,
    Home,
    fingerprint,
    given_root_passphrase,
    group,
    print_json,
    settings_of,
    table,
    typed,
)

if TYPE_CHECKING:
    from pki.core.issuers import IssuingRequest
    from pki.server.services.deps import Deps
    from pki.server.settings import Settings

app = group("Keep the root, and roll issuing CAs over.", "kmb-server ca list --home ./keymailbox-home")

RootFolder = Annotated[Path, typer.Option("--root", help="The root's folder, best on a medium that is kept offline.")]
_MOST_DAYS = 20 * 365
_ENOUGH = 16
"""Hex digits of a fingerprint that a person has to type: 64 bits, which nobody finds another key for."""


@app.command("init")
def init(
    root: RootFolder,
    algorithm: Annotated[
        str, typer.Option(help="slh-dsa-sha2-128s and its like, ml-dsa-87, ml-dsa-65, p-384.")
    ] = "slh-dsa-sha2-128s",
    as_json: AsJson = False,
) -> None:
    """Make a root in a folder of its own, under a passphrase of its own; one that is there stays.

    The passphrase is asked for, or read from the file that KMB_ROOT_PASSPHRASE_FILE names.

    Example: kmb-server ca init --root root
    """
    from pki.core.authorities import authority_key
    from pki.server.adapters.signers.root import ROOT_CERTIFICATE, create_root, open_root, root_algorithm
    from pki.server.bootstrap import SystemClock

    chosen = root_algorithm(algorithm)
    exists = (root / ROOT_CERTIFICATE).exists()
    passphrase = _passphrase(confirm=not exists)
    create_root(root, passphrase, SystemClock().now(), chosen)
    found = open_root(root, passphrase).certificate_der
    there = authority_key(found).algorithm
    if there is not chosen:
        raise SettingsError(
            "There is a root of another algorithm, and it stays",
            on=f"{root}: {there.title}",
            hint="kmb-server ca init --root ANOTHER",
        )
    if as_json:
        print_json({"root": str(root), "algorithm": there.title, "root_fingerprint": fingerprint(found)})
        return
    typer.echo(f"root folder       {root}: keep it and its passphrase apart, and off the network")
    typer.echo(f"root fingerprint  {fingerprint(found)} ({there.title})")
    typer.echo("next              on the server: kmb-server ca request --out FILE")


@app.command("request")
def request(
    out: Annotated[Path, typer.Option("--out", help="Where to write the request.")],
    home: Home = None,
    algorithm: Annotated[
        str,
        typer.Option(
            help="ml-dsa-65 (default in files), ml-dsa-87, p-256, p-384 (default in a token); there rsa-3072, rsa-4096."
        ),
    ] = "",
    token: Annotated[bool, typer.Option("--token", help="Make the key in the PKCS #11 token of the settings.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Give up the request that is under way.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the next issuing key on this server, and write the request for its certificate (PKCS #10, PEM).

    Until its certificate is installed, the same request is written again. With --token the key is made in the token
    that KMB_PKCS11_MODULE and KMB_PKCS11_TOKEN name, and cannot be taken out of it.

    Example: kmb-server ca request --home ./keymailbox-home --out ca.csr
    """
    from pki.server import bootstrap
    from pki.server.adapters.signers.home import issuing_algorithm, request_issuing
    from pki.server.adapters.signers.homes import demand_first

    settings = settings_of(home)
    chosen, bits = issuing_algorithm(algorithm or ("p-384" if token else "ml-dsa-65"))
    written = bootstrap.prepare_home(settings)
    keys = bootstrap.issuing_keys(settings, in_token=token, rsa_bits=bits)
    der, made = request_issuing(settings.home, keys, chosen, discard=discard)
    demand_first(keys, made.key)
    _write(out, _pem("CERTIFICATE REQUEST", der))
    if as_json:
        print_json({"request": str(out), "token": settings.pkcs11_token if token else None, **_about(made)})
        return
    typer.echo(f"request          {out}")
    typer.echo(f"issuing CA       {made.name} ({made.key.algorithm.title})")
    typer.echo(f"key fingerprint  {made.fingerprint}")
    if token:
        typer.echo(f"key              in the token {settings.pkcs11_token}, which does not give it away")
    if written:
        typer.echo(f"passphrase       {settings.passphrase_path}: it opens the CA's keys, keep it apart from backups")
    typer.echo("next             beside the root: kmb-server ca sign-issuing --root DIR --request FILE --out FILE")


@app.command("sign-issuing")
def sign_issuing(
    root: RootFolder,
    request: Annotated[Path, typer.Option("--request", help="The request that the server wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the certificates.")],
    told: Annotated[
        str, typer.Option("--fingerprint", help="The key's fingerprint as the server showed it, for scripts.")
    ] = "",
    days: Annotated[int, typer.Option(min=1, max=_MOST_DAYS, help="How long the issuing CA is valid.")] = 3650,
    as_json: AsJson = False,
) -> None:
    """The ceremony: show whose key it is, have a person confirm it, sign it with the root.

    The same request again gives the same certificate. The result is PEM: the issuing CA's certificate, then the root's.

    Example: kmb-server ca sign-issuing --root root --request ca.csr --out ca.pem
    """
    from pki.core.authorities import authority_key
    from pki.core.issuers import parse_request
    from pki.server.adapters.signers.root import open_root
    from pki.server.bootstrap import SystemClock

    with _reading(request, "on the server: kmb-server ca request --out FILE"):
        wanted = parse_request(_der(_read(request), "CERTIFICATE REQUEST")).verify()
    typer.echo(f"issuing CA        {wanted.name} ({wanted.key.algorithm.title})", err=True)
    typer.echo(f"key fingerprint   {wanted.fingerprint}", err=True)
    _confirm(told, wanted)
    opened = open_root(root, _passphrase(confirm=False))
    issuing = opened.sign_issuing(wanted, SystemClock().now(), lifetime=timedelta(days=days))
    _write(out, _pem("CERTIFICATE", issuing) + _pem("CERTIFICATE", opened.certificate_der))
    facts = {
        "issuing_fingerprint": fingerprint(issuing),
        "root_fingerprint": fingerprint(opened.certificate_der),
        "valid_until": _validity(issuing)[1],
    }
    if as_json:
        print_json({"certificates": str(out), **_about(wanted), **facts})
        return
    typer.echo(f"certificates      {out}, until {facts['valid_until']:%Y-%m-%d}")
    typer.echo(f"issuing CA        {facts['issuing_fingerprint']}")
    title = authority_key(opened.certificate_der).algorithm.title
    typer.echo(f"root              {facts['root_fingerprint']} ({title})")
    typer.echo("next              on the server: kmb-server ca install FILE")


@app.command("install")
def install(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What sign-issuing wrote.")],
    home: Home = None,
    root_fingerprint: Annotated[
        str, typer.Option(help="The root that is to be trusted (SHA-256, hex), where there is none yet.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Make an issuing CA the current one. The former stays until it expires: its certificates go on being good.

    Running processes take it up by themselves.

    Example: kmb-server ca install ca.pem --home ./keymailbox-home
    """
    from pki.server import bootstrap
    from pki.server.adapters.signers import home as ca

    settings = settings_of(home)
    content = _read(file)
    with _reading(file, "kmb-server ca sign-issuing --out FILE"):
        _, shown = ca.read_issued(content)
    told = root_fingerprint
    if not told and shown is not None and not ca.has_root(settings.home):
        told = _root_confirmed(shown)
    keys, now = bootstrap.issuing_keys(settings), bootstrap.SystemClock().now()
    chain = ca.install(settings.home, keys, content, now, root_fingerprint=told)
    _follow(settings)
    if as_json:
        facts = {"issuing_fingerprint": fingerprint(chain.issuing), "root_fingerprint": fingerprint(chain.root)}
        print_json({**facts, "former_fingerprints": [fingerprint(one) for one in chain.former]})
        return
    typer.echo(f"issuing CA  {fingerprint(chain.issuing)}, until {_validity(chain.issuing)[1]:%Y-%m-%d}")
    for one in chain.former:
        typer.echo(f"former      {fingerprint(one)}, until {_validity(one)[1]:%Y-%m-%d}")
    typer.echo(f"root        {fingerprint(chain.root)}")
    typer.echo("next        tell the tenants the issuing CA's fingerprint: their agents ask about a new one")


@app.command("list")
def list_cas(home: Home = None, as_json: AsJson = False) -> None:
    """Show the root and the issuing CAs: state, algorithm, validity, fingerprint of the certificate.

    Example: kmb-server ca list --home ./keymailbox-home
    """
    from pki.core.authorities import authority_key
    from pki.server.adapters.signers.home import has_root, pending
    from pki.server.bootstrap import SystemClock
    from pki.server.hierarchy import common_name, read_chain

    settings = settings_of(home)
    waiting, now = pending(settings.home), SystemClock().now()
    found: list[dict[str, object]] = []
    # Before the first ceremony is over there is a request and nothing else.
    chain = None if waiting is not None and not has_root(settings.home) else read_chain(settings.home)
    listed = [] if chain is None else [("root", chain.root), ("current", chain.issuing)]
    for state, der in [*listed, *(("former", one) for one in (chain.former if chain else ()))]:
        start, end = _validity(der)
        found.append(
            {
                "state": state if now <= end else "expired",
                "name": common_name(der),
                "algorithm": authority_key(der).algorithm.title,
                "not_before": start,
                "not_after": end,
                "fingerprint": fingerprint(der),
                "key_identifier": authority_key(der).ski.hex(),
            }
        )
    if as_json:
        print_json({"authorities": found, "requested": None if waiting is None else _about(waiting)})
        return
    rows = [
        (
            str(one["state"]),
            str(one["name"]),
            str(one["algorithm"]),
            f"{one['not_after']:%Y-%m-%d}",
            str(one["fingerprint"]),
        )
        for one in found
    ]
    if waiting is not None:
        rows.append(("requested", waiting.name, waiting.key.algorithm.title, "", f"key {waiting.fingerprint}"))
    typer.echo(table(("state", "name", "algorithm", "until", "fingerprint"), rows))


def _follow(settings: Settings) -> None:
    """Have the issuer publish the new issuing CA's list now, and the officers' list signed by it.

    Where there is no database yet, the first comes by itself, and there are no officers.
    """
    from pki.server import bootstrap
    from pki.server.services import revocations

    deps = bootstrap.build(settings)
    try:
        if deps.store.schema_version() is not None:
            revocations.ask_for_lists(deps)
            _sign_officers(deps, settings)
    except UnavailableError as error:
        typer.echo(
            f"note: the new revocation list comes with the next beat, as the database is away: {error}", err=True
        )
    finally:
        deps.store.close()


def _sign_officers(deps: Deps, settings: Settings) -> None:
    from pki.server import bootstrap
    from pki.server.services import officers

    try:
        officers.sign_anew(deps, bootstrap.ca_keys(settings))
    except UnavailableError:
        raise
    except KeymailboxError as error:
        # The certificate is installed all the same.
        typer.echo(f"note: the list of officers is not signed by the new issuing CA: {error}", err=True)


def _about(request: IssuingRequest) -> dict[str, object]:
    return {
        "name": request.name,
        "algorithm": request.key.algorithm.title,
        "key_fingerprint": request.fingerprint,
    }


def _passphrase(*, confirm: bool) -> bytes:
    given = given_root_passphrase()
    if given is not None:
        return given
    instead = f"name a file with it in {ROOT_VARIABLE}"
    return typed("Passphrase of the root", instead=instead, hidden=True, twice=confirm).encode()


def _confirm(told: str, request: IssuingRequest) -> None:
    if not told:
        question = f"Type the fingerprint as the server showed it, at least {_ENOUGH} digits"
        told = typed(question, instead="--fingerprint HEX")
    plain = told.replace(":", "").replace(" ", "").lower()
    if len(plain) < _ENOUGH or not request.fingerprint.startswith(plain):
        raise VerificationError(
            "This is not the fingerprint of the request's key",
            on=request.name,
            hint="compare the file with what the server shows: kmb-server ca list",
        )


def _root_confirmed(root: bytes) -> str:
    shown = fingerprint(root)
    typer.echo(f"root  {shown}", err=True)
    question = f"Type the root's fingerprint from the ceremony, at least {_ENOUGH} digits"
    plain = typed(question, instead="--root-fingerprint HEX").replace(":", "").replace(" ", "").lower()
    return shown if len(plain) >= _ENOUGH and shown.startswith(plain) else plain


@contextmanager
def _reading(path: Path, hint: str) -> Iterator[None]:
    """Let what is wrong with a file's content name the file, and what writes a right one."""
    try:
        yield
    except KeymailboxError as error:
        if str(path) not in error.on:
            error.on = f"{path}: {error.on}" if error.on else str(path)
        error.hint = error.hint or hint
        raise


def _validity(der: bytes) -> tuple[datetime, datetime]:
    from cryptography.x509 import load_der_x509_certificate

    found = load_der_x509_certificate(der)
    return found.not_valid_before_utc, found.not_valid_after_utc


def _pem(label: str, der: bytes) -> bytes:
    import base64
    import textwrap

    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode(), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n".encode()


def _der(content: bytes, label: str) -> bytes:
    import base64
    import binascii

    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    if begin not in content:
        return content
    body = content.partition(begin)[2].partition(end)[0]
    try:
        return base64.b64decode(b"".join(body.split()), validate=True)
    except binascii.Error:
        raise UsageError(f"This is no {label} in PEM", hint="kmb-server ca request --out FILE") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 20)
    except OSError as error:
        raise UsageError("The file cannot be read", on=f"{path}: {error.strerror}", hint=f"ls -l {path}") from None


def _write(path: Path, content: bytes) -> None:
    from pki.server.adapters.signers import disk

    try:
        disk.replace(path, content, disk.PUBLIC)
    except OSError as error:
        raise UsageError("The file cannot be written", on=f"{path}: {error.strerror}", hint="--out FILE") from None
