"""``kmb cert``: our own certificates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pki.core.errors import KeymailboxError, NotFoundError, UsageError
from pki.tenant import output
from pki.tenant.commands.shared import Json, Wait, open_agent

if TYPE_CHECKING:
    from pki.core.ids import Fingerprint
    from pki.core.kem import Hkdf
    from pki.core.keys import KeyAlgorithm
    from pki.tenant.agent import Agent
    from pki.tenant.records.own import OwnCertificate

ALGORITHM_HELP = "composite, ml-kem-768, ml-kem-1024; classical: p-256, p-384, rsa-3072, rsa-oaep-sha1."
app = typer.Typer(help="Your own certificates.", no_args_is_help=True)
_REASONS = {
    "unspecified": "UNSPECIFIED",
    "key-compromise": "KEY_COMPROMISE",
    "affiliation-changed": "AFFILIATION_CHANGED",
    "superseded": "SUPERSEDED",
    "cessation-of-operation": "CESSATION_OF_OPERATION",
}


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List your certificates, newest first, and whether mail still waits under old keys (draining) or not (drained).

    Example: [bold]kmb cert list[/bold]
    """
    with open_agent() as agent:
        found = agent.certificates()
        mail = _mail(agent, [one for one in found if one.kind == "encryption" and one.state != "active"])
        rows = [_row(one) | {"mail": mail.get(one.fingerprint)} for one in found]
        output.show_rows(rows, as_json=as_json, empty="No certificate yet: kmb cert renew")


@app.command()
def show(
    fingerprint: Annotated[
        str, typer.Argument(help="The beginning of a fingerprint. Default: what others wrap for.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", help="Write the certificate there, in PEM.")] = None,
    as_json: Json = False,
) -> None:
    """Show one certificate. Example: [bold]kmb cert show --out mine.pem[/bold]"""
    from pki.core.kem import Hkdf
    from pki.core.x509 import parse_certificate

    with open_agent() as agent:
        one = _find(agent, fingerprint)
        if out is not None:
            _write_pem(out, one.der)
        parsed = parse_certificate(one.der)
        more: dict[str, object] = {
            "address": str(parsed.address),
            "serial": f"{parsed.serial:x}",
            "key_identifier": parsed.ski.hex(),
            "valid_from": one.not_before,
        }
        if one.kind == "encryption" and not parsed.key_algorithm.classical:
            more["key_derivation"] = (parsed.capabilities.kdf if parsed.capabilities else Hkdf.SHA256).title
        output.show_record(_row(one) | more, as_json=as_json)


@app.command()
def renew(
    kind: Annotated[str, typer.Option("--kind", help="encryption, identity or access.")] = "encryption",
    algorithm: Annotated[str, typer.Option("--algorithm", help=ALGORITHM_HELP)] = "composite",
    kdf: Annotated[
        str, typer.Option("--kdf", help="What senders derive with, for a KEM: hkdf-sha256, hkdf-sha384, hkdf-sha512.")
    ] = "hkdf-sha256",
    wait: Wait = 60,
    as_json: Json = False,
) -> None:
    """Publish a new encryption key, or renew the identity's certificate. Old keys go on opening what is under way.

    An access certificate is for TLS to the server, where that asks for one: for the key that signs your requests.

    To a classical key (p-256, p-384, rsa-3072, rsa-oaep-sha1) only those send who allow it for you.

    Example: [bold]kmb cert renew[/bold]
    """
    from pki.core.x509 import CertificateKind

    chosen, preferred = key_algorithm(algorithm), _kdf(kdf)
    if kind not in ("encryption", "identity", "access"):
        raise UsageError("There is no such kind of certificate", on=kind, hint="kmb cert renew --kind encryption")
    with open_agent() as agent:
        if kind == "encryption":
            one = agent.publish(chosen, kdf=preferred, wait=wait)
        else:
            one = agent.renew(CertificateKind(kind), wait=wait)
        output.show_record(_row(one), as_json=as_json)


@app.command()
def revoke(
    fingerprint: Annotated[str, typer.Argument(help="The beginning of the certificate's fingerprint.")],
    reason: Annotated[str, typer.Option("--reason", help=", ".join(_REASONS))] = "unspecified",
    as_json: Json = False,
) -> None:
    """Revoke a certificate for good. What was sent to it and not fetched is wrapped again by its senders.

    Example: [bold]kmb cert revoke 4f2a91 --reason key-compromise[/bold]
    """
    from pki.core.crl import Reason

    if reason not in _REASONS:
        raise UsageError("There is no such reason", on=reason, hint=f"--reason {' | '.join(_REASONS)}")
    with open_agent() as agent:
        one = _find(agent, fingerprint)
        agent.revoke(one.fingerprint, Reason[_REASONS[reason]])
        output.show_record(_row(one) | {"state": "revoked"}, as_json=as_json)
        if one.kind == "encryption" and one.state == "active":
            output.note("Nobody can send to you now. Publish a new key: kmb cert renew")
        if one.kind == "access" and reason in ("unspecified", "key-compromise"):
            output.note("The access key signs nothing more. By EST, the identity's certificate brings another one.")


def key_algorithm(text: str) -> KeyAlgorithm:
    """Return the algorithm that an option names."""
    from pki.core.keys import ALGORITHMS

    if text not in ALGORITHMS:
        raise UsageError("There is no such algorithm", on=text, hint=f"--algorithm {' | '.join(ALGORITHMS)}")
    return ALGORITHMS[text]


def _kdf(text: str) -> Hkdf:
    from pki.core.kem import Hkdf

    known = {one.label: one for one in Hkdf}
    if text not in known:
        raise UsageError("There is no such key derivation", on=text, hint=f"--kdf {' | '.join(known)}")
    return known[text]


def _find(agent: Agent, beginning: str) -> OwnCertificate:
    found = [
        one
        for one in agent.certificates()
        if (one.fingerprint.startswith(beginning.lower()) if beginning else one.kind == "encryption")
    ]
    if not found:
        raise NotFoundError("There is no such certificate of yours", on=beginning, hint="kmb cert list")
    if beginning and len(found) > 1:
        raise UsageError("Several certificates begin so", on=beginning, hint="kmb cert list, and give more digits")
    return found[0]


def _mail(agent: Agent, old: Sequence[OwnCertificate]) -> dict[Fingerprint, str]:
    """Return what waits under old keys, as the server says; what it does not say is unknown, and never drained."""
    if not old:
        return {}
    try:
        waiting = agent.waiting()
    except KeymailboxError as error:
        output.note(f"whether old keys are drained is not known: {output.error_record(error)}")
        waiting = {}
    texts = {}
    for one in old:
        count = waiting.get(one.fingerprint)
        texts[one.fingerprint] = "unknown" if count is None else f"draining {count}" if count else "drained"
    return texts


def _row(one: OwnCertificate) -> dict[str, object]:
    from pki.core.signatures import load
    from pki.core.x509 import parse_certificate

    parsed = parse_certificate(one.der)
    algorithm = parsed.key_algorithm.title if one.kind == "encryption" else load(parsed.spki).algorithm.title
    return {
        "fingerprint": one.fingerprint,
        "kind": one.kind,
        "algorithm": algorithm,
        "state": one.state,
        "valid_until": one.not_after,
    }


def _write_pem(path: Path, der: bytes) -> None:
    import base64

    lines = base64.encodebytes(der).decode().replace("\n", "")
    body = "\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    path.write_text(f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
