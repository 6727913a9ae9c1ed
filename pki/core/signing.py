"""SignedData with one signer (RFC 5652; RFC 9882 ML-DSA, 5753 ECDSA, 8419 Ed25519): deposits, receipts and the like."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from cryptography.x509 import ObjectIdentifier as Oid

from pki.core import asn1, attributes, der, oids, signatures
from pki.core.der import located, not_der
from pki.core.errors import AlgorithmError, MalformedError, ProfileError, SignatureError, demand
from pki.core.profile import Profile
from pki.core.signatures import IDENTITY, Sign, SignatureAlgorithm, VerifyingKey

_TIME_LIMIT = datetime(2050, 1, 1, tzinfo=UTC)
_MAX_SIGNERS = {Profile.STRICT: 8 * 1024, Profile.READ: 64 * 1024}
"""Bytes of all signers together; one honest signer with ML-DSA-87 has about 5,500."""
_MAX_VERSION = 8
_MAX_DIGESTS = 512
"""Bytes of all digest algorithms together; one has 13."""


@dataclass(frozen=True)
class SignerName:
    """How a foreign object may call its signer: by its certificate's key identifier, or by issuer (Name) and serial."""

    ski: bytes
    issuer_der: bytes
    serial: int


@dataclass(frozen=True)
class SignedObject:
    """What a key has signed; only `UnverifiedSigned.verify` makes one. ``signed_at`` is never None when strict."""

    content_type: Oid
    content: bytes
    signer_ski: bytes
    signed_at: datetime | None
    attributes: Mapping[Oid, bytes]
    der: bytes

    @property
    def signing_time(self) -> datetime:
        """When it says that it was signed."""
        return _stated(self.signed_at)


@dataclass(frozen=True)
class UnverifiedSigned:
    """A SignedData that keeps the profile; ``attributes`` holds one DER value each.

    A foreign object may have no signing time, may name its signer by issuer and serial (then ``signer_ski`` is empty),
    and keeps unknown attributes: with several values, the DER of the whole attribute.
    """

    content_type: Oid
    content: bytes
    signer_ski: bytes
    signer_serial: tuple[bytes, int] | None
    signed_at: datetime | None
    signature_algorithm: Oid
    digest: str
    attributes: Mapping[Oid, bytes]
    der: bytes
    profile: Profile
    _signed_bytes: bytes
    _signature: bytes

    @property
    def signing_time(self) -> datetime:
        """When it says that it was signed."""
        return _stated(self.signed_at)

    def verify(self, key: VerifyingKey, *, name: SignerName | None = None) -> SignedObject:
        """Return the object if ``key`` signed it, else raise SignatureError.

        ``name`` are the signer's names in its certificate, for foreign objects; ours call a key by its own identifier.
        """
        self._check_signer(key, name)
        if not hmac.compare_digest(self.message_digest, digest_of(self.digest, self.content)):
            raise SignatureError(rule="SIG-006")
        self._check_signature(key)
        return SignedObject(self.content_type, self.content, self.signer_ski, self.signed_at, self.attributes, self.der)

    def verify_attributes(self, key: VerifyingKey) -> None:
        """Raise SignatureError unless ``key`` signed the attributes; the content, which may be away, does not count."""
        self._check_signer(key, None)
        self._check_signature(key)

    @property
    def message_digest(self) -> bytes:
        """What the signer says that the content's digest is (RFC 5652 §11.2)."""
        return asn1.decode(bytes, self.attributes[oids.MESSAGE_DIGEST], what="The message digest")

    def _check_signer(self, key: VerifyingKey, name: SignerName | None) -> None:
        # The signer's name is outside of what is signed: without this, it could be changed unseen (RFC 7093 §2).
        if not self._named(key, name):
            raise SignatureError("The signer is called by another name than the key's", rule="SIG-006")
        same = key.algorithm.oid == self.signature_algorithm
        foreign = self.profile is Profile.READ and bool(key.algorithm.curve) and self.signature_algorithm in _ECDSA
        if key.algorithm not in IDENTITY or not (same or foreign):
            raise SignatureError(
                "The signature is of another algorithm than the key",
                on=f"{oids.name(self.signature_algorithm)}, {key.algorithm.title}",
                rule="SIG-007",
            )

    def _check_signature(self, key: VerifyingKey) -> None:
        try:
            key.verify(self._signature, self._signed_bytes, digest=_ECDSA.get(self.signature_algorithm, ""))
        except SignatureError as error:
            raise SignatureError(on=error.on, rule="SIG-006") from None

    def _named(self, key: VerifyingKey, name: SignerName | None) -> bool:
        if name is None:
            return self.signer_ski == key.ski
        if self.signer_serial is not None:
            return self.signer_serial == (name.issuer_der, name.serial)
        return self.signer_ski in (name.ski, key.ski)


