"""Who is enrolled, what was asked for, issued and revoked, and what was told of it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from functools import lru_cache

from cryptography.x509 import load_der_x509_crl
from sqlalchemy import RowMapping

from pki.core import httpsig, x509
from pki.core.certificates import CertificateState, RequestState
from pki.core.events import EventType
from pki.core.tenants import parse_address
from tests.kit.holding.seen import Complaints, Seen

# What the bytes of a certificate say stays so, and is asked after each step.
parsed_once = lru_cache(maxsize=1 << 14)(x509.parse_certificate)


def instances(seen: Seen) -> Complaints:
    """Each belongs to its tenant, under its key's own name, and was enrolled once."""
    tenants = seen.by("tenants", "name")
    for row in seen.rows("instances"):
        address = row["address"]
        if row["tenant"] not in tenants or parse_address(address).tenant != row["tenant"]:
            yield f"{address} belongs to no tenant of its own"
        if row["access_key"] is not None and httpsig.key_id(row["access_key"]) != row["access_key_id"]:
            yield f"{address}'s access key has another's name"
        told = [one["type"] for one in seen.trails[address]].count(EventType.INSTANCE_ENROLLED)
        if told != 1:
            yield f"{address} was enrolled {told} times"


def invitations(seen: Seen) -> Complaints:
    """Each was used by one instance that is there, or not at all."""
    there = seen.by("instances", "address")
    used = Counter(row["used_by"] for row in seen.rows("invitations") if row["used_by"] is not None)
    for row in seen.rows("invitations"):
        if (row["used_at"] is None) != (row["used_by"] is None):
            yield f"{row['reference']} is half used"
        if row["used_by"] is not None and row["used_by"] not in there:
            yield f"{row['reference']} was used by {row['used_by']}, who is not there"
    yield from (f"{who} used {count}" for who, count in used.items() if count > 1)


def requests(seen: Seen) -> Complaints:
    """Each is settled as often as it was asked for, by what is there; one that is pending has its job."""
    certificates = seen.by("certificates", "fingerprint")
    dead = {row["subject"] for row in seen.rows("jobs") if row["dead_at"] is not None}
    for row in seen.rows("requests"):
        state, name = RequestState(row["state"]), row["id"]
        told = Counter(one["type"] for one in seen.trails[name])
        if (row["serial"] is None) != (row["tbs"] is None):
            yield f"{name} is half prepared"
        if state is RequestState.ISSUED and (
            row["fingerprint"] not in certificates or told[EventType.CERTIFICATE_ISSUED] < 1
        ):
            yield f"{name} is issued without a certificate or a word of it"
        if (
            state is RequestState.ISSUED
            and row["fingerprint"] in certificates
            and certificates[row["fingerprint"]]["serial"] != row["serial"]
        ):
            yield f"{name} was prepared with another serial number than it was issued with"
        if state is RequestState.REJECTED and (not row["reason"] or told[EventType.CERTIFICATE_REJECTED] < 1):
            yield f"{name} is rejected without a reason or a word of it"
        if state is RequestState.PENDING and seen.waiting["certificate", name] == 0 and name not in dead:
            yield f"{name} waits for nobody"
        settled = told[EventType.CERTIFICATE_ISSUED] + told[EventType.CERTIFICATE_REJECTED]
        if told[EventType.CERTIFICATE_REQUESTED] != settled + (state is RequestState.PENDING):
            yield f"{name} was asked for {told[EventType.CERTIFICATE_REQUESTED]} times and settled {settled} times"
        if seen.settled and state is RequestState.PENDING:
            yield f"{name} is pending still"


