"""Sends events to webhooks: signed, at least once, and repeated until they are delivered or were tried too often."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import httpx
from standardwebhooks import Webhook as StandardWebhook

from indexer.errors import WhosthereError
from indexer.supervision import SupervisedThread
from search_service.serializers import event_object
from search_service.service_context import ServiceContext
from search_service.store.webhooks import MAX_WAIT, ClaimedDelivery

log = logging.getLogger(__name__)

Result = TypeVar("Result")

AT_ONCE = 8
"""Webhooks that are sent to at the same time; each gets one event after the other."""

IDLE_SECONDS = 1.0
"""How often the database is asked for events that other processes recorded, and for deliveries that are due again."""

FAILED_SECONDS = 10.0
"""How often it is asked while it does not answer."""


@dataclass(frozen=True)
class Schedule:
    """How long one attempt may take, and when the next one follows: the wait doubles from the first to the longest."""

    timeout_seconds: float = 10.0
    """Enough for a receiver that stores the event, answers, and works later."""
    lease_seconds: float = 15.0
    """How long no other process attempts the same delivery; longer than an attempt may take."""
    first_seconds: float = 5.0
    longest_seconds: float = MAX_WAIT.total_seconds()
    tries: int = 35
    """A day: ten growing waits and 24 of an hour. A receiver that is repaired within it misses nothing."""

    def waits(self, attempts: int, failures: int) -> tuple[timedelta | None, timedelta]:
        """Returns how long a delivery waits after that many attempts, None if that was the last, and how long its
        webhook waits after that many failures in a row.

        A random quarter more or less keeps deliveries that failed together from being repeated together. It is the same
        for both waits, so that a delivery that failed no more often than its webhook is due when the webhook is.
        """
        spread = random.uniform(0.75, 1.25)  # noqa: S311 (no secret)
        again = None if attempts >= self.tries else self._wait(attempts) * spread
        return again, self._wait(failures) * spread

    def _wait(self, tried: int) -> timedelta:
        return timedelta(seconds=min(self.first_seconds * 2.0 ** min(tried - 1, 32), self.longest_seconds))


class Deliverer:
    """Sends the deliveries that are due from a thread with an event loop, next to other processes over the same
    database."""

    def __init__(self, context: ServiceContext, schedule: Schedule = Schedule()) -> None:
        self._context = context
        self._schedule = schedule
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._busy: set[str] = set()
        self._turns: dict[str, int] = {}
        """When each webhook had its last turn, counted in turns."""
        self._thread = SupervisedThread("webhooks", self._run)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Looks for due deliveries at once, because an event was recorded. Thread-safe."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """Returns when the attempts that are running have ended. The rest is sent after the next start, or by another
        process."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        self._busy.clear()
        self._wake = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook") as self._database:
            try:
                self._loop.run_until_complete(self._deliver_all())
            finally:
                self._loop.close()  # unlike asyncio.run, it does not wait for name servers that do not answer

    async def _deliver_all(self) -> None:
        async with open_client() as client, asyncio.TaskGroup() as attempts:
            while not self._stopping:
                self._wake.clear()
                wait = IDLE_SECONDS
                try:
                    await self._start_due(client, attempts)
                except WhosthereError as error:
                    log.warning("webhooks wait for the database: %s", error.message)
                    wait = FAILED_SECONDS
                except Exception:
                    log.exception("webhooks are not sent")
                    wait = FAILED_SECONDS
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait)

    async def _start_due(self, client: httpx.AsyncClient, attempts: asyncio.TaskGroup) -> None:
        """Starts the first delivery of each webhook that is not busy, up to AT_ONCE together. Where more are due, those
        whose last turn is longest ago come first: otherwise the longest queue would always win."""
        webhooks = self._context.webhooks
        busy = frozenset(self._busy)
        due = await self._in_thread(lambda: webhooks.due(busy))
        lease = timedelta(seconds=self._schedule.lease_seconds)
        for one in sorted(due, key=lambda one: self._turns.get(one.webhook_id, 0))[: AT_ONCE - len(busy)]:
            self._turns[one.webhook_id] = max(self._turns.values(), default=0) + 1
            delivery = await self._in_thread(lambda one=one: webhooks.claim(one.id, lease))  # type: ignore[misc]
            if delivery is not None:
                self._busy.add(delivery.webhook_id)
                attempts.create_task(self._deliver(client, delivery))

    async def _deliver(self, client: httpx.AsyncClient, delivery: ClaimedDelivery) -> None:
        webhooks = self._context.webhooks
        try:
            problem = await send(client, delivery, self._schedule.timeout_seconds)
            if problem is None:
                await self._in_thread(lambda: webhooks.mark_delivered(delivery))
                return
            again, pause = self._schedule.waits(delivery.attempts, delivery.failures + 1)
            await self._in_thread(lambda: webhooks.mark_failed(delivery, problem, again, pause))
            log.warning(
                "webhook %s: event %d, attempt %d: %s; %s",
                delivery.webhook_id,
                delivery.event.id,
                delivery.attempts,
                problem,
                f"again in {again.total_seconds():.0f} s" if again else "that was the last attempt",
            )
        except WhosthereError as error:  # it is due again when its lease ends
            log.warning("webhook %s: %s", delivery.webhook_id, error.message)
        except Exception:
            log.exception("webhook %s: event %d", delivery.webhook_id, delivery.event.id)
        finally:
            self._busy.discard(delivery.webhook_id)
            self._wake.set()

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        """Runs a call of the database in a pool apart from that of name lookups, which may hang."""
        return await asyncio.get_running_loop().run_in_executor(self._database, call)


