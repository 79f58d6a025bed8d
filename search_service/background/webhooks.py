"""Events go to their webhooks: signed, at least once, again and again until they arrive or were tried too often."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from indexer.errors import WhosthereError
from search_service.serializers import event_object
from search_service.service_context import ServiceContext
from search_service.store.webhooks import MAX_WAIT, ClaimedDelivery, WebhookRepository

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Webhooks that are sent to at the same time; to each goes one event after the other."""

IDLE_SECONDS = 1.0
"""How often the database is asked for what other processes recorded, and for what is due again."""

FAILED_SECONDS = 10.0
"""The same while the database does not answer."""


@dataclass(frozen=True)
class Schedule:
    """How long one try may take, and when the next one follows: the wait doubles from the first to the longest."""

    timeout_seconds: float = 10.0
    """For a receiver that writes the event down and answers; what it does with it can wait."""
    lease_seconds: float = 15.0
    """How long a try is nobody else's; longer than it may take."""
    first_seconds: float = 5.0
    longest_seconds: float = MAX_WAIT.total_seconds()
    tries: int = 35
    """A day: ten waits that grow and 24 of an hour. Who repairs a receiver within it has lost nothing."""

    def waits(self, attempts: int, failures: int) -> tuple[timedelta | None, timedelta]:
        """Until an event is tried again after so many tries, None when that was the last; and until its webhook is,
        after so many failures in a row. A random quarter more or less keeps those that failed together from coming
        again together; it is the same for both, so that every event that failed no more often than its webhook is due
        when that is well again."""
        spread = random.uniform(0.75, 1.25)  # noqa: S311 (no secret)
        again = None if attempts >= self.tries else self._wait(attempts) * spread
        return again, self._wait(failures) * spread

    def _wait(self, tried: int) -> timedelta:
        return timedelta(seconds=min(self.first_seconds * 2.0 ** min(tried - 1, 32), self.longest_seconds))


class Deliverer:
    """A thread that sends what is due, beside those of other processes over the same database."""

    def __init__(self, context: ServiceContext, schedule: Schedule = Schedule()) -> None:
        self._context = context
        self._schedule = schedule
        self._tls = ssl.create_default_context()
        self._wake = threading.Event()
        self._stopping = False
        self._busy: set[str] = set()
        self._turns: dict[str, int] = {}
        """When each webhook had its last turn, counted in turns."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """An event was recorded: there may be something to send at once."""
        self._wake.set()

    def stop(self) -> None:
        """Returns when what is being sent at this moment has arrived or failed; the rest is sent after the next start,
        or by another process."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as pool:
            while not self._stopping:
                self._wake.clear()
                wait = IDLE_SECONDS
                try:
                    self._send_due(pool)
                except WhosthereError as error:
                    log.warning("webhooks wait for the database: %s", error.message)
                    wait = FAILED_SECONDS
                except Exception:
                    log.exception("webhooks are not sent")
                    wait = FAILED_SECONDS
                self._wake.wait(wait)

    def _send_due(self, pool: ThreadPoolExecutor) -> None:
        """Begins to send the first of each webhook that nothing is being sent to, AT_ONCE together. Where more wait,
        those go first whose last turn was longest ago: whoever has the longest queue would else always be first."""
        webhooks = self._context.webhooks
        with self._lock:
            busy = frozenset(self._busy)
        lease = timedelta(seconds=self._schedule.lease_seconds)
        due = sorted(webhooks.due(busy), key=lambda one: self._turns.get(one.webhook_id, 0))
        for one in due[: AT_ONCE - len(busy)]:
            self._turns[one.webhook_id] = max(self._turns.values(), default=0) + 1
            claimed = webhooks.claim(one.id, lease)
            if claimed is not None:
                with self._lock:
                    self._busy.add(claimed.webhook_id)
                pool.submit(self._deliver, webhooks, claimed)

    def _deliver(self, webhooks: WebhookRepository, claimed: ClaimedDelivery) -> None:
        try:
            problem = send(claimed, self._schedule.timeout_seconds, self._tls)
            if problem is None:
                webhooks.mark_delivered(claimed)
                return
            again, pause = self._schedule.waits(claimed.attempts, claimed.failures + 1)
            webhooks.mark_failed(claimed, problem, again, pause)
            then = f"again in {again.total_seconds():.0f} s" if again else "that was the last try"
            log.warning(
                "webhook %s: event %d, try %d: %s; %s",
                claimed.webhook_id,
                claimed.event.id,
                claimed.attempts,
                problem,
                then,
            )
        except WhosthereError as error:  # it is due again when its lease ends
            log.warning("webhook %s: %s", claimed.webhook_id, error.message)
        except Exception:
            log.exception("webhook %s: event %d", claimed.webhook_id, claimed.event.id)
        finally:
            with self._lock:
                self._busy.discard(claimed.webhook_id)
            self._wake.set()


