"""Attack 33: somebody who has recorded a tenant's request sends it again and again, to use up the tenant's share."""

from __future__ import annotations

import secrets
from collections import Counter

from tests.kit.site import Homes, Site

pytest_plugins = ["tests.kit.api_fixtures"]

_RATE = 15
"""Requests a second, over ten seconds."""


def test_replays_use_up_nothing(homes: Homes, database_url: str) -> None:
    """More of them than the tenant's rate are each refused, as replays, and the tenant's next request is answered."""
    with Site(homes.new(), database_url, log_level="error", rate_requests=_RATE) as site:
        acme, globex = site.instance("acme/eu-west"), site.instance("globex/main")
        _, body = acme.compose(globex)
        deposit = {"Content-Type": "application/cms", "Idempotency-Key": secrets.token_hex(8)}
        deposit |= acme.signature("POST", "/v1/deposits", body, deposit)
        recorded = [
            ("GET", "/v1/events", b"", acme.signature("GET", "/v1/events")),
            ("POST", "/v1/deposits", body, deposit),
        ]
        for method, path, content, headers in recorded:
            answers = Counter(
                site.http.request(method, path, content=content, headers=headers).status_code
                for _ in range(_RATE * 10 // 2 + 1)
            )
            assert answers == {200 if method == "GET" else 202: 1, 409: _RATE * 10 // 2}
        assert acme.get("/v1/events").status_code == 200
