"""All routes of the API, and how its errors look."""

from __future__ import annotations

from fastapi import Depends, FastAPI

from pki.server.api import (
    authority,
    calls,
    certificates,
    cmp,
    deliveries,
    deposits,
    directory,
    enrolments,
    est,
    events,
    health,
    mailboxes,
    ocsp,
    problems,
    receipts,
    requests,
    senders,
    sent,
    webhooks,
)

_BUSY = ("/v1/deposits", "/v1/mailboxes", "/v1/receipts", "/v1/events")


def build() -> FastAPI:
    """Return the application without anything behind it: enough to describe it."""
    app = FastAPI(
        title="keymailbox",
        version="1",
        summary="A certificate directory and wrapped-key mailbox between tenants that need not trust it",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # It would believe what strangers send as traceparent, and tell a collector URLs and the texts of exceptions.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for noun in (
        health,
        authority,
        ocsp,
        enrolments,
        est,
        requests,
        directory,
        certificates,
        deposits,
        receipts,
        mailboxes,
        senders,
        sent,
        webhooks,
        deliveries,
        events,
        cmp,
    ):
        # Anybody may call these, and nobody keeps others from it.
        if noun in (authority, ocsp, enrolments, est, cmp):
            app.include_router(noun.router, dependencies=[Depends(calls.stranger)])
        else:
            # What would be included is looked through twice for each request.
            app.router.routes.extend(noun.router.routes)
    problems.install(app)
    return app


def busy_first(app: FastAPI) -> None:
    """Put what is asked for all the time where it is found first; the description is made in the order of `build`."""
    app.router.routes.sort(key=lambda route: not getattr(route, "path", "").startswith(_BUSY))
