"""A CMP client at an office: real keys, messages put together by hand, answers read by pyasn1; no HTTP."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from pyasn1.codec.der.decoder import decode
from pyasn1.codec.der.encoder import encode
from pyasn1_alt_modules import rfc9480

from pki.core import keys, recipients, x509
from pki.core.der import members
from pki.core.keys import KeyAlgorithm
from pki.core.profile import Profile
from pki.core.recipients import ParsedRecipient
from pki.core.signers import SigningKey
from pki.core.tenants import Address
from pki.server.adapters.registration import RegistrationKey, create
from pki.server.services.cmp import exchanges, handling
from tests.kit import forge, forge_cmp, tlv
from tests.kit.authority import new_signing_key
from tests.kit.forge_cmp import Protect
from tests.kit.office import PASSPHRASE, Office


@dataclass(frozen=True)
class Reply:
    """An answer, read."""

    der: bytes
    message: Any

    @property
    def kind(self) -> str:
        """The body's name, such as ``ip``."""
        return str(self.message["body"].getName())

    @property
    def certificate(self) -> bytes:
        """The certificate that it brings in the clear."""
        [certificate] = members(encode(self._pair["certificate"]), 0xA0, most=1)
        return certificate

    @property
    def nonce(self) -> bytes:
        """The nonce that a confirmation has to have."""
        return bytes(self.message["header"]["senderNonce"])

    @property
    def implicit(self) -> bool:
        """Whether no confirmation is wanted."""
        return forge_cmp.IMPLICIT_CONFIRM in str(self.message["header"]["generalInfo"])

    @property
    def protected(self) -> bool:
        """Whether anything protects it."""
        return bool(self.message["protection"].isValue)

    @property
    def text(self) -> str:
        """What went wrong, in words."""
        return str(self._status["statusString"][0])

    @property
    def failure(self) -> int:
        """The bit of what went wrong."""
        return next(place for place, bit in enumerate(self._status["failInfo"]) if bit)

    def opened(self, algorithm: KeyAlgorithm, private: bytes) -> bytes:
        """Return the certificate that came encrypted."""
        held = self._pair["encryptedCert"]["envelopedData"]
        [one] = recipients.read(encode(held["recipientInfos"][0]), Profile.STRICT)
        assert isinstance(one, ParsedRecipient)
        key = one.content_key(lambda found, sent: keys.recover(found, private, sent))
        content = held["encryptedContentInfo"]
        start = bytes(decode(content["contentEncryptionAlgorithm"]["parameters"])[0])
        cipher = Cipher(AES(key), CBC(start)).decryptor()
        padded = cipher.update(bytes(content["encryptedContent"])) + cipher.finalize()
        assert one.algorithm == algorithm
        return padded[: -padded[-1]]

    @property
    def _pair(self) -> Any:
        return self.message["body"][self.kind]["response"][0]["certifiedKeyPair"]["certOrEncCert"]

    @property
    def _status(self) -> Any:
        body = self.message["body"][self.kind]
        return body["pKIStatusInfo"] if self.kind == "error" else body["response"][0]["status"]


@dataclass
class Counter:
    """Where messages are handed in: the office's issuer process, with the registration key."""

    office: Office
    opener: RegistrationKey = field(init=False)

    def __post_init__(self) -> None:
        """Make the key as ``kmb-server init`` does."""
        home = self.office.deps.settings.home
        create(home, PASSPHRASE)
        self.opener = RegistrationKey(home, PASSPHRASE)

    @property
    def desk(self) -> handling.Desk:
        """What the issuer process answers with."""
        return handling.Desk(self.office.deps, self.office.keys, self.opener)

    def hand_in(self, der: bytes) -> str:
        """Store a message, and return its digest."""
        return exchanges.submit(self.office.deps, der).digest

    def post(self, der: bytes) -> Reply:
        """Hand a message in and wait for the answer."""
        digest = self.hand_in(der)
        for error in handling.handle(self.desk, [digest]).values():
            if error is not None:
                raise error
        return self.reply(digest)

    def reply(self, digest: str) -> Reply:
        """Return a stored answer."""
        response = exchanges.look(self.office.deps, digest)
        assert response is not None
        message, rest = decode(response, asn1Spec=rfc9480.PKIMessage())
        assert rest == b""
        return Reply(response, message)