def sign(
    content_type: Oid,
    content: bytes,
    *,
    extra: Mapping[Oid, bytes],
    signing_time: datetime,
    signer_ski: bytes,
    sign: Sign,
    algorithm: SignatureAlgorithm = SignatureAlgorithm.ML_DSA_65,
) -> bytes:
    """Return a ContentInfo in DER; ``sign`` makes a signature of ``algorithm`` over the bytes that it is given."""
    digest = asn1.AlgorithmIdentifier(algorithm=_DIGEST_OIDS[algorithm.digest], parameters=None)
    named = {
        oids.CONTENT_TYPE: asn1.encode(content_type),
        oids.SIGNING_TIME: encode_time(signing_time),
        oids.MESSAGE_DIGEST: asn1.encode(digest_of(algorithm.digest, content)),
        **extra,
    }
    attrs = asn1.SetOf([attributes.attribute(oid, value) for oid, value in named.items()])
    info = asn1.SignerInfo(
        version=3,
        sid=signer_ski,
        digest_algorithm=digest,
        signed_attrs=attrs,
        signature_algorithm=algorithm.identifier,
        signature=sign(asn1.encode(attrs)),
    )
    signed = asn1.SignedData(
        version=3,
        digest_algorithms=asn1.SetOf([digest]),
        content=asn1.EncapsulatedContent(content_type=content_type, content=content),
        signer_infos=asn1.SetOf([info]),
    )
    return asn1.encode(asn1.ContentInfo(content_type=oids.SIGNED_DATA, content=asn1.tlv(asn1.encode(signed))))


@located
def parse(
    encoded: bytes,
    *,
    content_types: Collection[Oid] | None,
    extra: Collection[Oid],
    profile: Profile = Profile.STRICT,
    detached: bool = False,
) -> UnverifiedSigned:
    """Return a SignedData that keeps the profile (rules SIG-001 to SIG-005) with exactly these attributes.

    One that is ``detached`` was strict and has lost its content (RFC 5652 §5.2): it has none here either.

    ``content_types`` None lets any pass. When reading foreign objects there may be other attributes, and embedded
    certificates, revocation lists and unsigned attributes are left out: nothing in them is ever believed.
    """
    strict = profile is Profile.STRICT
    outer = asn1.decode(asn1.ContentInfo, encoded, what="The signed object")
    demand(outer.content_type == oids.SIGNED_DATA, "SIG-001", "The object is not SignedData")
    try:
        signed: asn1.MeasuredSignedData | asn1.DetachedSignedData
        if detached:
            signed = asn1.inner(asn1.DetachedSignedData, outer.content, what="The signed object")
        elif strict:
            signed = asn1.inner(asn1.MeasuredSignedData, outer.content, what="The signed object")
        else:
            signed = asn1.decode(asn1.MeasuredSignedData, _bare(asn1.encode(outer.content)), what="The signed object")
    except MalformedError as error:
        if not detached and (said := _odd_form(bytes(outer.content.data))):
            error.message, error.on = said, ""
        raise
    demand(signed.version == 3 or (signed.version == 1 and not strict), "SIG-001", "The version of SignedData is not 3")
    content_type = signed.content.content_type
    demand(content_types is None or content_type in content_types, "SIG-002", "The content has an unexpected type")
    info, signer = _signer(signed.signer_infos, profile)
    algorithm, digest = _algorithms(info, profile)
    _check_digests(signed.digest_algorithms, info.digest_algorithm, profile)
    # RFC 5652 §5.3: they may be absent for id-data, and then nothing says what the signature is over.
    if info.signed_attrs is None:
        raise ProfileError("The signed attributes are missing", rule="SIG-005")
    found = _attributes(info.signed_attrs.as_list(), extra, profile)
    if found[oids.CONTENT_TYPE] != asn1.encoded_oid(content_type):
        typed = asn1.decode(Oid, found[oids.CONTENT_TYPE], what="The content type")
        raise ProfileError("The content type differs from the signed one", on=oids.name(typed), rule="SIG-005")
    stamp = found.get(oids.SIGNING_TIME)
    return UnverifiedSigned(
        content_type=content_type,
        content=signed.content.content if isinstance(signed, asn1.MeasuredSignedData) else b"",
        signer_ski=signer if isinstance(signer, bytes) else b"",
        signer_serial=None if isinstance(signer, bytes) else signer,
        signed_at=None if stamp is None else decode_time(stamp),
        signature_algorithm=algorithm,
        digest=digest,
        attributes=found,
        der=encoded,
        profile=profile,
        _signed_bytes=asn1.encode(info.signed_attrs),
        _signature=info.signature,
    )


