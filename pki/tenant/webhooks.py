"""Our webhooks at the server: registered, listed, and told again what they have missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pki.tenant import messages
from pki.tenant.client import Client

_PATH = "/v1/webhooks"


@dataclass(frozen=True)
class HookView:
    """One of ours; the ``secret`` is told when it is registered, and never again."""

    id: str
    url: str
    types: tuple[str, ...] | None
    created_at: str
    disabled_at: str | None
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DeadView:
    """An event that a webhook was not told, and why."""

    id: str
    event: str
    type: str | None
    subject: str | None
    attempts: int
    error: str
    at: str


def add(client: Client, url: str, types: Sequence[str] = ()) -> HookView:
    """Register an address for some event types, or all; not repeated by itself, since it would be there twice."""
    told = client.ask("POST", _PATH, {"url": url, "types": list(types) or None}, idempotent=False)
    return _hook(told)


def listed(client: Client) -> list[HookView]:
    """Return ours, oldest first."""
    return [_hook(item) for item in messages.items(client.ask("GET", _PATH), "items")]


def remove(client: Client, webhook_id: str) -> None:
    """Remove one with what is under way to it."""
    client.ask("DELETE", f"{_PATH}/{webhook_id}")


def dead(client: Client, webhook_id: str) -> list[DeadView]:
    """Return all that one was not told."""
    found: list[DeadView] = []
    after = ""
    while True:
        body = client.ask("GET", f"{_PATH}/{webhook_id}/deliveries?state=dead" + (f"&after={after}" if after else ""))
        items = messages.items(body, "items")
        found += [_dead(item) for item in items]
        if not items:
            return found
        after = messages.text(body, "next")


def replay(client: Client, webhook_id: str, ids: Sequence[str] = ()) -> int:
    """Have it told again, all or some; return how many deliveries are under way again."""
    told = client.ask("POST", f"{_PATH}/{webhook_id}/replay", {"ids": list(ids) or None})
    chosen = told.get("ids")
    return len(chosen) if isinstance(chosen, list) else 0


def _hook(item: messages.Json) -> HookView:
    types, secret = item.get("types"), item.get("secret")
    return HookView(
        id=messages.text(item, "id"),
        url=messages.text(item, "url"),
        types=tuple(str(one) for one in types) if isinstance(types, list) else None,
        created_at=messages.text(item, "created_at"),
        disabled_at=None if item.get("disabled_at") is None else messages.text(item, "disabled_at"),
        secret=secret if isinstance(secret, str) else None,
    )


def _dead(item: messages.Json) -> DeadView:
    def maybe(name: str) -> str | None:
        return None if item.get(name) is None else messages.text(item, name)

    return DeadView(
        id=messages.text(item, "id"),
        event=messages.text(item, "event"),
        type=maybe("type"),
        subject=maybe("subject"),
        attempts=messages.number(item, "attempts"),
        error=str(item.get("error") or ""),
        at=messages.text(item, "at"),
    )
