"""All routes of the API, and how its errors look."""

from __future__ import annotations

from fastapi import FastAPI

from pki.server.api import (
    authority,
    certificates,
    deposits,
    directory,
    enrolments,
    events,
    health,
    mailboxes,
    problems,
    receipts,
    requests,
    sent,
    webhooks,
)


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
    )
    for noun in (
        health,
        authority,
        enrolments,
        requests,
        directory,
        certificates,
        deposits,
        receipts,
        mailboxes,
        sent,
        webhooks,
        events,
    ):
        app.include_router(noun.router)
    problems.install(app)
    return app
