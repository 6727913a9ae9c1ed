"""OCSP: responses that are made before anybody asks, and questions that have to be answered freshly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import RowMapping, delete, func, or_, select, update

from pki.core.certificates import CertificateRecord, CertificateState
from pki.server.facts import OcspQuestion, OcspResponse, Standing
from pki.server.store import rows
from pki.server.store.certificates import serial_text
from pki.server.store.engine import Unit
from pki.server.store.tables import certificates, ocsp_questions, ocsp_responses


def enlist(unit: Unit, listed: Sequence[CertificateRecord], algorithm: str, now: datetime) -> None:
    """Let the issuer make a response for each of these certificates, before anybody asks."""
    values = [
        {"serial": serial_text(one.serial), "algorithm": algorithm, "issuer": one.issuer, "refresh_at": now}
        for one in listed
    ]
    rows.insert_new(unit, ocsp_responses, values, ocsp_responses.c.serial)


def standings(unit: Unit, serials: Sequence[int]) -> Mapping[int, Standing]:
    """Return what the directory says of the certificates with these serials."""
    found = {}
    for chunk in rows.chunks(sorted({serial_text(serial) for serial in serials})):
        statement = select(*_STANDING).where(certificates.c.serial.in_(chunk))
        for row in unit.connection.execute(statement).mappings():
            one = _standing(row)
            found[one.serial] = one
    return found


def due(unit: Unit, now: datetime, limit: int) -> list[OcspResponse]:
    """Return up to ``limit`` responses that are to be made anew, longest due first."""
    statement = select(ocsp_responses).where(ocsp_responses.c.refresh_at <= now)
    statement = statement.order_by(ocsp_responses.c.refresh_at).limit(limit)
    return [_response(row) for row in unit.connection.execute(statement).mappings()]


def overdue(unit: Unit, since: datetime) -> tuple[int, datetime | None]:
    """Return how many responses should have been made anew before ``since``, and when the first of them."""
    statement = select(func.count(), func.min(ocsp_responses.c.refresh_at)).where(ocsp_responses.c.refresh_at < since)
    count, oldest = unit.connection.execute(statement).one()
    return int(count), oldest


def keep(unit: Unit, responses: Sequence[OcspResponse]) -> None:
    """Store responses in the place of earlier ones; a later one stays."""
    if not responses:
        return
    values = [
        {
            "serial": serial_text(one.serial),
            "algorithm": one.algorithm,
            "issuer": one.issuer,
            "der": one.der,
            "status": one.status,
            "this_update": one.this_update,
            "next_update": one.next_update,
            "refresh_at": one.refresh_at,
        }
        # In order, so that two at once wait for each other and not in a circle.
        for one in sorted(responses, key=lambda one: (one.serial, one.algorithm))
    ]
    statement = rows.insert(unit, ocsp_responses)
    new = statement.excluded
    columns = ("issuer", "der", "status", "this_update", "next_update", "refresh_at")
    statement = statement.on_conflict_do_update(
        index_elements=[ocsp_responses.c.serial, ocsp_responses.c.algorithm],
        set_={name: new[name] for name in columns},
        where=or_(ocsp_responses.c.this_update.is_(None), ocsp_responses.c.this_update <= new.this_update),
    )
    unit.connection.execute(statement, values)


def response(unit: Unit, serial: int, algorithm: str) -> OcspResponse | None:
    """Return the response that was made for a certificate."""
    chosen = (ocsp_responses.c.serial == serial_text(serial), ocsp_responses.c.algorithm == algorithm)
    row = unit.connection.execute(select(ocsp_responses).where(*chosen)).mappings().one_or_none()
    return None if row is None else _response(row)


def overtake(unit: Unit, serials: Sequence[int], status: str, now: datetime) -> int:
    """Take back the responses for these certificates that say something else than ``status``; return how many."""
    count = 0
    for chunk in rows.chunks(sorted({serial_text(serial) for serial in serials})):
        statement = (
            update(ocsp_responses)
            .where(ocsp_responses.c.serial.in_(chunk), ocsp_responses.c.status != status)
            .values(der=None, status=None, refresh_at=now)
        )
        count += unit.connection.execute(statement).rowcount
    return count


def ask(unit: Unit, questions: Sequence[OcspQuestion], *, kept: timedelta, waiting: int, most: int) -> set[str]:
    """Store as many of these questions as there is room for; return the ids of those that are stored, now or before.

    At most ``waiting`` wait for their answer, and at most ``most`` were asked within the time ``kept``: what is older
    is forgotten. Two processes at once may go over that by what each of them brought.
    """
    if not questions:
        return set()
    now = questions[0].asked_at
    unit.connection.execute(delete(ocsp_questions).where(ocsp_questions.c.asked_at < now - kept))
    ids = [one.id for one in questions]
    known = set(unit.connection.execute(select(ocsp_questions.c.id).where(ocsp_questions.c.id.in_(ids))).scalars())
    counted = select(func.count(), func.count(ocsp_questions.c.response))
    there, answered = unit.connection.execute(counted).one()
    room = max(0, min(most - there, waiting - (there - answered)))
    values = [
        {"id": one.id, "request": one.request, "asked_at": one.asked_at, "response": None}
        for one in questions
        if one.id not in known
    ]
    rows.insert_new(unit, ocsp_questions, values[:room], ocsp_questions.c.id)
    return known | {str(one["id"]) for one in values[:room]}


def unanswered(unit: Unit, since: datetime, limit: int) -> list[OcspQuestion]:
    """Return up to ``limit`` questions that were asked since then and wait for their answer, longest first."""
    statement = select(ocsp_questions).where(ocsp_questions.c.response.is_(None), ocsp_questions.c.asked_at >= since)
    statement = statement.order_by(ocsp_questions.c.asked_at, ocsp_questions.c.id).limit(limit)
    return [OcspQuestion(row.id, row.request, row.asked_at) for row in unit.connection.execute(statement)]


def answer(unit: Unit, answers: Mapping[str, bytes]) -> None:
    """Store the responses to questions, and ring ``ocsp:<id>`` for each."""
    for question, der in sorted(answers.items()):
        statement = update(ocsp_questions).where(ocsp_questions.c.id == question).values(response=der)
        unit.connection.execute(statement)
        unit.after_commit(f"ocsp:{question}")


def answered(unit: Unit, question: str) -> bytes | None:
    """Return the response to a question, None while there is none."""
    statement = select(ocsp_questions.c.response).where(ocsp_questions.c.id == question)
    found: bytes | None = unit.connection.execute(statement).scalar_one_or_none()
    return found


_STANDING = (
    certificates.c.serial,
    certificates.c.issuer,
    certificates.c.state,
    certificates.c.revoked_at,
    certificates.c.revocation_reason,
    certificates.c.not_after,
)


def _standing(row: RowMapping) -> Standing:
    return Standing(
        serial=int(row["serial"], 16),
        issuer=row["issuer"],
        state=CertificateState(row["state"]),
        revoked_at=row["revoked_at"],
        reason=row["revocation_reason"] or 0,
        not_after=row["not_after"],
    )


def _response(row: RowMapping) -> OcspResponse:
    return OcspResponse(
        serial=int(row["serial"], 16),
        algorithm=row["algorithm"],
        issuer=row["issuer"],
        der=row["der"],
        status=row["status"],
        this_update=row["this_update"],
        next_update=row["next_update"],
        refresh_at=row["refresh_at"],
    )
