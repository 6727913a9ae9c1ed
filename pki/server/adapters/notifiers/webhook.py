"""Posts to URLs that tenants named, without being led into the operator's network."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping

import httpx2

from pki.core.errors import ForbiddenError, UnavailableError

_TIMEOUT = 10.0
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
    """A Notifier (see ports): one address look-up, a pinned connection to it, no redirects, no proxy, one deadline."""

    def __init__(self, *, allow_private: bool = False, timeout: float = _TIMEOUT) -> None:
        """``allow_private`` lets it reach private addresses and plain HTTP: for development. ``timeout`` in seconds."""
        self._allow_private = allow_private
        self._timeout = timeout
        self._tls = httpx2.create_ssl_context(trust_env=False)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Send once and return the HTTP status. Raises ForbiddenError, UnavailableError."""
        target = _parse(url, allow_plain=self._allow_private)
        port = target.port or (443 if target.scheme == "https" else 80)
        address = _resolve(target.host, port, allow_private=self._allow_private)
        try:
            return asyncio.run(self._send(target, str(address), headers, body))
        except TimeoutError:
            raise UnavailableError("The webhook did not answer in time", on=target.host) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            # The text may hold internals of the network, so its type is enough.
            raise UnavailableError(
                "The webhook cannot be reached", on=f"{target.host}, {type(error).__name__}"
            ) from None

    async def _send(self, target: httpx2.URL, address: str, headers: Mapping[str, str], body: bytes) -> int:
        # The name goes into Host and SNI, the connection to the address that was checked: a second look-up could lie.
        pinned = target.copy_with(host=address)
        named = {**headers, "host": target.netloc.decode("ascii"), "user-agent": "keymailbox"}
        timeout = httpx2.Timeout(self._timeout)
        # The timeouts of the client are for single reads; the outer one bounds the whole, drip by drip.
        async with asyncio.timeout(self._timeout):
            client = httpx2.AsyncClient(verify=self._tls, trust_env=False, follow_redirects=False, timeout=timeout)
            async with client:
                request = client.build_request(
                    "POST", pinned, headers=named, content=body, extensions={"sni_hostname": target.host}
                )
                # The answer's body is nobody's business: the status is all that is read.
                response = await client.send(request, stream=True)
                try:
                    return response.status_code
                finally:
                    await response.aclose()


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether an address is on the public internet and carries no other one inside."""
    if isinstance(address, ipaddress.IPv4Address):
        refused = address.is_multicast or address.is_reserved or address.is_unspecified
        return address.is_global and not refused and not any(address in network for network in _V4_REFUSED)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST or not address.is_global:
        return False
    embedded = (int(address) >> 32) & 0xFFFFFFFF in _ISATAP
    return not embedded and not any(address in network for network in _V6_REFUSED)


def _parse(url: str, *, allow_plain: bool) -> httpx2.URL:
    try:
        target = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError, UnicodeError):
        raise ForbiddenError("The webhook's URL cannot be read") from None
    allowed = ("https", "http") if allow_plain else ("https",)
    if target.scheme not in allowed or not target.host or target.userinfo:
        raise ForbiddenError("A webhook's URL is https:// with a host and without a password", on=target.host)
    return target


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
