"""Thousands of random requests, good and hostile: none is mis-issued, all are linted, no serial comes twice.

`make test-issue` tries 20,000 of them; a run of all tests, a share. KMB_TEST_SEED repeats a run.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from cryptography import x509 as library
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pyasn1.codec.der.decoder import decode as decode_der
from pyasn1.codec.der.encoder import encode as encode_der
from pyasn1_alt_modules import rfc5280

from pki.core import httpsig
from pki.core.certificates import CertificateRecord, CertificateState, RequestState
from pki.core.ids import RequestId, request_id
from pki.core.keys import EcAlgorithm, parse_spki
from pki.core.requests import Statement
from pki.core.signatures import SignatureAlgorithm
from pki.core.x509 import CertificateKind, key_identifier
from pki.server.adapters.linter import PkiLinter
from pki.server.adapters.profiles import FileProfiles
from pki.server.adapters.signers.held import HeldKey
from pki.server.facts import Instance, RequestRecord
from pki.server.ports import CA_FOLDER, ISSUING_FILE, ROOT_FILE, CaKeys
from pki.server.services import issuing
from pki.server.services.activation import activate
from pki.server.services.deps import Deps
from pki.server.settings import load_settings
from pki.server.store import certificates as store
from pki.server.store import requests as request_store
from pki.server.store import tenants as tenant_store
from pki.server.store.engine import Store
from tests.kit.authority import NOW, Authority
from tests.kit.crowd import Crowd, Wish
from tests.kit.office import SteppedClock

COUNT = int(os.environ.get("KMB_TEST_REQUESTS", "1500"))
SEED = int(os.environ.get("KMB_TEST_SEED") or secrets.randbits(32))
K = CertificateKind
CAPABILITIES = library.ObjectIdentifier("1.2.840.113549.1.9.15")
OID = library.oid.ExtensionOID
OURS = {OID.KEY_USAGE, OID.SUBJECT_ALTERNATIVE_NAME, OID.SUBJECT_KEY_IDENTIFIER, OID.AUTHORITY_KEY_IDENTIFIER}
USAGES = {
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
}


class Trial:
    """An issuer with an ECDSA key on SQLite, a crowd that asks, and what became of all that was asked."""

    def __init__(self, home: Path) -> None:
        authority = Authority(3, algorithm=SignatureAlgorithm.ECDSA_P256)
        (home / CA_FOLDER).mkdir(parents=True)
        (home / CA_FOLDER / ROOT_FILE).write_bytes(authority.root_der)
        (home / CA_FOLDER / ISSUING_FILE).write_bytes(authority.issuing_der)
        settings = load_settings(home=home, passphrase="x")
        self.linter = PkiLinter()
        self.clock = SteppedClock(NOW)
        self.deps = Deps(Store(settings.database_url), settings, self.clock, self.linter, FileProfiles(home))
        self.deps.store.migrate()
        self.keys = CaKeys(HeldKey(authority.issuing_der, authority.key))
        self.issuer = library.load_der_x509_certificate(authority.issuing_der)
        self.crowd = Crowd(SEED, 300, NOW)
        self.asked: dict[RequestId, Wish] = {}
        self.serials: set[int] = set()
        self.outcomes: Counter[tuple[str, str]] = Counter()
        with self.deps.store.unit() as unit:
            for member in self.crowd.members:
                tenant_store.insert_tenant(unit, member.address.tenant, NOW)
                raw = member.access.public.raw
                entry = Instance(
                    member.address, member.address.tenant, member.identity.public.spki, raw, httpsig.key_id(raw), NOW
                )
                tenant_store.insert_instance(unit, entry)

    def run(self, wishes: Sequence[Wish]) -> None:
        """Store requests as if somebody had written them into the database, issue them as one batch, look at each."""
        batch = {request_id(wish.der): wish for wish in wishes if request_id(wish.der) not in self.asked}
        self.asked |= batch
        with self.deps.store.unit() as unit:
            for key, wish in batch.items():
                record = RequestRecord(key, wish.address, wish.kind, wish.der, RequestState.PENDING, self.clock.now())
                store.insert_request(unit, record)
        # Some are asked for twice in a batch, and again in a later one.
        again = self.crowd.random.sample(sorted(self.asked), min(3, len(self.asked)))
        ids = [*batch, *list(batch)[:2], *again, RequestId(secrets.token_hex(32))]
        answers = issuing.issue(self.deps, self.keys, ids)
        with self.deps.store.read() as unit:
            held = {one.record.id: one for one in request_store.held(unit, list(batch))}
            found = [answers[key] for key in batch]
            records = {
                one.fingerprint: store.certificate(unit, one.fingerprint)
                for one in found
                if isinstance(one, RequestRecord) and one.fingerprint
            }
        for key, wish in batch.items():
            answer = answers[key]
            assert isinstance(answer, RequestRecord), self.told(wish, answer)
            self.outcomes[wish.what, answer.state.value] += 1
            assert (answer.state is RequestState.ISSUED) == wish.good, self.told(wish, answer)
            if answer.state is RequestState.ISSUED:
                assert answer.fingerprint
                record = records[answer.fingerprint]
                assert record is not None
                self.look(wish, record, held[key])
            else:
                assert answer.reason
        self._learn([wish for wish in batch.values() if wish.good])

    def look(self, wish: Wish, record: CertificateRecord, held: request_store.Held) -> None:
        """Read a certificate with other people's eyes and compare all that it says with what was asked."""
        certificate = library.load_der_x509_certificate(record.der)
        subject = [(one.oid, one.value) for one in certificate.subject]
        tenant, address = str(wish.address.tenant), str(wish.address)
        assert subject == [(NameOID.ORGANIZATION_NAME, tenant), (NameOID.COMMON_NAME, address)], self.told(wish)
        assert certificate.issuer == self.issuer.subject
        certificate.verify_directly_issued_by(self.issuer)
        extensions = {one.oid: one for one in certificate.extensions}
        expected = OURS | ({CAPABILITIES} if wish.capabilities else set())
        assert set(extensions) == expected | ({OID.EXTENDED_KEY_USAGE} if wish.kind is K.ACCESS else set())
        names = list(extensions[OID.SUBJECT_ALTERNATIVE_NAME].value)  # type: ignore[call-overload]  # the OID says which
        assert names == [library.UniformResourceIdentifier(f"https://keymailbox.invalid/{address}")]
        assert extensions[OID.KEY_USAGE].critical
        usage = extensions[OID.KEY_USAGE].value
        assert [name for name in sorted(USAGES) if getattr(usage, name)] == [self._usage(wish)], self.told(wish)
        if wish.kind is K.ACCESS:
            assert list(extensions[OID.EXTENDED_KEY_USAGE].value) == [  # type: ignore[call-overload]  # the OID says which
                ExtendedKeyUsageOID.CLIENT_AUTH
            ]
        if wish.capabilities:
            assert extensions[CAPABILITIES].value.public_bytes() == wish.capabilities.der
        assert certificate.not_valid_before_utc == (NOW - timedelta(minutes=5)).replace(microsecond=0)
        assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=365)
        assert certificate.serial_number not in self.serials
        assert 0 < certificate.serial_number < 1 << 159
        self.serials.add(certificate.serial_number)
        assert (held.serial, held.tbs) == (certificate.serial_number, certificate.tbs_certificate_bytes)
        assert certificate.tbs_certificate_bytes.count(wish.spki) == 1
        state = CertificateState.UNPROVED if wish.kind is K.ENCRYPTION else None
        assert state in (None, record.state)
        if len(self.serials) % 25 == 0:
            self._look_closer(wish, record.der)

    def told(self, wish: Wish, answer: object = None) -> str:
        """Return what helps to find out."""
        reason = answer.reason if isinstance(answer, RequestRecord) else answer
        return f"KMB_TEST_SEED={SEED}: {wish.what} for {wish.address}: {reason}"

    @staticmethod
    def _usage(wish: Wish) -> str:
        if wish.kind is not K.ENCRYPTION:
            return "digital_signature"
        return "key_agreement" if isinstance(parse_spki(wish.spki)[0], EcAlgorithm) else "key_encipherment"

    def _look_closer(self, wish: Wish, der: bytes) -> None:
        # A third reader, slow and of another make.
        decoded, rest = decode_der(der, asn1Spec=rfc5280.Certificate())
        assert not rest
        assert encode_der(decoded) == der
        tbs = decoded["tbsCertificate"]
        assert int(tbs["version"]) == 2
        spki = tbs["subjectPublicKeyInfo"]
        assert encode_der(spki) == wish.spki
        bits = spki["subjectPublicKey"].asOctets()
        values = {str(one["extnID"]): bytes(one["extnValue"]) for one in tbs["extensions"]}
        assert values[OID.SUBJECT_KEY_IDENTIFIER.dotted_string][2:] == hashlib.sha256(bits).digest()[:20]

    def _learn(self, good: Sequence[Wish]) -> None:
        """Find out which identity certificates are active now: encryption requests have to name them."""
        members = {member.address: member for member in self.crowd.members}
        # Some prove their key; before that it keeps nobody else out.
        proved = [wish for wish in good if wish.kind is K.ENCRYPTION][:5]
        with self.deps.store.unit() as unit:
            for wish in proved:
                found = store.by_ski(unit, key_identifier(wish.spki).hex())
                activate(unit, [one for one in found if one.state is CertificateState.UNPROVED][:1], self.clock.now())
                members[wish.address].certified.append(wish.spki)
        addresses = {wish.address for wish in good if wish.kind is K.IDENTITY}
        with self.deps.store.read() as unit:
            active = {one.address: one for one in store.active_at(unit, sorted(addresses), K.IDENTITY)}
        assert set(active) == addresses
        for address, record in active.items():
            members[address].statement = Statement(self.issuer.subject.public_bytes(), record.serial)


