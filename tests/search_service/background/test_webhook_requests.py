"""What one attempt to deliver an event sends, and how it ends with receivers that fail, redirect or are slow."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook as StandardWebhook
from standardwebhooks import WebhookVerificationError

from search_service.background.webhooks import body_of, open_client, send, signed_headers
from search_service.serializers import event_object
from search_service.store.event_pages import Direction, Event
from search_service.store.webhooks import ClaimedDelivery
from tests.search_service.background.receiver import DRIP, HANG, REDIRECT, genuine, receiving
from tests.waiting import DEADLINE, wait_for

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
EVENT = Event(7, "staff", AT, 3, "ana", "Ana é", "door", Direction.IN, "match", 0.61234567, 0.42, "request-1", (), None)
SECRET = "1f" * 32


def delivery(url: str = "http://a") -> ClaimedDelivery:
    return ClaimedDelivery(5, "wh_1", url, SECRET, 1, EVENT)


def post(url: str, seconds: float = DEADLINE) -> str | None:
    """Attempts a delivery and returns the problem. Does not wait for threads that look up names."""

    async def attempt() -> str | None:
        async with open_client() as client:
            return await send(client, delivery(url), seconds)

    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(attempt())
    finally:
        loop.close()


def test_the_signature_is_hmac_sha256_of_timestamp_and_body() -> None:
    body = body_of(delivery())
    headers = signed_headers(delivery(), body, 1_790_000_000)
    mac = hmac.new(SECRET.encode(), b"1790000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Whosthere-Signature"] == f"v1={mac}"
    assert headers["X-Whosthere-Timestamp"] == "1790000000"
    assert headers["X-Whosthere-Delivery"] == "5"


def test_the_documented_check_accepts_only_genuine_deliveries() -> None:
    check, now, body = genuine(), int(time.time()), body_of(delivery())
    headers = signed_headers(delivery(), body, now)
    assert check(SECRET, headers, body)
    assert not check("t" * 64, headers, body)
    assert not check(SECRET, headers, body + b" ")
    assert not check(SECRET, {**headers, "X-Whosthere-Timestamp": str(now + 1)}, body)
    assert not check(SECRET, signed_headers(delivery(), body, now - 3600), body)


@pytest.mark.parametrize("key", [SECRET.encode(), "whsec_" + base64.b64encode(SECRET.encode()).decode()])
def test_standard_webhooks_libraries_accept_only_genuine_deliveries(key: bytes | str) -> None:
    """The key is the bytes of the secret; libraries that take text want it in base64."""
    verifier, now, body = StandardWebhook(key), int(time.time()), body_of(delivery())
    headers = dict(signed_headers(delivery(), body, now))
    assert verifier.verify(body, headers) == {"webhook": "wh_1", "event": event_object(EVENT)}
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("5", str(now))
    forged: list[tuple[bytes, Mapping[str, str]]] = [
        (body + b" ", headers),
        (body, headers | {"webhook-id": "6"}),
        (body, headers | {"webhook-timestamp": str(now + 1)}),
        (body, signed_headers(delivery(), body, now - 3600)),
    ]
    for content, changed in forged:
        with pytest.raises(WebhookVerificationError):
            verifier.verify(content, dict(changed))


def test_the_event_is_posted_as_json() -> None:
    with receiving() as receiver:
        assert post(receiver.url) is None
        (received,) = receiver.received
    assert received.path == "/doors?of=staff"
    assert received.headers["Content-Type"] == "application/json"
    assert received.headers["User-Agent"] == "whosthere"
    assert received.headers["X-Whosthere-Delivery"] == received.headers["webhook-id"] == "5"
    assert genuine()(SECRET, received.headers, received.body)
    StandardWebhook(SECRET.encode()).verify(received.body, dict(received.headers))
    assert received.told == {"webhook": "wh_1", "event": event_object(EVENT)}
    assert received.told["event"]["name"] == "Ana é"
    assert received.told["event"]["score"] == 0.6123


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_a_success(status: int) -> None:
    with receiving(status) as receiver:
        assert post(receiver.url) is None


@pytest.mark.parametrize("status", [301, 400, 410, 500, 503])
def test_any_other_status_is_a_failure(status: int) -> None:
    with receiving(status) as receiver:
        assert post(receiver.url) == f"answered {status}"


def test_redirects_are_not_followed() -> None:
    with receiving(REDIRECT) as receiver:
        assert post(receiver.url) == "answered 307"
        assert [one.path for one in receiver.received] == ["/doors?of=staff"]


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with receiving() as receiver:
        assert post(receiver.url) is None


@pytest.mark.parametrize("how", [HANG, DRIP])
def test_an_answer_that_takes_too_long_is_given_up(how: int) -> None:
    with receiving(how) as receiver:
        assert post(receiver.url, 0.3) == "no answer within 0.3 s"


def test_a_handshake_that_takes_too_long_is_given_up() -> None:
    """A TLS record arrives byte by byte, so that a timeout between bytes would never pass."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                for byte in itertools.chain(b"\x16\x03\x03\x3f\xff", itertools.repeat(0)):
                    connection.sendall(bytes([byte]))
                    if over.wait(0.05):
                        break

        receiver = threading.Thread(target=trickle)
        receiver.start()
        assert post(f"https://127.0.0.1:{listening.getsockname()[1]}/", 0.3) == "no answer within 0.3 s"
        over.set()
        receiver.join()


def test_a_name_lookup_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name server does not answer until the test is over."""
    over, look_up = threading.Event(), socket.getaddrinfo

    def silent(*_: Any, **__: Any) -> Any:
        over.wait(DEADLINE)
        return look_up("127.0.0.1", 9)

    before = threading.active_count()
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert post("http://slow.invalid/", 0.1) == "no answer within 0.1 s"
    over.set()
    wait_for(lambda: threading.active_count() <= before, "no thread is left")


def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on the first address of the name, as often with IPv6."""
    with receiving() as receiver:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
        found = [(*kind, (address, receiver.port)) for address in ("127.0.0.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        assert post(f"http://localhost:{receiver.port}/doors") is None
        (received,) = receiver.received
        assert received.headers["Host"] == f"localhost:{receiver.port}"


def not_reached(url: str) -> bool:
    return (post(url) or "").startswith("not reached: ")


def test_a_port_without_listener_is_not_reached() -> None:
    with receiving() as receiver:
        url = receiver.url
    assert not_reached(url)


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/", f"http://{'a' * 70}.invalid/", "http://a..b/"])
def test_an_unknown_or_invalid_host_is_not_reached(url: str) -> None:
    assert not_reached(url)


def test_https_is_not_sent_in_plain_text() -> None:
    with receiving() as receiver:  # without TLS
        assert not_reached(receiver.url.replace("http:", "https:"))
        assert receiver.received == []
