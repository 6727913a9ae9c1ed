"""Enrol: make keys, use the invitation, get the identity certified; interrupted anywhere, it goes on from there."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from pki.core import httpsig
from pki.core.errors import (
    AddressTakenError,
    CertificateError,
    ConflictError,
    EnrolmentError,
    KeymailboxError,
    MalformedError,
    UnavailableError,
    UsageError,
)
from pki.core.keys import KemAlgorithm, KeyAlgorithm
from pki.core.signatures import SignatureAlgorithm
from pki.core.tenants import Address
from pki.tenant import contexts, messages
from pki.tenant.authority import Authority
from pki.tenant.certificates import Certificates
from pki.tenant.client import AccessKey, Client
from pki.tenant.contexts import Context
from pki.tenant.holders.file import FileHolder
from pki.tenant.holders.passphrase import create_key_file, passphrase_from_environment, read_passphrase
from pki.tenant.journal import Journal
from pki.tenant.messages import AuthorityView
from pki.tenant.ports import Clock, KeyHolder
from pki.tenant.records.own import OwnRequest
from pki.tenant.records.pins import identity_fingerprint

Progress = Callable[[str, str], None]
"""Told what was done and on what, after each step."""


@dataclass(frozen=True)
class Invitation:
    """What the operator handed out: works once, for a day."""

    reference: str
    secret: str = field(repr=False)


def read_invitation(path: Path) -> Invitation:
    """Read an invitation as ``kmb-server tenant invite NAME --json`` prints it."""
    try:
        body = messages.mapping(json.loads(path.read_bytes()))
        return Invitation(messages.text(body, "reference"), messages.text(body, "secret"))
    except OSError as error:
        on = f"{path}: {error.strerror}"
        raise UsageError("The invitation cannot be read", on=on, hint="--invitation FILE") from None
    except (ValueError, MalformedError):
        hint = "ask the operator for the output of: kmb-server tenant invite NAME --json"
        raise UsageError("The file is not an invitation", on=str(path), hint=hint) from None


def enrol(
    address: Address,
    *,
    server: str,
    invitation: Invitation,
    name: str | None = None,
    base: Path | None = None,
    holder: KeyHolder | None = None,
    passphrase_file: Path | None = None,
    root_fingerprint: str | None = None,
    allow_http: bool = False,
    algorithm: KeyAlgorithm = KemAlgorithm.COMPOSITE,
    identity: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
    wait: float,
    clock: Clock,
    progress: Progress = lambda done, on: None,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx2.BaseTransport | None = None,
) -> Context:
    """Enrol ``address`` at a server and publish its first encryption key; return the context.

    Run again after an interruption, with the same arguments, it takes up the keys and requests that are there.
    ``holder`` is where the keys are; without it, files in the context.
    ``identity`` is the algorithm of the identity key, which is chosen once.
    ``root_fingerprint`` (SHA-256, hex) is what the operator told by another way; without it the root shown is pinned.
    """
    url = contexts.check_server(server, allow_http=allow_http)
    chosen = name or contexts.default_name(address)
    contexts.claim(chosen, base=base)
    unsigned = Client(url, None, clock, sleep=sleep, transport=transport)
    try:
        told = unsigned.authority()
    finally:
        unsigned.close()
    _check_root(told.root, root_fingerprint)
    context = _begun(chosen, url, address, told, passphrase_file, base)
    progress("root pinned", context.root_fingerprint)
    if holder is None:
        if context.passphrase_file is None:
            create_key_file(context.key_file)
        holder = FileHolder(context.keys, read_passphrase(context.passphrase_file or context.key_file))
    identity_key = holder.create_identity(identity)
    if identity_key.algorithm is not identity:
        raise ConflictError(
            "The identity key was made with another algorithm",
            on=identity_key.algorithm.title,
            hint=f"go on with --identity {identity_key.algorithm.label}, or begin another context with --name",
        )
    access_key = holder.create_access()
    progress("keys made", f"identity {identity_fingerprint(identity_key)}")
    access = AccessKey(httpsig.key_id(access_key), holder.sign_request)
    client = Client(url, access, clock, sleep=sleep, transport=transport)
    journal = Journal(context.journal)
    try:
        authority = Authority(client, journal, context.root)
        # Those that are there now are the ones to compare later ones with.
        authority.shown(clock())
        certificates = Certificates(client, journal, holder, address, context.root, authority, clock, sleep)
        request = certificates.identity_request()
        _use(client, invitation, address, access_key, request)
        context = contexts.mark_enrolled(context)
        if len(contexts.names(base=base)) == 1:
            contexts.use(chosen, base=base)
        progress("enrolled", str(address))
        certified = certificates.finish(request, wait=wait, submit=False)
        progress("identity certified", certified.fingerprint)
        encryption = certificates.finish(certificates.encryption_request(algorithm), wait=wait)
        progress("encryption certified", encryption.fingerprint)
    finally:
        client.close()
        journal.close()
    return context


def _use(client: Client, invitation: Invitation, address: Address, access_key: bytes, request: OwnRequest) -> None:
    """Use the invitation; when it seems used, we may be the ones who used it and did not hear the answer."""
    try:
        client.enrol(invitation.reference, invitation.secret, address, access_key, request.der)
    except (UnavailableError, EnrolmentError, AddressTakenError, ConflictError) as error:
        try:
            # Only the instance whose access key signs this gets to see its own request.
            client.request(request.id)
        except KeymailboxError:
            raise error from None


def _check_root(root: bytes, expected: str | None) -> None:
    shown = hashlib.sha256(root).hexdigest()
    if expected is None:
        return
    told = expected.replace(":", "").replace(" ", "").lower()
    if not hmac.compare_digest(told.encode(), shown.encode()):
        raise CertificateError(
            "The server's root certificate is not the one that you were told",
            on=f"it shows {shown}",
            hint="do not enrol there; ask the operator for the fingerprint again",
        )


def _begun(
    name: str, server: str, address: Address, told: AuthorityView, passphrase: Path | None, base: Path | None
) -> Context:
    folder = contexts.folder_of(name, base=base)
    if name in contexts.names(base=base):
        begun = contexts.load(name, base=base)
        if (begun.server, begun.address, begun.root) != (server, address, told.root):
            raise ConflictError(
                "A context of this name was begun for something else",
                on=f"{begun.address} at {begun.server}",
                hint="choose another name with --name",
            )
        return begun
    chosen = passphrase.expanduser().absolute() if passphrase else passphrase_from_environment()
    context = Context(name, folder, server, address, told.root, told.issuing, chosen)
    contexts.save(context)
    return context
