"""What the issuer does for the bench: a crowd's requests go into the queue, and are timed until all are issued."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select

from pki.core import httpsig, kem, requests, signers
from pki.core.certificates import RequestState
from pki.core.ids import request_id
from pki.core.kem import KemAlgorithm
from pki.core.requests import Statement
from pki.core.signatures import SignatureAlgorithm
from pki.core.signers import SigningKey
from pki.core.tenants import Address, parse_address, parse_tenant
from pki.core.x509 import CertificateKind, parse_certificate
from pki.server.facts import Instance, RequestRecord
from pki.server.services import certificates
from pki.server.services.deps import Deps
from pki.server.store import certificates as certificate_store
from pki.server.store import tenants as tenant_store
from pki.server.store.tables import requests as request_table

_PATIENCE = 300.0


@dataclass(frozen=True)
class Member:
    """One instance and its identity key."""

    address: Address
    identity: SigningKey


def enrolled(deps: Deps, count: int, algorithm: SignatureAlgorithm, tenant: str = "bench") -> list[Member]:
    """Enrol instances without a word over HTTP."""
    now = deps.clock.now()
    members = []
    with deps.store.unit() as unit:
        tenant_store.insert_tenant(unit, parse_tenant(tenant), now)
        for number in range(count):
            member = Member(parse_address(f"{tenant}/n{number}"), signers.load(algorithm, signers.generate(algorithm)))
            access = signers.load(SignatureAlgorithm.ED25519, signers.generate(SignatureAlgorithm.ED25519)).public.raw
            spki, key_id = member.identity.public.spki, httpsig.key_id(access)
            entry = Instance(member.address, member.address.tenant, spki, access, key_id, now)
            tenant_store.insert_instance(unit, entry)
            members.append(member)
    return members


def identity_requests(members: Sequence[Member]) -> list[tuple[Member, CertificateKind, bytes]]:
    """Return a request for each one's identity certificate."""
    return [
        (
            member,
            CertificateKind.IDENTITY,
            requests.identity_request(
                member.address,
                member.identity.public.spki,
                sign=member.identity.sign,
                signing_time=datetime.now(UTC),
                algorithm=member.identity.public.algorithm,
            ),
        )
        for member in members
    ]


def encryption_requests(deps: Deps, members: Sequence[Member]) -> list[tuple[Member, CertificateKind, bytes]]:
    """Return a request for a new composite key of each, whose identity certificate is active."""
    kind, algorithm = CertificateKind.IDENTITY, KemAlgorithm.COMPOSITE
    with deps.store.read() as unit:
        found = certificate_store.active_at(unit, [member.address for member in members], kind)
    statements = {one.address: Statement(parse_certificate(one.der).issuer_der, one.serial) for one in found}
    return [
        (
            member,
            CertificateKind.ENCRYPTION,
            requests.encryption_request(
                member.address,
                kem.spki(algorithm, kem.public_from_private(algorithm, kem.generate())),
                statements[member.address],
                sign=member.identity.sign,
                signing_time=datetime.now(UTC),
                algorithm=member.identity.public.algorithm,
            ),
        )
        for member in members
    ]


def stored(deps: Deps, asked: Sequence[tuple[Member, CertificateKind, bytes]], *, queued: bool = True) -> float:
    """Put requests into the store, and with their jobs into the queue, in one transaction; return when it was done."""
    now = deps.clock.now()
    with deps.store.unit() as unit:
        for member, kind, der in asked:
            record = RequestRecord(request_id(der), member.address, kind, der, RequestState.PENDING, now)
            certificate_store.insert_request(unit, record)
        if queued:
            ids = [request_id(der) for _, _, der in asked]
            certificates.outbox.add(unit, certificates.QUEUE, certificates.ISSUE_JOB, ids, now=now)
    return time.perf_counter()


def rate(deps: Deps, asked: Sequence[tuple[Member, CertificateKind, bytes]]) -> float:
    """Queue requests and return how many certificates a second came of them, from the commit to the last one."""
    before = issued(deps)
    start = stored(deps, asked)
    while (done := issued(deps) - before) < len(asked):
        if time.perf_counter() - start > _PATIENCE:
            raise RuntimeError(f"only {done} of {len(asked)} certificates were issued in {_PATIENCE:.0f} s")
        time.sleep(0.02)
    return len(asked) / (time.perf_counter() - start)


def issued(deps: Deps) -> int:
    """Return how many requests are issued."""
    statement = select(func.count()).where(request_table.c.state == RequestState.ISSUED.value)
    with deps.store.read() as unit:
        return unit.connection.execute(statement).scalar_one()


def signatures(sign: Callable[[bytes], bytes], seconds: float, size: int = 2400) -> float:
    """Return bare signatures a second, one after another, over as much as a certificate has."""
    message = bytes(size)
    sign(message)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        sign(message)
        count += 1
    return count / spent


def cpu(sign: Callable[[bytes], bytes], seconds: float, size: int = 2400) -> float:
    """Return the CPU time of one bare signature in µs."""
    message = bytes(size)
    sign(message)
    count, start, used = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        sign(message)
        count += 1
    return (time.process_time() - used) / count * 1e6
