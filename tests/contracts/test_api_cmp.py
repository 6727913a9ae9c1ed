"""Contract of CMP over HTTP: what may be posted, what comes back, and what happens when nobody answers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from pki.core.cmp import messages
from pki.core.cmp.types import Body
from tests.kit import forge_cmp, tlv
from tests.kit.site import Homes, Site, code

pytest_plugins = ["tests.kit.api_fixtures"]

PATH = "/.well-known/cmp"
GENM = forge_cmp.message(forge_cmp.GENM, tlv.seq(tlv.seq(tlv.oid(forge_cmp.CA_CERTS))), forge_cmp.by_secret())


@pytest.fixture
def impatient(homes: Homes, database_url: str) -> Iterator[Site]:
    """A server that does not wait."""
    with Site(homes.new(), database_url, log_level="error", long_poll_max=0) as opened:
        yield opened


def post(site: Site, body: bytes, path: str = PATH, kind: str = "application/pkixcmp") -> httpx2.Response:
    """Post something."""
    return site.http.post(path, content=body, headers={"Content-Type": kind} if kind else {})


def test_a_message_is_answered_when_it_comes_again(impatient: Site) -> None:
    """Without a worker it is 503 with Retry-After; the same bytes get their answer when there is one."""
    waiting = post(impatient, GENM)
    assert code(waiting) == (503, "unavailable")
    assert waiting.headers["retry-after"]
    impatient.work()
    answer = post(impatient, GENM)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pkixcmp")
    assert answer.headers["cache-control"] == "no-cache"
    message = messages.parse(answer.content)
    assert (message.kind, message.algorithm) == (Body.ERROR, None)
    assert post(impatient, GENM).content == answer.content


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (GENM, "", (400, "bad-request")),
        (GENM, "application/octet-stream", (400, "bad-request")),
        (b"", "application/pkixcmp", (400, "malformed")),
        (b"\x30\x80\0\0", "application/pkixcmp", (400, "malformed")),
        (bytes(70_000), "application/pkixcmp", (413, "too-large")),
        (forge_cmp.further(version=1), "application/pkixcmp", (422, "outside-profile")),
        (
            forge_cmp.first(protect=forge_cmp.by_secret(rounds=1_000_000_000, honest=1)),
            "application/pkixcmp",
            (422, "outside-profile"),
        ),
    ],
    ids=["no type", "other type", "empty", "ber", "large", "version", "work"],
)
def test_what_is_no_message(impatient: Site, body: bytes, kind: str, expected: tuple[int, str]) -> None:
    """It is refused by HTTP at once: nothing is stored for it, and no worker sees it."""
    assert code(post(impatient, body, kind=kind)) == expected
    with impatient.deps.store.read() as unit:
        assert not unit.connection.exec_driver_sql("SELECT 1 FROM cmp_exchanges").all()


def test_other_paths_and_methods(impatient: Site) -> None:
    """There are no profiles, and nothing to be had without a message."""
    assert code(post(impatient, GENM, f"{PATH}/p/identity")) == (404, "not-found")
    assert impatient.http.get(PATH).status_code == 405
    assert post(impatient, GENM, f"{PATH}/").status_code == 404
