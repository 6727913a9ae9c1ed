"""Posts to URLs that tenants named, without being led into the operator's network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import httpx2

from pki.core.errors import ForbiddenError, UnavailableError

_TIMEOUT = 10.0
_KEPT = 64
"""Connections that are kept, and for how many seconds of silence."""
_KEPT_SECONDS = 20.0
_BODY, _BODY_SECONDS = 16 * 1024, 0.5
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Inside of 2000::/3, yet they carry an IPv4 address or lead nowhere: Python's is_global says True for some of them.
_V6_REFUSED = (
    ipaddress.IPv6Network("2001::/23"),  # IETF protocol assignments, with Teredo (RFC 4380) and ORCHID (RFC 7343)
    ipaddress.IPv6Network("2001:db8::/32"),  # documentation (RFC 3849)
    ipaddress.IPv6Network("2002::/16"),  # 6to4 (RFC 3056)
    ipaddress.IPv6Network("3fff::/20"),  # documentation (RFC 9637)
)
_V4_REFUSED = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # IETF protocol assignments; a cloud's metadata service lives in it
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays (RFC 7526)
)
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 §6.1: an IPv4 address in the interface identifier


class WebhookNotifier:
    """A Notifier (see ports): an address look-up for each post, a connection pinned to it, no redirects, no proxy.

    Connections are kept and used again, each for the host and the address that it was made for. Threads share it.
    """

    def __init__(self, *, allow_private: bool = False, timeout: float = _TIMEOUT) -> None:
        """``allow_private`` lets it reach private addresses and plain HTTP: for development. ``timeout`` in seconds."""
        self._allow_private = allow_private
        self._timeout = timeout
        self._wires = _Wires(timeout)
        self._end = weakref.finalize(self, self._wires.close)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send once and return the HTTP status. Raises ForbiddenError, UnavailableError."""
        target = _parse(url, allow_plain=self._allow_private)
        port = target.port or (443 if target.scheme == "https" else 80)
        address = _resolve(target.host, port, allow_private=self._allow_private)
        try:
            return self._wires.post(target, str(address), port, headers, body)
        except TimeoutError:
            raise UnavailableError("The webhook did not answer in time", on=target.host) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            # The text may hold internals of the network, so its type is enough.
            raise UnavailableError(
                "The webhook cannot be reached", on=f"{target.host}, {type(error).__name__}"
            ) from None

    def close(self) -> None:
        """Close the connections; nothing is posted afterwards."""
        self._end()


_Place = tuple[str, str, str, int]
"""Scheme, host, address, port: only who asks for all of them the same gets a connection that was kept."""
_Slot = tuple[str, str, str, int, int]
"""A place, and which of its connections."""


@dataclass
class _Wire:
    pool: httpx2.AsyncHTTPTransport
    busy: bool = False
    used: bool = False


class _Wires:
    """Connections to receivers, in an event loop of their own: a deadline bounds a whole post, drip by drip."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._tls = httpx2.create_ssl_context(trust_env=False)
        self._kept: OrderedDict[_Slot, _Wire] = OrderedDict()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def post(self, target: httpx2.URL, address: str, port: int, headers: Mapping[str, str], body: bytes) -> int:
        # The name goes into Host and SNI, the connection to the address that was checked: a second look-up could lie.
        timeout = httpx2.Timeout(self._timeout)
        request = httpx2.Request(
            "POST",
            _pinned(target, address),
            headers={**headers, "host": target.netloc.decode("ascii"), "user-agent": "keymailbox"},
            content=body,
            extensions={"sni_hostname": target.host, "timeout": timeout.as_dict()},
        )
        sending = self._send((target.scheme, target.host, address, port), request)
        return asyncio.run_coroutine_threadsafe(sending, self._running()).result()

    def close(self) -> None:
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None or thread is threading.current_thread():
            return
        asyncio.run_coroutine_threadsafe(self._let_go(), loop).result(self._timeout)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="webhooks", daemon=True)
                self._thread.start()
            return self._loop

    async def _send(self, place: _Place, request: httpx2.Request) -> int:
        wire, surplus = self._wire(place)
        try:
            # The timeouts of the request are for single reads; this one bounds the whole.
            async with asyncio.timeout(self._timeout):
                try:
                    status = await _exchange(wire.pool, request)
                except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                    if not wire.used:
                        raise
                    # A connection that was kept may have ended meanwhile: once more, on one of its own.
                    async with self._pool() as once:
                        status = await _exchange(once, request)
        finally:
            wire.busy = False
            for one in surplus:
                with suppress(Exception):
                    await one.pool.aclose()
        wire.used = True
        return status

    def _wire(self, place: _Place) -> tuple[_Wire, Sequence[_Wire]]:
        """Take a connection into use; also return those to close, which nobody can ask for any more."""
        # A pool for each connection: one for several asks all of them, at each post, whether they are alive.
        slot = next(slot for slot in ((*place, number) for number in count()) if not self._busy(slot))
        wire = self._kept.pop(slot, None) or _Wire(self._pool())
        wire.busy = True
        # As the last that was used.
        self._kept[slot] = wire
        idle = [old for old, one in self._kept.items() if not one.busy]
        return wire, [self._kept.pop(old) for old in idle[: max(len(self._kept) - _KEPT, 0)]]

    def _busy(self, slot: _Slot) -> bool:
        return slot in self._kept and self._kept[slot].busy

    def _pool(self) -> httpx2.AsyncHTTPTransport:
        limits = httpx2.Limits(max_keepalive_connections=1, keepalive_expiry=_KEPT_SECONDS)
        return httpx2.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits)

    async def _let_go(self) -> None:
        while self._kept:
            _, wire = self._kept.popitem()
            await wire.pool.aclose()


async def _exchange(pool: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> int:
    response = await pool.handle_async_request(request)
    try:
        # The answer's body is nobody's business; the end of a short one frees the connection for the next post.
        size = 0
        with suppress(TimeoutError, httpx2.HTTPError):
            async with asyncio.timeout(_BODY_SECONDS):
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > _BODY:
                        break
    finally:
        await response.aclose()
    return response.status_code


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is on the public internet and carries no other one inside."""
    if isinstance(address, ipaddress.IPv4Address):
        refused = address.is_multicast or address.is_reserved or address.is_unspecified
        return address.is_global and not refused and not any(address in network for network in _V4_REFUSED)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST or not address.is_global:
        return False
    embedded = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return not embedded and not any(address in network for network in _V6_REFUSED)


@lru_cache(_KEPT)
def _parse(url: str, *, allow_plain: bool) -> httpx2.URL:
    try:
        target = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise ForbiddenError("The webhook's URL cannot be read") from None
    allowed = ("https", "http") if allow_plain else ("https",)
    if target.scheme not in allowed or not target.host or target.userinfo:
        raise ForbiddenError("A webhook's URL is https:// with a host and without a password", on=target.host)
    return target


@lru_cache(_KEPT)
def _pinned(target: httpx2.URL, address: str) -> httpx2.URL:
    return target.copy_with(host=address)


def _resolve(host: str, port: int, *, allow_private: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        raise UnavailableError("The webhook's host has no address", on=host) from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    # One bad address spoils the name: which one is used must not be left to luck.
    if not addresses or not (allow_private or all(is_public(address) for address in addresses)):
        raise ForbiddenError("The webhook's host is not on the public internet", on=host)
    return addresses[0]
