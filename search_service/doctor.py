"""Looks over an installation: what is wrong, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from indexer.clock import now
from indexer.errors import Conflict, ModelUnavailable, NotFound, WhosthereError
from indexer.gallery.database import current_version, newest_version, storage_errors
from indexer.vision import networks, runtime
from search_service.service_context import ServiceContext

MIN_FREE_BYTES = 1 * 2**30
"""Room for the change log, snapshots and a database's own housekeeping."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `advice` says what to do where it is not `ok`."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(context: ServiceContext) -> list[Finding]:
    """Every check, also after one has failed."""
    checks: tuple[Callable[[ServiceContext], Iterator[Finding]], ...] = (
        _runtime,
        _models,
        _disk,
        _database,
        _keys,
        _jobs,
        _webhooks,
        _galleries,
    )
    findings: list[Finding] = []
    for check in checks:
        try:
            with storage_errors():
                findings += check(context)
        except (WhosthereError, OSError) as error:
            what = check.__name__.strip("_")
            findings.append(Finding(what, False, str(error), "mend this first, then run doctor again"))
    return findings


def _runtime(context: ServiceContext) -> Iterator[Finding]:
    installed = runtime.engines()
    yield Finding("runtime", bool(installed), ", ".join(installed) or "none", "pip install openvino, or onnxruntime")


def _models(context: ServiceContext) -> Iterator[Finding]:
    pack, settings = context.pack, context.settings
    for file in pack.files:
        try:
            yield Finding(f"model file {file.name}", True, context.files.location(file))
        except WhosthereError as error:
            advice = f"whosthere models pull {pack.name}"
            yield Finding(f"model file {file.name}", False, error.message, advice)
    lacking = context.packs.problem(pack, settings.precision)
    if lacking is not None:
        yield Finding(f"model pack {pack.name}", False, lacking, "do what it says")
    try:
        networks.uses_cuda(pack, settings.device)
    except ModelUnavailable as error:
        yield Finding("device", False, error.message, "do what it says, or take another WHOSTHERE_DEVICE")


def _disk(context: ServiceContext) -> Iterator[Finding]:
    folder = context.settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield Finding(
        "free disk",
        free >= MIN_FREE_BYTES,
        f"{free / 2**30:.1f} GiB at {folder}",
        "make room, or move WHOSTHERE_HOME",
    )


def _database(context: ServiceContext) -> Iterator[Finding]:
    context.engine.connect().close()
    found, expected = current_version(context.engine), newest_version()
    yield Finding("database", True, context.engine.url.render_as_string(hide_password=True))
    yield Finding(
        "migrations",
        found in (None, expected),
        f"at {found or 'nothing yet'}, newest is {expected}",
        "any other command brings the tables up to date; a newer number than ours needs a newer whosthere",
    )


def _keys(context: ServiceContext) -> Iterator[Finding]:
    if not _up_to_date(context):
        return
    keys = context.keys.list()
    usable = [key for key in keys if key.revoked_at is None and not key.is_expired(now())]
    found = f"{len(usable)} usable, {len(keys) - len(usable)} revoked or expired"
    closed = bool(keys) and not usable
    yield Finding("API keys", not closed, found if keys else "none: serve answers this machine alone", _NO_KEY)


_NO_KEY = "nobody can ask the service anything: whosthere keys create --name NAME --scope admin"


def _jobs(context: ServiceContext) -> Iterator[Finding]:
    if not _up_to_date(context):
        return
    jobs = context.jobs.list_unfinished()
    yield Finding("jobs", True, f"{len(jobs)} wait or run")
    for job in jobs:
        if job.problem is not None:
            yield Finding(f"job {job.id}", False, f"waits: {job.problem}", "mend that: it goes on by itself")


def _webhooks(context: ServiceContext) -> Iterator[Finding]:
    if not _up_to_date(context):
        return
    for webhook in context.webhooks.list():
        found = f"{webhook.waiting} events on their way, {webhook.dead} given up"
        advice = f"whosthere webhooks dead {webhook.id} says why; once mended, whosthere webhooks replay {webhook.id}"
        yield Finding(f"webhook {webhook.id}", not webhook.dead, found, advice)


def _up_to_date(context: ServiceContext) -> bool:
    return current_version(context.engine) == newest_version()


def _galleries(context: ServiceContext) -> Iterator[Finding]:
    if not _up_to_date(context):
        return
    for gallery in context.store.galleries.list():
        name = f"gallery {gallery.name}"
        try:
            context.pack_of(gallery)
        except WhosthereError as error:
            yield Finding(name, False, error.message, "do what it says, or enrol it anew")
            continue
        try:
            compared = context.indexes.of(gallery).compare()
        except (NotFound, Conflict):  # somebody deleted or re-embedded it since
            continue
        advice = f"whosthere gallery rebuild {gallery.name}"
        if compared.snapshot_problem is not None:
            yield Finding(f"snapshot of {name}", False, compared.snapshot_problem, advice)
        found = f"{compared.in_database} faces in the database, {compared.in_index} in the index"
        if compared.different:
            found += f", {compared.different} not the same"
        yield Finding(name, not compared.different, found, advice)