def open_client() -> httpx.AsyncClient:
    """Returns a client without proxies, redirects and kept connections."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, limits=limits)


async def send(client: httpx.AsyncClient, delivery: ClaimedDelivery, timeout_seconds: float) -> str | None:
    """Attempts a delivery once and returns what went wrong, or None if the receiver answered 2xx.

    The time includes name lookup, connection, TLS and answer. Of the answer only the status is read.
    """
    body = body_of(delivery)
    headers = signed_headers(delivery, body, int(time.time()))
    # httpcore closes the socket of a TLS handshake that exceeds its own limit, but not of one that is cancelled.
    each_step = 0.9 * timeout_seconds
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            client.stream("POST", delivery.url, content=body, headers=headers, timeout=each_step) as response,
        ):
            status = response.status_code
    except (TimeoutError, httpx.TimeoutException):
        return f"no answer within {timeout_seconds:g} s"
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:  # ValueError: not a valid host name
        quoted = str(error).strip()  # may contain what the receiver sent
        printable = "".join(char if char.isprintable() else "?" for char in quoted)
        return f"not reached: {printable or type(error).__name__}"
    return None if 200 <= status < 300 else f"answered {status}"


def body_of(delivery: ClaimedDelivery) -> bytes:
    """Returns the body of a delivery, the same bytes at every attempt."""
    content = {"webhook": delivery.webhook_id, "event": event_object(delivery.event)}
    return json.dumps(content, ensure_ascii=False).encode()


def signed_headers(delivery: ClaimedDelivery, body: bytes, at: int) -> Mapping[str, str]:
    """Returns the headers of an attempt at a time in whole seconds since 1970: with this project's own signature and
    that of Standard Webhooks 1.0.0, whose key is the secret's bytes as they are."""
    key = delivery.secret.encode()
    mac = hmac.new(key, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    signature = StandardWebhook(key).sign(str(delivery.id), datetime.fromtimestamp(at, UTC), body.decode())
    return {
        "Content-Type": "application/json",
        "User-Agent": "whosthere",
        "X-Whosthere-Delivery": str(delivery.id),
        "X-Whosthere-Timestamp": str(at),
        "X-Whosthere-Signature": f"v1={mac}",
        "webhook-id": str(delivery.id),
        "webhook-timestamp": str(at),
        "webhook-signature": signature,
    }
