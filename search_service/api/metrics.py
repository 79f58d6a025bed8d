"""Metrics for Prometheus: requests and their stages are counted as they happen; sizes of galleries and of queues are
looked up when Prometheus asks.

Several workers count in files of a folder that they share (`metrics_files`), and each of them answers with the sum.
"""

from __future__ import annotations

import json
import os
from collections import Counter as Counted
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from indexer.clock import now
from indexer.errors import Conflict, NotFound, WhosthereError
from indexer.types import Gallery
from search_service.api.metrics_files import FOLDER_VARIABLE, LABEL_BYTES
from search_service.matching.decision import Decision
from search_service.search import FaceAnswer
from search_service.service_context import ServiceContext
from search_service.store.jobs import UNFINISHED

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of histograms: a search takes a hundredth of a second, a full queue some seconds."""

ENTRY_BYTES = 200
"""Of a counter in a file without its gallery's name, rounded up."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one process. Thread-safe."""

    def __init__(self, context: ServiceContext) -> None:
        folder = os.environ.get(FOLDER_VARIABLE)
        self._shared = None if folder is None else Path(folder)
        self._gallery_labels: set[str] = set()
        self._label_bytes_left = LABEL_BYTES
        self._registry = CollectorRegistry()
        self._looked_up = _StateCollector(context)
        options: dict[str, Any] = {"namespace": "whosthere", "registry": self._registry}
        self._requests = Counter("requests", "Requests answered.", ["method", "route", "status"], **options)
        self._seconds = Histogram(
            "request_seconds",
            "From a request's first byte to its answer's last.",
            ["route"],
            buckets=SECONDS,
            **options,
        )
        self._stages = Histogram(
            "stage_seconds", "How long one stage of the answers of a batch took.", ["stage"], buckets=SECONDS, **options
        )
        self._batches = Histogram("batch_images", "Images computed in one batch.", buckets=SIZES, **options)
        self._waiting = Gauge(
            "waiting_images", "Images that wait for the networks.", multiprocess_mode="livesum", **options
        )
        self._decisions = Counter("decisions", "Faces searched.", ["gallery", "decision"], **options)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, name: str, seconds: float) -> None:
        self._stages.labels(name).observe(seconds)

    def batch(self, images: int) -> None:
        self._batches.observe(images)

    def waiting(self, images: int) -> None:
        self._waiting.set(images)

    def decided(self, gallery: Gallery, face: FaceAnswer) -> None:
        self._decisions.labels(self._gallery_label(gallery.name), face.decision).inc()

    def _gallery_label(self, name: str) -> str:
        """Returns the gallery's label, or no text once labels fill the counter file: it must not grow, because that
        would end the process if the disk is full."""
        if self._shared is None or name in self._gallery_labels:
            return name
        size = len(Decision) * (ENTRY_BYTES + len(json.dumps(name)))
        if size > self._label_bytes_left:
            return ""
        self._label_bytes_left -= size
        self._gallery_labels.add(name)
        return name

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        counted = self._registry
        if self._shared is not None:
            _forget_dead(self._shared)
            counted = CollectorRegistry()
            MultiProcessCollector(counted, str(self._shared))  # type: ignore[no-untyped-call]
        looked_up = CollectorRegistry()
        looked_up.register(self._looked_up)
        return generate_latest(counted) + generate_latest(looked_up)


def _forget_dead(folder: Path) -> None:
    """Removes gauges of workers that were killed from the sum: nothing waits there any more."""
    for file in folder.glob("gauge_live*.db"):
        pid = file.stem.rpartition("_")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            mark_process_dead(int(pid), str(folder))  # type: ignore[no-untyped-call]


class _StateCollector(Collector):
    """Collects the state of the database and of this process's indexes."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("whosthere_database_up", "Whether the database answers.")
        try:
            families = [*self._galleries(), *self._waiting(), *self._probes()]
            up.add_metric([], 1)
        except WhosthereError:
            families = []
            up.add_metric([], 0)
        yield up
        yield from families

    def _galleries(self) -> Iterator[Metric]:
        identities, faces, lag = (
            GaugeMetricFamily(f"whosthere_gallery_{name}", text, labels=["gallery"])
            for name, text in (
                ("identities", "People in a gallery."),
                ("faces", "Enrolled faces in a gallery."),
                ("index_lag", "Changes of a gallery that this worker's index has not applied yet."),
            )
        )
        for gallery in self._context.store.galleries.list():
            try:
                people, enrolled = self._context.store.galleries.counts(gallery.id)
                reached = self._context.indexes.get(gallery).applied_seq
            except (Conflict, NotFound):  # re-embedded or deleted at this moment
                continue
            identities.add_metric([gallery.name], people)
            faces.add_metric([gallery.name], enrolled)
            if reached is not None:
                lag.add_metric([gallery.name], max(gallery.seq - reached, 0))
        yield from (identities, faces, lag)

    def _waiting(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("whosthere_jobs", "Bulk enrollments that have not ended.", labels=["state"])
        states = Counted(job.state for job in self._context.jobs.list_unfinished())
        for state in UNFINISHED:
            jobs.add_metric([state], states[state])
        yield jobs
        webhooks = self._context.webhooks.list()
        for name, text, counts in (
            ("waiting", "Events that wait to be delivered to a webhook.", [webhook.waiting for webhook in webhooks]),
            ("dead", "Events whose delivery to a webhook was given up.", [webhook.dead for webhook in webhooks]),
        ):
            deliveries = GaugeMetricFamily(f"whosthere_webhook_events_{name}", text, labels=["webhook"])
            for webhook, count in zip(webhooks, counts, strict=True):
                deliveries.add_metric([webhook.id], count)
            yield deliveries

    def _probes(self) -> Iterator[Metric]:
        """Yields how much of the daily budgets is used, of keys with which something was searched."""
        probes = GaugeMetricFamily("whosthere_key_probes", "Different probes of a key today.", labels=["key"])
        budgets = GaugeMetricFamily("whosthere_key_probe_budget", "Probes that a key may search a day.", labels=["key"])
        counts = self._context.probe_counts.of_day(now().date())
        for key in self._context.keys.list() if counts else ():
            if key.id in counts:
                probes.add_metric([key.id], counts[key.id])
                if key.daily_probes is not None:
                    budgets.add_metric([key.id], key.daily_probes)
        yield from (probes, budgets)