@dataclass
class Client:
    """One instance that speaks CMP: its identity key, and perhaps an invitation."""

    counter: Counter
    address: Address
    reference: str = ""
    secret: str = ""
    identity: SigningKey = field(default_factory=new_signing_key)

    @property
    def name(self) -> bytes:
        """The distinguished name."""
        return forge.address_name(str(self.address))

    @property
    def mac(self) -> Protect:
        """The secret's protection."""
        return forge_cmp.by_secret(self.secret.encode())

    @property
    def signature(self) -> Protect:
        """The identity key's protection."""
        return forge.GOOD, self.identity.sign

    @property
    def fields(self) -> dict[str, Any]:
        """Fresh fields of a header."""
        return {
            "sender": forge_cmp.general(self.name),
            "recipient": forge_cmp.general(tlv.seq()),
            "time": self.counter.office.clock.now(),
            "transaction": secrets.token_bytes(16),
            "nonce": secrets.token_bytes(16),
            "key": self.reference.encode() or None,
        }

    def invited(self) -> Client:
        """Take a fresh invitation."""
        self.reference, self.secret = self.counter.office.invite(self.address.tenant)
        return self

    def enrolment(self, **changes: Any) -> bytes:
        """Return an ir under the secret."""
        start = changes.pop("start", self.counter.office.clock.now())
        wanted = forge_cmp.template(self.name, self.identity.public.spki, start=start)
        content = tlv.seq(forge_cmp.asked(wanted, self.identity.sign))
        return forge_cmp.message(forge_cmp.IR, content, changes.pop("protect", self.mac), **{**self.fields, **changes})

    def enrol(self) -> Reply:
        """Enrol, and confirm."""
        fields = self.fields
        reply = self.counter.post(self.enrolment(**fields))
        assert reply.kind == "ip", reply.text
        assert self.confirm(reply, fields, reply.certificate, self.mac).kind == "pkiconf"
        # From now on the identity key speaks.
        self.reference = ""
        return reply

    def wish(self, algorithm: KeyAlgorithm, private: bytes, *, kind: int = forge_cmp.CR, **changes: Any) -> bytes:
        """Return a signed request for an encryption key."""
        spki = keys.spki(algorithm, keys.public_from_private(algorithm, private))
        wanted = forge_cmp.template(changes.pop("subject", self.name), spki)
        content = tlv.seq(forge_cmp.asked(wanted, forge_cmp.ENCRYPTED, controls=changes.pop("controls", ())))
        protect = changes.pop("protect", self.signature)
        return forge_cmp.message(kind, content, protect, **{**self.fields, **changes})

    def renewal(self, **changes: Any) -> bytes:
        """Return a kur for the identity key."""
        key = changes.pop("identity", self.identity)
        content = tlv.seq(forge_cmp.asked(forge_cmp.template(self.name, key.public.spki), key.sign))
        return forge_cmp.message(forge_cmp.KUR, content, self.signature, **{**self.fields, **changes})

    def publish(self, algorithm: KeyAlgorithm, private: bytes) -> bytes:
        """Get an encryption certificate and prove it; return it."""
        fields = self.fields
        reply = self.counter.post(self.wish(algorithm, private, **fields))
        assert reply.kind == "cp", reply.text
        certificate = reply.opened(algorithm, private)
        assert self.confirm(reply, fields, certificate, self.signature).kind == "pkiconf"
        return certificate

    def confirm(
        self, reply: Reply, fields: dict[str, Any], certificate: bytes, protect: Protect, **changes: Any
    ) -> Reply:
        """Send the hash of a certificate."""
        return self.counter.post(self.confirmation(reply, fields, certificate, protect, **changes))

    def confirmation(
        self, reply: Reply, fields: dict[str, Any], certificate: bytes, protect: Protect, **changes: Any
    ) -> bytes:
        """Return a certConf for an answer."""
        status = changes.pop("status", None)
        content = forge_cmp.confirmation(
            hashlib.sha256(certificate).digest(), status=status, by=tlv.algorithm(forge.SHA_256)
        )
        mine = {**fields, "nonce": secrets.token_bytes(16), "answers": reply.nonce}
        return forge_cmp.message(forge_cmp.CERTCONF, content, protect, **{**mine, **changes})

    def revocation(self, certificate: bytes, reason: int | None = 1, **changes: Any) -> bytes:
        """Return an rr for a certificate."""
        parsed = x509.parse_certificate(certificate)
        content = forge_cmp.revocation(parsed.serial, reason, parsed.issuer_der)
        protect = changes.pop("protect", self.signature)
        return forge_cmp.message(forge_cmp.RR, content, protect, **{**self.fields, **changes})