def _stated(moment: datetime | None) -> datetime:
    if moment is None:
        raise ProfileError("An attribute is missing", on="signing time", rule="SIG-005")
    return moment


def _odd_form(fields: bytes) -> str:
    """Say which of the forms of RFC 5652 §5.1 it is that others use and that nobody takes here, or return nothing."""
    try:
        for one in islice(der.parts(fields, 0, len(fields)), _FIELDS):
            if one.tag == 0x30 and der.header(fields, one.content, one.end).end == one.end:
                return "The signed object does not hold what was signed (a detached signature)"
            if one.tag in (0xA0, 0xA1):
                return "The signed object brings certificates or revocation lists along"
    except MalformedError:
        pass
    return ""


def _bare(signed: bytes) -> bytes:
    """Return a SignedData without its embedded certificates [0] and revocation lists [1] (RFC 5652 §5.1)."""
    outer = der.header(signed, 0, len(signed))
    fields: list[der.Header] = []
    at = outer.content
    while at < outer.end:
        demand(len(fields) < _FIELDS, "SIG-001", "SignedData has too many fields")
        fields.append(der.header(signed, at, outer.end))
        at = fields[-1].end
    version = fields[0].end - fields[0].start if fields else 0
    demand(version <= _MAX_VERSION, "SIG-001", "The version of SignedData is too large")
    kept = [one for one in fields if one.tag not in (0xA0, 0xA1)]
    # Measured here, too, so that what is too large is not copied first.
    size = kept[-1].end - kept[-1].start if kept else 0
    demand(size <= _MAX_SIGNERS[Profile.READ], "SIG-003", "The signers are too large to be one")
    if len(kept) == len(fields):
        return signed
    view = memoryview(signed)
    length = sum(one.end - one.start for one in kept)
    count = (length.bit_length() + 7) // 8
    head = bytes([length]) if length < 0x80 else bytes([0x80 | count]) + length.to_bytes(count, "big")
    return b"".join([bytes([outer.tag]), head, *[view[one.start : one.end] for one in kept]])


def _signer(infos: asn1.TLV, profile: Profile) -> tuple[asn1.AnySignerInfo, bytes | tuple[bytes, int]]:
    """Return the one signer, and what it is called: a key identifier, or issuer and serial (rule SIG-003)."""
    data = infos.data  # one view: making it costs more than looking
    if len(data) > _MAX_SIGNERS[profile] or infos.tag_bytes != _SET:
        raise ProfileError("The signers are too large to be one, or no set", rule="SIG-003")
    content = bytes(data)
    alone = bool(content) and der.header(content, 0, len(content)).end == len(content)
    demand(alone, "SIG-003", "There is not exactly one signer", content)
    info = asn1.decode(asn1.AnySignerInfo, content, what="The signer")
    if info.sid.tag_bytes == _SKI_TAG:
        ski = bytes(info.sid.data)
        fits = len(ski) == 20 if profile is Profile.STRICT else 1 <= len(ski) <= 64
        demand(info.version == 3 and fits, "SIG-003", "The signer is not named by a key identifier")
        demand(info.unsigned_attrs is None or profile is Profile.READ, "SIG-003", "The signer has unsigned attributes")
        return info, ski
    demand(profile is Profile.READ and info.version == 1, "SIG-003", "The signer is not named by a key identifier")
    serial = asn1.inner(asn1.IssuerAndSerial, info.sid, what="The signer's name")
    return info, (asn1.encode(serial.issuer), serial.serial)


def _algorithms(info: asn1.AnySignerInfo, profile: Profile) -> tuple[Oid, str]:
    """Return the signature's algorithm and the name of the digest, if they may go together (rule SIG-004)."""
    digest = _DIGESTS.get(info.digest_algorithm.algorithm)
    parameters = info.digest_algorithm.parameters
    if digest is None:
        name = oids.name(info.digest_algorithm.algorithm)
        raise AlgorithmError("This digest is not allowed", on=name, rule="SIG-004")
    # RFC 5754 §2: absent parameters are written; NULL is read, too.
    demand(
        parameters is None or (profile is Profile.READ and isinstance(parameters, asn1.Null)),
        "SIG-004",
        "The digest algorithm has parameters",
    )
    oid = info.signature_algorithm.algorithm
    if profile is Profile.READ and oid in _ECDSA:
        # RFC 5753 §2.1.1: the digest is the one of the signature.
        good = digest == _ECDSA[oid] and info.signature_algorithm.parameters is None
        sizes = [one for one in IDENTITY if one.curve]
    else:
        algorithm = signatures.algorithm_of(info.signature_algorithm, allowed=IDENTITY, rule="SIG-004")
        allowed = {algorithm.digest} | (_STRONG.get(algorithm, frozenset()) if profile is Profile.READ else frozenset())
        good, sizes = digest in allowed, [algorithm]
    if not good:
        raise AlgorithmError(
            "This digest does not go with the signature", on=f"{digest}, {oids.name(oid)}", rule="SIG-004"
        )
    demand(any(one.fits(len(info.signature)) for one in sizes), "SIG-004", "The signature has a wrong size")
    return oid, digest


