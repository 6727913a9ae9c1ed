"""Is it alive, is it ready, which version, and the figures: unsigned, for machines of the operator."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import UnavailableError
from pki.server.api import answers, calls, metrics, problems
from pki.server.services.deps import Deps

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers", responses=answers.tells(answers.Status))
async def live() -> Response:
    """Say so, and nothing about anything else: a restart would not bring a database back."""
    return calls.answer({"status": "ok"})


@router.get("/readyz", summary="Requests can be served", responses=answers.tells(answers.Status))
async def ready(request: Request) -> Response:
    """Answer 503 while the database is away or its schema is not this release's."""
    try:
        await calls.run(_ready, calls.deps_of(request))
    except UnavailableError as error:
        return problems.respond(error)
    return calls.answer({"status": "ok"})


@router.get("/version", summary="What this is", responses=answers.tells(answers.Version))
async def about() -> Response:
    """Name the software and its versions."""
    return calls.answer({"name": "keymailbox", "version": release(), "api": "v1", "python": platform.python_version()})


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses=answers.tells_binary("text/plain", "The figures."),
)
async def figures(request: Request) -> Response:
    """Return counters of this process and the state of the queues."""
    state = request.app.state
    text = await calls.run(state.metrics.scrape, calls.deps_of(request), state.waiting.count)
    return Response(text, headers={"Cache-Control": "no-store", "Content-Type": metrics.CONTENT_TYPE})


def release() -> str:
    """Return the installed version of keymailbox."""
    try:
        return version("keymailbox")
    except PackageNotFoundError:
        return "0+source"


def _ready(deps: Deps) -> None:
    if deps.store.schema_version() is None:
        raise UnavailableError("The database has no schema yet", hint="kmb-server migrate")
