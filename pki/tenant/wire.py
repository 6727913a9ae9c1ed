"""Requests to one server over HTTP: signed, problems turned into the error family, safe things tried again."""

from __future__ import annotations

import itertools
import json
import random
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

import httpx2

from pki.core import httpsig
from pki.core.errors import KeymailboxError, MalformedError, TooLargeError, UnavailableError
from pki.tenant import messages, streams
from pki.tenant.messages import Json
from pki.tenant.ports import Clock
from pki.tenant.problems import PASSING, TOO_MANY, error_of
from pki.tenant.streams import MEDIA_TYPE, Message

ATTEMPTS = 5
_MAX_ANSWER = 48 * 1024 * 1024
_LOOK_SECONDS = 1.0
"""How long a pause goes on when one is to stop."""
_LONGEST_PAUSE = 30.0
"""Seconds between two attempts, whatever the server asks for."""
_SILENCE = 25.0
"""Seconds without a byte, heartbeats included, after which a stream is dead."""


@dataclass(frozen=True)
class AccessKey:
    """Signs requests: the id that the server knows the key by, and the holder's signature over the base."""

    key_id: str
    sign: Callable[[bytes], bytes]


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Json:
        try:
            return messages.mapping(json.loads(self.body))
        except (ValueError, RecursionError):
            raise MalformedError("The server's answer is not JSON", hint="kmb doctor") from None