def test_random_requests(tmp_path: Path) -> None:
    """Every good request gets exactly its certificate, every hostile one none, whatever else is in its batch."""
    trial = Trial(tmp_path)
    assert isinstance(trial.issuer.public_key(), ec.EllipticCurvePublicKey)
    first = trial.crowd.first()
    for start in range(0, len(first), 100):
        trial.run(first[start : start + 100])
    while len(trial.asked) < COUNT:
        trial.run([trial.crowd.wish() for _ in range(100)])
    issued = sum(count for (_, state), count in trial.outcomes.items() if state == "issued")
    print(f"KMB_TEST_SEED={SEED}: {len(trial.asked)} requests, {issued} issued, {trial.linter.linted} linted")
    print(", ".join(f"{what} {state} {count}" for (what, state), count in sorted(trial.outcomes.items())))
    assert len(trial.serials) == issued
    # A certificate that nobody linted was not signed; those that were linted and not signed met a fact of the store.
    assert trial.linter.linted >= issued
    assert trial.linter.stopped == 0
    assert issued > COUNT * 0.5
    kinds: Mapping[str, int] = Counter(what for what, _ in trial.outcomes)
    assert len(kinds) >= 20, sorted(kinds)
    with trial.deps.store.read() as unit:
        assert request_store.abandoned(unit) == []
    trial.deps.store.close()
