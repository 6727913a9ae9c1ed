"""Who listens on the exchange gets the CloudEvents of its types, and a broker that is away is noticed."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kombu
import pytest

from pki.core.errors import UnavailableError
from pki.server.adapters.broker import ExchangePublisher, examine
from tests.kit import services
from tests.kit.processes import proxy_to, through


@pytest.fixture(scope="module", params=["rabbitmq", "redis", "memory"])
def broker_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of each kind of broker."""
    if request.param == "memory":
        yield "memory://"
        return
    with services.Services(tmp_path_factory.mktemp("broker")) as found:
        yield getattr(found, request.param).url


@pytest.fixture
def prefix(broker_url: str) -> Iterator[str]:
    """A prefix of this test's own, whose exchange is removed."""
    name = f"kmb-test-{secrets.token_hex(4)}"
    yield name
    with kombu.Connection(broker_url) as connection:
        kombu.Exchange(f"{name}.events", type="topic")(connection.channel()).delete()


def event(kind: str, number: int = 1) -> dict[str, object]:
    """Return a CloudEvent."""
    return {
        "specversion": "1.0",
        "id": secrets.token_hex(16),
        "source": "https://mail.example",
        "type": kind,
        "subject": "größe",
        "time": "2030-05-17T12:30:15.000250Z",
        "datacontenttype": "application/json",
        "sequence": str(number),
        "data": {"number": number},
    }


def test_listeners_get_their_types_in_order(broker_url: str, prefix: str) -> None:
    """A topic pattern chooses; a message is structured JSON, durable, with the event's id as its own."""
    publisher = ExchangePublisher(broker_url, prefix)
    # Before anybody listens nothing is kept, and nothing breaks.
    publisher.publish([event("keymailbox.deposit.available")])
    exchange = kombu.Exchange(f"{prefix}.events", type="topic", durable=True)
    queue = kombu.Queue(f"{prefix}-ear", exchange, routing_key="keymailbox.deposit.*", auto_delete=True)
    heard: list[kombu.Message] = []
    with kombu.Connection(broker_url) as connection:
        with kombu.Consumer(connection, [queue], on_message=heard.append, no_ack=True):
            sent = [event("keymailbox.deposit.available", number) for number in range(1, 51)]
            publisher.publish([*sent, event("keymailbox.crl.published")])
            while len(heard) < len(sent):
                connection.drain_events(timeout=10)
        queue(connection.channel()).delete()
    assert [json.loads(_text(message)) for message in heard] == sent
    assert {message.content_type for message in heard} == {"application/cloudevents+json"}
    assert [message.properties.get("message_id") for message in heard] == [one["id"] for one in sent]
    publisher.close()


def _text(message: kombu.Message) -> str | bytes:
    body: str | bytes = message.body
    return body


def test_a_closed_publisher_opens_again(broker_url: str, prefix: str) -> None:
    """After a close, and after nothing was published, the next event connects anew."""
    publisher = ExchangePublisher(broker_url, prefix)
    publisher.close()
    publisher.publish([])
    publisher.publish([event("keymailbox.crl.published")])
    publisher.close()
    publisher.publish([event("keymailbox.crl.published")])
    publisher.close()


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_is_away_is_unavailable(scheme: str, tmp_path: Path) -> None:
    """The error says so without address or password; when the broker is back, the same publisher works."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    publisher = ExchangePublisher(f"{scheme}://user:pa55@127.0.0.1:{port}//", "kmb-test")
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            publisher.publish([event("keymailbox.crl.published")])
        assert "pa55" not in str(caught.value)
        assert caught.value.__cause__ is None


@pytest.mark.parametrize("broker_url", ["rabbitmq", "redis"], indirect=True)
def test_a_broker_that_says_nothing_is_unavailable(broker_url: str, prefix: str) -> None:
    """A sequencer that waited for it without an end would not stop when it is told to."""
    with ThreadPoolExecutor(1) as pool, proxy_to(broker_url) as proxy:
        publisher = ExchangePublisher(through(broker_url, proxy.port), prefix)
        publisher.publish([event("keymailbox.crl.published")])
        proxy.hold()
        with pytest.raises(UnavailableError):
            pool.submit(publisher.publish, [event("keymailbox.crl.published")]).result(60)
        # Nor would `kmb-server doctor` end.
        with pytest.raises(UnavailableError):
            pool.submit(examine, through(broker_url, proxy.port), prefix).result(60)
        proxy.restore()
        publisher.publish([event("keymailbox.crl.published")])
        publisher.close()