class Wire:
    """One server, one signer."""

    def __init__(
        self,
        server: str,
        access: AccessKey | None,
        clock: Clock,
        *,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Talk to ``server`` (no slash at its end); without ``access`` only unsigned requests work."""
        self._server = server
        self._access = access
        self._clock = clock
        self._sleep = sleep
        self.alive: Callable[[], None] = lambda: None
        """Called at each attempt: whoever watches us knows that we are not stuck."""
        self.stopping: Callable[[], bool] | None = None
        """Asked after each attempt that failed, and in pauses: who is to stop does not wait for the next one."""
        # A proxy from the environment is for the world outside, not for this machine.
        parts = urlsplit(server)
        local = parts.hostname in ("127.0.0.1", "::1", "localhost")
        # Reading all authorities of the machine takes 20 ms; without TLS they vouch for nothing, and nobody is trusted.
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if parts.scheme == "http" else True
        self._http = httpx2.Client(
            timeout=httpx2.Timeout(40, connect=10),
            follow_redirects=False,
            trust_env=not local,
            transport=transport,
            verify=verify,
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def ask(self, method: str, path: str, told: Json | None = None, *, idempotent: bool = True) -> Json:
        """Send JSON or nothing, and return the JSON or nothing of the answer; for what has no method of its own."""
        body = b"" if told is None else json.dumps(told).encode()
        kind = "application/json" if body else ""
        answer = self._call(method, path, body=body, content_type=kind, idempotent=idempotent)
        return answer.json() if answer.body else {}

    def _get(self, path: str, query: Mapping[str, str] | None = None, *, signed: bool = True) -> _Answer:
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, signed=signed)

    def _post_json(self, path: str, body: Mapping[str, object], *, idempotent: bool = True) -> _Answer:
        content = json.dumps(body).encode()
        return self._call("POST", path, body=content, content_type="application/json", idempotent=idempotent)

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        content_type: str = "",
        headers: Mapping[str, str] | None = None,
        signed: bool = True,
        idempotent: bool = True,
        passes: Sequence[int] = (),
        attempts: int = ATTEMPTS,
    ) -> _Answer:
        url = self._server + path
        plain = dict(headers or {}) | ({"Content-Type": content_type} if content_type else {})
        for attempt in range(1, attempts + 1):
            self.alive()
            # Each attempt is a request of its own: the server takes a nonce once only.
            full = plain | (self._signature(method, url, plain, body) if signed else {})
            try:
                answer = self._exchange(method, url, full, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if attempt == attempts:
                    raise self._away(type(error).__name__) from None
                delay = _back_off(attempt)
            except httpx2.TransportError as error:
                if attempt == attempts or not idempotent:
                    raise self._away(type(error).__name__) from None
                delay = _back_off(attempt)
            else:
                if answer.status < 300 or answer.status in passes:
                    return answer
                if attempt == attempts or not _repeats(answer, idempotent):
                    raise _problem(answer, f"{method} {urlsplit(url).path}")
                delay = max(_back_off(attempt), min(_retry_after(answer), _LONGEST_PAUSE))
            self._pause(delay)
        raise self._away("no answer")

    def _pause(self, seconds: float) -> None:
        if self.stopping is None:
            self._sleep(seconds)
            return
        # A signal is remembered, and does not break off a sleep.
        while seconds > 0 and not self.stopping():
            self._sleep(min(seconds, _LOOK_SECONDS))
            seconds -= _LOOK_SECONDS
        if self.stopping():
            raise self._away("this process is to stop")

    def _exchange(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> _Answer:
        with self._http.stream(method, url, headers=dict(headers), content=body or None) as response:
            parts: list[bytes] = []
            size = 0
            for part in response.iter_bytes():
                size += len(part)
                if size > _MAX_ANSWER:
                    raise TooLargeError("The server's answer is larger than the limit", on=urlsplit(url).path)
                parts.append(part)
            named = {name.lower(): value for name, value in response.headers.items()}
            return _Answer(response.status_code, named, b"".join(parts))

    def _signature(self, method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        if self._access is None:
            raise UnavailableError("This needs an access key", on=urlsplit(url).path, hint="kmb enroll")
        return httpsig.sign_request(
            method,
            url,
            headers,
            body,
            key_id=self._access.key_id,
            sign=self._access.sign,
            created=self._clock(),
            nonce=secrets.token_hex(16),
        )

    def _away(self, why: str) -> UnavailableError:
        return UnavailableError("The server cannot be reached", on=f"{self._server}: {why}", hint="kmb doctor")

    @contextmanager
    def stream(self, after: str = "") -> Iterator[Iterator[Message]]:
        """Open the stream of events past an id, or from now on; it is not tried again by itself.

        Raises UnavailableError when nothing is heard any more, and for what is no stream.
        """
        url = f"{self._server}/v1/events/stream"
        fields = {"Last-Event-ID": after} if after else {}
        fields |= self._signature("GET", url, fields, b"") | {"Accept": MEDIA_TYPE}
        try:
            with self._http.stream(
                "GET", url, headers=fields, timeout=httpx2.Timeout(_SILENCE, connect=10)
            ) as response:
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                if response.status_code != 200 or kind != MEDIA_TYPE:
                    named = {name.lower(): value for name, value in response.headers.items()}
                    body = b"".join(itertools.islice(response.iter_bytes(65536), 4))
                    error = _problem(_Answer(response.status_code, named, body), "GET /v1/events/stream")
                    raise error if response.status_code != 200 else KeymailboxError("The server tells no stream")
                yield streams.messages(response.iter_bytes())
        except httpx2.ReadTimeout:
            # Not even its head came: something in between waits for the end of what has none.
            raise KeymailboxError("No stream gets through to us", on=urlsplit(url).path) from None
        except httpx2.TransportError as error:
            raise self._away(type(error).__name__) from None


def _problem(answer: _Answer, on: str) -> KeymailboxError:
    try:
        error = error_of(answer.json(), answer.status, on)
    except MalformedError:
        error = error_of({}, answer.status, on)
    if answer.status in (TOO_MANY, *PASSING):
        error.retry_after = int(_retry_after(answer)) or None
    return error


def _back_off(attempt: int) -> float:
    return min(0.2 * 2.0**attempt, 5.0) * (0.5 + random.random() / 2)  # noqa: S311  jitter, not a secret


def _repeats(answer: _Answer, idempotent: bool) -> bool:
    if answer.status == TOO_MANY:
        # Nothing was done. A quota that frees up in an hour is for who called to wait for.
        return _retry_after(answer) <= _LONGEST_PAUSE
    return answer.status in PASSING and idempotent


def _retry_after(answer: _Answer) -> float:
    told = answer.headers.get("retry-after", "")
    return float(told) if told.isascii() and told.isdigit() and len(told) < 10 else 0.0