def _check_digests(listed: asn1.TLV, used: asn1.AlgorithmIdentifier, profile: Profile) -> None:
    """Refuse a list of digests that is not exactly the used one; when reading, the list is a hint that may be wrong."""
    data = listed.data
    small = len(data) <= _MAX_DIGESTS and listed.tag_bytes == _SET
    demand(small, "SIG-004", "There is not exactly one digest algorithm")
    if profile is Profile.STRICT and data != asn1.encode(used):
        raise ProfileError(
            "There is not exactly one digest algorithm, the signer's", rule="SIG-004", at=asn1.encode(listed)
        )


def _attributes(listed: list[asn1.Attribute], extra: Collection[Oid], profile: Profile) -> dict[Oid, bytes]:
    """Return the value of each signed attribute (rule SIG-005)."""
    needed = {oids.CONTENT_TYPE, oids.MESSAGE_DIGEST, *extra}
    if profile is Profile.STRICT:
        return attributes.values(listed, required={*needed, oids.SIGNING_TIME}, rule="SIG-005")
    known = [one for one in listed if one.oid in needed or one.oid == oids.SIGNING_TIME]
    found = attributes.values(known, required=needed, optional={oids.SIGNING_TIME}, rule="SIG-005")
    for one in listed:
        if one.oid in needed or one.oid == oids.SIGNING_TIME:
            continue
        demand(one.oid not in found, "SIG-005", "An attribute appears twice")
        held = one.values.as_list()
        found[one.oid] = asn1.encode(held[0]) if len(held) == 1 else asn1.encode(one)
    return found


def digest_of(name: str, content: bytes) -> bytes:
    """Return the message digest; SHAKE256, which some tools take for ML-DSA, has 64 bytes (RFC 8702 §3.1)."""
    return hashlib.shake_256(content).digest(64) if name == "shake256" else hashlib.new(name, content).digest()


def encode_time(moment: datetime) -> bytes:
    """Return a Time in DER: UTCTime through 2049, GeneralizedTime after (RFC 5652 §11.3), whole seconds."""
    moment = moment.astimezone(UTC).replace(microsecond=0)
    return asn1.encode(asn1.UTCTime(moment) if moment < _TIME_LIMIT else asn1.GeneralizedTime(moment))


def decode_time(der: bytes) -> datetime:
    """Return the moment that a Time in DER names."""
    if der[:1] == b"\x17":
        return asn1.decode(asn1.UTCTime, der, what="The time").as_datetime().replace(tzinfo=UTC)
    moment = asn1.decode(asn1.GeneralizedTime, der, what="The time").as_datetime().replace(tzinfo=UTC)
    if moment < _TIME_LIMIT:
        raise not_der("A time before 2050 is written as UTCTime", on=str(moment))
    if moment.microsecond:
        # RFC 5652 §11.3
        raise not_der("A time is in whole seconds", on=str(moment))
    return moment


_SET, _SKI_TAG = b"\x31", b"\x80"
_FIELDS = 6
"""What SignedData may hold at most."""
_DIGEST_OIDS = {"sha256": oids.SHA256, "sha384": oids.SHA384, "sha512": oids.SHA512}
_DIGESTS = {oids.SHAKE256: "shake256", **{oid: name for name, oid in _DIGEST_OIDS.items()}}
_ECDSA = {oids.ECDSA_SHA256: "sha256", oids.ECDSA_SHA384: "sha384", oids.ECDSA_SHA512: "sha512"}
_STRONG = {
    SignatureAlgorithm.ML_DSA_44: frozenset({"sha256", "sha384", "sha512", "shake256"}),
    SignatureAlgorithm.ML_DSA_65: frozenset({"sha384", "sha512", "shake256"}),
    SignatureAlgorithm.ML_DSA_87: frozenset({"sha512", "shake256"}),
}
"""Digests at least as strong as the signature (RFC 9882 §3.3); Ed25519 takes SHA-512 alone (RFC 8419 §3.1)."""