def certificates(seen: Seen) -> Complaints:
    """One is active at a place; each is what its bytes say, was asked for, and its state was told once."""
    places = Counter(
        (row["address"], row["kind"]) for row in seen.rows("certificates") if row["state"] == CertificateState.ACTIVE
    )
    yield from (f"{place} has {count} active ones" for place, count in places.items() if count > 1)
    asked = seen.by("requests", "fingerprint")
    proofs = seen.by("revocations", "fingerprint")
    for row in seen.rows("certificates"):
        name, state = row["fingerprint"], CertificateState(row["state"])
        parsed = parsed_once(row["der"])
        said = (parsed.fingerprint, f"{parsed.serial:040x}", str(parsed.address), parsed.kind, parsed.ski.hex())
        row_says = (name, row["serial"].rjust(40, "0"), row["address"], row["kind"], row["ski"])
        if said != row_says:
            yield f"{name}'s row says something else than its bytes: {said} {row_says}"
        if name not in asked:
            yield f"{name} was asked for by nobody"
        if (state is CertificateState.REVOKED) != (name in proofs) or (state is CertificateState.REVOKED) != (
            row["revoked_at"] is not None
        ):
            yield f"{name} is {state}, and what proves a revocation is {'' if name in proofs else 'not '}there"
        told = Counter(one["type"] for one in seen.trails[name])
        shown = told[EventType.CERTIFICATE_ACTIVATED]
        if shown > 1 or (state in (CertificateState.ACTIVE, CertificateState.RETIRED) and shown != 1):
            yield f"{name} was activated {shown} times"
        for kind, one in (
            (EventType.CERTIFICATE_RETIRED, CertificateState.RETIRED),
            (EventType.CERTIFICATE_REVOKED, CertificateState.REVOKED),
        ):
            if told[kind] > 1 or (state is one) > told[kind]:
                yield f"{name} was {one} {told[kind]} times"


def revocations(seen: Seen) -> Complaints:
    """Each is about a certificate, and is on its issuer's newest list, or the next list is on its way."""
    certificates = seen.by("certificates", "fingerprint")
    newest: dict[str, RowMapping] = {}
    for row in seen.rows("crls"):
        if row["issuer"] not in newest or newest[row["issuer"]]["number"] < row["number"]:
            newest[row["issuer"]] = row
    lists = {issuer: {one.serial_number for one in load_der_x509_crl(row["der"])} for issuer, row in newest.items()}
    for row in seen.rows("revocations"):
        found = certificates.get(row["fingerprint"])
        if found is None:
            yield f"{row['fingerprint']} is no certificate"
        elif "crl" not in seen.kinds_waiting and int(found["serial"], 16) not in lists.get(found["issuer"], set()):
            yield f"{row['fingerprint']} is on no list, and nobody is about to publish one"


def crls(seen: Seen) -> Complaints:
    """Their numbers were told without a gap, each once, and the newest one is there; older ones are forgotten."""
    told: dict[str, list[int]] = defaultdict(list)
    for row in seen.rows("events"):
        if row["type"] == EventType.CRL_PUBLISHED:
            data = json.loads(row["data"])
            told[data["issuer"]].append(data["number"])
    kept: dict[str, list[int]] = defaultdict(list)
    for row in seen.rows("crls"):
        kept[row["issuer"]].append(row["number"])
    for issuer in told.keys() | kept.keys():
        if sorted(told[issuer]) != list(range(1, max(kept[issuer], default=0) + 1)):
            yield f"{issuer}'s lists were told of as {sorted(told[issuer])}, and {sorted(kept[issuer])} are there"


def reminders(seen: Seen) -> Complaints:
    """Each was told once."""
    told = Counter(row["subject"] for row in seen.rows("events") if row["type"] == EventType.CERTIFICATE_EXPIRING)
    noted = Counter(row["fingerprint"] for row in seen.rows("reminders"))
    if told != noted:
        yield f"noted {dict(noted)}, told {dict(told)}"


def orders(seen: Seen) -> Complaints:
    """Each was told of as it is: given, and approved when it was carried out."""
    for row in seen.rows("orders"):
        told = Counter(one["type"] for one in seen.trails[row["id"]])
        carried_out = row["executed_at"] is not None
        if told[EventType.ORDER_GIVEN] != 1 or told[EventType.ORDER_APPROVED] != carried_out:
            yield f"{row['id']} was told of otherwise than it is"
        if carried_out != (row["approval"] is not None):
            yield f"{row['id']} is half approved"


def exchanges(seen: Seen) -> Complaints:
    """Each has its answer, or a job that will make it."""
    for row in seen.rows("cmp_exchanges"):
        if row["response"] is None and seen.waiting["cmp", row["digest"]] == 0 and "cmp" not in seen.kinds_waiting:
            yield f"{row['digest']} waits for nobody"
