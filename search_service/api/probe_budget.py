"""Counts the different probes that each API key searches on a day (UTC), and refuses more than its budget.

Each process counts in memory and adds to the counts in SQL every FLUSH_SECONDS, so that no search waits for a write
and a restart does not renew a budget. Until then the other processes do not know of its probes.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta

from indexer.clock import now
from indexer.errors import WhosthereError
from indexer.supervision import SupervisedThread
from search_service.api.errors import ProbeBudgetUsed
from search_service.service_context import ServiceContext
from search_service.store.api_keys import ApiKey

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""A process that is killed loses the counts of this time."""

REMEMBERED = 50_000
"""Probes of a process that count once when they are repeated: 2 MB."""

DIGEST_BYTES = 16

WARNING_SHARE = 0.8
"""Share of a budget from which the log warns."""


class ProbeBudget:
    """The counts of one process. Thread-safe."""

    def __init__(self, context: ServiceContext, clock: Callable[[], datetime] = now) -> None:
        self._context = context
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = SupervisedThread("probe counts", self._run)
        self._day = clock().date()
        self._stored: dict[str, int] = {}
        """What all processes had counted at the last flush, by key id."""
        self._new: Counter[str] = Counter()
        """What this process has counted since."""
        self._seen: dict[bytes, None] = {}
        """Digests of key and probe, oldest first."""
        self._warned: set[str] = set()

    def start(self) -> None:
        """Reads the counts of the day, and writes in the background from then on. Raises StorageUnavailable."""
        self._stored = self._context.probe_counts.of_day(self._day)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        try:
            self.flush()
        except WhosthereError as error:
            log.warning("the last counts of probes are lost: %s", error.message)

    def spend(self, key: ApiKey | None, probes: Iterable[bytes]) -> int:
        """Counts the probes that were not counted before, and returns how many those are.

        Raises ProbeBudgetUsed if the key's budget does not cover them; then none of them is counted.
        """
        if key is None:
            return 0
        digests = {hashlib.blake2b(probe, digest_size=DIGEST_BYTES, key=key.id.encode()).digest() for probe in probes}
        with self._lock:
            self._begin_day()
            fresh = [digest for digest in digests if digest not in self._seen]
            used = self._stored.get(key.id, 0) + self._new[key.id]
            if key.daily_probes is not None and fresh and used + len(fresh) > key.daily_probes:
                self._warn(key, used)
                raise ProbeBudgetUsed(
                    f"the API key {key.name!r} may search {key.daily_probes} different probes a day",
                    self._seconds_left(),
                )
            self._seen.update(dict.fromkeys(fresh))
            while len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            self._new[key.id] += len(fresh)
            self._warn(key, used + len(fresh))
        return len(fresh)

    def add(self, key: ApiKey | None, probes: int) -> None:
        """Counts further probes, such as the other faces of an image."""
        if key is not None:
            with self._lock:
                self._begin_day()
                self._new[key.id] += probes

    def flush(self) -> None:
        """Adds to the counts in SQL and reads those of all processes, if this one has counted anything since.

        Raises StorageUnavailable.
        """
        with self._lock:
            self._begin_day()
            day, counted = self._day, +self._new
        if not counted:
            return
        self._context.probe_counts.add(day, counted)
        with self._lock:
            if self._day == day:
                self._new -= counted
                self._stored = dict(Counter(self._stored) + counted)
        stored = self._context.probe_counts.of_day(day)
        with self._lock:
            if self._day == day:
                self._stored = stored

    def _begin_day(self) -> None:
        """Forgets the counts of the day before. Its last FLUSH_SECONDS are not written."""
        today: date = self._clock().date()
        if today != self._day:
            self._day, self._stored, self._new = today, {}, Counter()
            self._seen.clear()
            self._warned.clear()

    def _warn(self, key: ApiKey, used: int) -> None:
        if key.daily_probes is None or key.id in self._warned or used < WARNING_SHARE * key.daily_probes:
            return
        self._warned.add(key.id)
        log.warning("the API key %s has used %d of its %d probes of today", key.id, used, key.daily_probes)

    def _seconds_left(self) -> int:
        """Returns the seconds until the next day, rounded up."""
        at = self._clock()
        return int((datetime.combine(at.date() + timedelta(days=1), time(), UTC) - at).total_seconds()) + 1

    def _run(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            try:
                self.flush()
            except WhosthereError as error:
                log.warning("the counts of probes are not written: %s", error.message)
