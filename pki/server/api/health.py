"""Is it alive, is it ready, which version: unsigned, for machines of the operator; the figures have another port."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from pki.core.errors import NotFoundError, UnavailableError
from pki.server import metrics
from pki.server.api import answers, calls, problems
from pki.server.services.deps import Deps
from pki.server.services.metrics import Figures, scrape

router = APIRouter(tags=["health"])


@router.get("/livez", summary="The process answers", responses=answers.tells(answers.Status))
async def live() -> Response:
    """Say so, and nothing about anything else: a restart would not bring a database back."""
    return calls.answer({"status": "ok"})


@router.get("/readyz", summary="Requests can be served", responses=answers.tells(answers.Status))
async def ready(request: Request) -> Response:
    """Answer 503 while the database is away or its schema is not this release's, and when the server is to stop."""
    try:
        await calls.run(check, calls.deps_of(request), draining=request.app.state.draining)
    except UnavailableError as error:
        return problems.respond(error)
    return calls.answer({"status": "ok"})


@router.get("/version", summary="What this is", responses=answers.tells(answers.Version))
async def about() -> Response:
    """Name the software and its versions."""
    return calls.answer({"name": "keymailbox", "version": release(), "api": "v1", "python": platform.python_version()})


@router.get(
    "/metrics",
    summary="Figures for Prometheus, of a development server",
    response_class=Response,
    responses=answers.tells_binary("text/plain", "The figures."),
)
async def figures(request: Request) -> Response:
    """Return what was counted and the state of the queues; elsewhere they are told on KMB_METRICS_PORT alone."""
    deps = calls.deps_of(request)
    if not deps.settings.development:
        raise NotFoundError("There is no such path")
    text = await calls.run(scrape, metrics.REGISTRY, Figures(deps))
    return Response(text, headers={"Cache-Control": "no-store", "Content-Type": metrics.CONTENT_TYPE})


def release() -> str:
    """Return the installed version of keymailbox."""
    try:
        return version("keymailbox")
    except PackageNotFoundError:
        return "0+source"


def check(deps: Deps, *, draining: bool) -> None:
    """Raise UnavailableError for what stands against sending requests here."""
    if draining:
        raise UnavailableError("The server is about to stop", hint="repeat the request: another takes its place")
    deps.store.demand_schema()
