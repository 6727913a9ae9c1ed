"""The way to a server, with somebody who writes down what it has acknowledged, and what it must never say."""

from __future__ import annotations

import json

import httpx2


class Acknowledged(httpx2.BaseTransport):
    """A transport that remembers."""

    def __init__(self) -> None:
        self._inner = httpx2.HTTPTransport()
        self.deposits: set[str] = set()
        """Ids of deposits that were answered 202."""
        self.faults: list[str] = []
        """Answers that are nobody's fault but the server's: an error that is not a clean 503."""
        self.away: list[str] = []
        """The codes of clean 503s."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Pass a request on."""
        answer = self._inner.handle_request(request)
        content = answer.read()
        answer.close()
        if answer.status_code >= 500:
            clean = answer.headers.get("content-type") == "application/problem+json" and "retry-after" in answer.headers
            if answer.status_code == 503 and clean:
                self.away.append(json.loads(content)["code"])
            else:
                self.faults.append(f"{request.method} {request.url.path}: {answer.status_code} {content[:300]!r}")
        elif request.method == "POST" and request.url.path == "/v1/deposits" and answer.status_code == 202:
            self.deposits.add(json.loads(content)["id"])
        elif request.method == "POST" and request.url.path == "/v1/deposits/batch" and answer.status_code < 300:
            self.deposits |= {item["id"] for item in json.loads(content)["items"] if "id" in item}
        headers = [(name, value) for name, value in answer.headers.items() if name != "content-length"]
        return httpx2.Response(answer.status_code, headers=headers, content=content)

    def close(self) -> None:
        """Let go of the connections."""
        self._inner.close()