def body_of(claimed: ClaimedDelivery) -> bytes:
    """The same bytes at every try."""
    told = {"webhook": claimed.webhook_id, "event": event_object(claimed.event)}
    return json.dumps(told, ensure_ascii=False).encode()


def signed(claimed: ClaimedDelivery, body: bytes, at: int) -> Mapping[str, str]:
    """The headers of a try at a time in whole seconds since 1970."""
    mac = hmac.new(claimed.secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "whosthere",
        "X-Whosthere-Delivery": str(claimed.id),
        "X-Whosthere-Timestamp": str(at),
        "X-Whosthere-Signature": f"v1={mac}",
    }


def send(claimed: ClaimedDelivery, timeout_seconds: float, tls: ssl.SSLContext) -> str | None:
    """Posts it once: what went wrong, None when a 2xx came back. Redirects are not followed, proxies not asked, and of
    the answer nothing but its status is read. The time is that of the whole: name, connection, TLS and answer."""
    until = time.monotonic() + timeout_seconds
    parts = urlsplit(claimed.url)
    host, port = parts.hostname or "", parts.port
    https = parts.scheme == "https"
    if https:
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout_seconds, context=tls
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    body = body_of(claimed)
    expired = threading.Event()
    late: threading.Timer | None = None
    try:
        connection.sock = _reach(host, connection.port, until)
        if https:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
        late = threading.Timer(_left(until), _hang_up, (connection, expired))  # a socket's own counts between bytes
        late.daemon = True
        late.start()
        if isinstance(connection.sock, ssl.SSLSocket):
            connection.sock.do_handshake()
        connection.request("POST", path, body, dict(signed(claimed, body, int(time.time()))))
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:  # a name that cannot be one is a ValueError
        if isinstance(error, TimeoutError) or expired.is_set():
            return f"no answer within {timeout_seconds:g} s"
        told = str(error).strip()  # in which the other side may be quoted
        said = "".join(sign if sign.isprintable() else "?" for sign in told)
        return f"not reached: {said or type(error).__name__}"
    finally:
        if late is not None:
            late.cancel()
        connection.close()
    return None if 200 <= status < 300 else f"answered {status}"


def _reach(host: str, port: int, until: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one. Raises OSError, a TimeoutError when it is
    `until` by the monotonic clock, and ValueError for a name that cannot be one."""
    problem = OSError("the name has no address")
    for family, kind, protocol, _, address in _addresses(host, port, until):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_left(until))
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # headers and body are two packets
            return connection
        except OSError as error:
            connection.close()
            problem = error
    raise problem


def _addresses(host: str, port: int, until: float) -> list[Any]:
    """As `socket.getaddrinfo`, which cannot be told how long to wait: its thread is left to end by itself."""
    found: Future[list[Any]] = Future()

    def ask() -> None:
        try:
            found.set_result(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, ValueError) as error:
            found.set_exception(error)

    threading.Thread(target=ask, name="webhook-name", daemon=True).start()
    return found.result(_left(until))


def _left(until: float) -> float:
    """Seconds. Raises TimeoutError when there are none."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _hang_up(connection: http.client.HTTPConnection, expired: threading.Event) -> None:
    """Lets whoever waits for the other side wait no longer."""
    expired.set()
    if connection.sock is not None:
        with suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # beneath TLS, whose own would be in the way
