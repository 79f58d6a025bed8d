"""Checks an installation, and advises how to fix problems."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from indexer.clock import now
from indexer.errors import Conflict, ModelUnavailable, NotFound, WhosthereError
from indexer.gallery.database import current_version, newest_version, storage_errors
from indexer.models.packs import Pack
from indexer.types import LivenessMode
from indexer.vision import networks, runtime
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope

MIN_FREE_BYTES = 1 * 2**30
"""Space for the change log, snapshots and the maintenance of the database."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. `advice` says what to do if it is not `ok`."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(context: ServiceContext) -> list[Finding]:
    """Runs all checks, even after one has failed."""
    findings: list[Finding] = []
    of_tables = (_keys, _jobs, _webhooks, _galleries)
    for check in (_runtime, _models, _liveness, _disk, _permissions, _database, *of_tables):
        try:
            with storage_errors():
                if check not in of_tables or current_version(context.engine) == newest_version():
                    findings += check(context)
        except (WhosthereError, OSError) as error:
            what = check.__name__.strip("_")
            findings.append(Finding(what, False, str(error), "fix this first, then run doctor again"))
    return findings


def _runtime(context: ServiceContext) -> Iterator[Finding]:
    installed = runtime.engines()
    yield Finding("runtime", bool(installed), ", ".join(installed) or "none", "pip install openvino, or onnxruntime")


def _models(context: ServiceContext) -> Iterator[Finding]:
    pack, settings = context.pack, context.settings
    is_whole = True
    for file in pack.files:
        try:
            yield Finding(f"model file {file.name}", True, context.files.location(file))
        except WhosthereError as error:
            advice = f"whosthere models pull {pack.name}"
            is_whole = False
            yield Finding(f"model file {file.name}", False, error.message, advice)
    problem = context.packs.problem(pack, settings.precision)
    if problem is not None:
        yield Finding(f"model pack {pack.name}", False, problem, "follow the message")
    try:
        networks.uses_cuda(pack, settings.device)
    except ModelUnavailable as error:
        yield Finding("device", False, error.message, "follow the message, or change WHOSTHERE_DEVICE")
        return
    if is_whole and problem is None:
        yield _networks(context, pack)


def _networks(context: ServiceContext, pack: Pack) -> Finding:
    """Runs the networks once: a driver may fail although the device is there."""
    try:
        context.pipeline(pack).check()
    except WhosthereError as error:
        return Finding("networks", False, error.message, "repair the driver or runtime, or change WHOSTHERE_DEVICE")
    return Finding("networks", True, f"{pack.name} runs")


def _liveness(context: ServiceContext) -> Iterator[Finding]:
    mode = context.search_liveness()
    if mode is LivenessMode.OFF:
        yield Finding("liveness", True, "off: photos of photos pass as people")
        return
    pack = context.liveness_pack
    problem = context.liveness_packs.problem(pack.name)
    yield Finding("liveness", problem is None, problem or f"{mode}, by {pack.name}", "follow the message")


def _disk(context: ServiceContext) -> Iterator[Finding]:
    folder = context.settings.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield Finding(
        "free disk",
        free >= MIN_FREE_BYTES,
        f"{free / 2**30:.1f} GiB at {folder}",
        "free space, or move WHOSTHERE_HOME",
    )


def _permissions(context: ServiceContext) -> Iterator[Finding]:
    exposed = list(context.exposed_paths())
    for path in exposed:
        advice = f"opening the database repairs that; if it stays, chmod go= {path}"
        yield Finding(f"permissions of {path}", False, "others than its owner can open it", advice)
    if not exposed:
        yield Finding("permissions", True, "only the owner can open the data folder and the database")


def _database(context: ServiceContext) -> Iterator[Finding]:
    context.engine.connect().close()
    found, expected = current_version(context.engine), newest_version()
    yield Finding("database", True, context.engine.url.render_as_string(hide_password=True))
    yield Finding(
        "migrations",
        found in (None, expected),
        f"at {found or 'none'}, newest is {expected}",
        "any other command migrates the tables; a version newer than the newest needs a newer whosthere",
    )


def _keys(context: ServiceContext) -> Iterator[Finding]:
    keys = context.keys.list()
    usable = [key for key in keys if key.revoked_at is None and not key.is_expired(now())]
    found = f"{len(usable)} usable, {len(keys) - len(usable)} revoked or expired"
    yield Finding(
        "API keys",
        bool(usable) or not keys,
        found if keys else "none: serve answers requests of this machine only",
        "all requests are refused: whosthere keys create --name NAME --scope admin",
    )
    investigating = [key.name for key in usable if max(key.scopes, key=list(Scope).index) is Scope.INVESTIGATE]
    if investigating:
        yield Finding(
            "scope investigate",
            True,
            f"{len(investigating)} keys, such as {investigating[0]!r}: they see candidates below the threshold and can "
            "compute embeddings of everybody enrolled. Keys that were created with the scope search before it was "
            "narrowed have it; the new scope search is enough for doors",
        )


def _jobs(context: ServiceContext) -> Iterator[Finding]:
    jobs = context.jobs.list_unfinished()
    yield Finding("jobs", True, f"{len(jobs)} waiting or running")
    for job in jobs:
        if job.problem is not None:
            yield Finding(f"job {job.id}", False, f"waits: {job.problem}", "fix that; the job then continues by itself")


def _webhooks(context: ServiceContext) -> Iterator[Finding]:
    for webhook in context.webhooks.list():
        found = f"{webhook.waiting} events waiting, {webhook.dead} dead"
        advice = f"whosthere webhooks dead {webhook.id} lists why; after a fix, whosthere webhooks replay {webhook.id}"
        yield Finding(f"webhook {webhook.id}", not webhook.dead, found, advice)


def _galleries(context: ServiceContext) -> Iterator[Finding]:
    for gallery in context.store.galleries.list():
        name = f"gallery {gallery.name}"
        try:
            context.pack_of(gallery)
        except WhosthereError as error:
            yield Finding(name, False, error.message, "follow the message, or enroll the photos again")
            continue
        try:
            compared = context.indexes.get(gallery).compare_with_database()
        except (NotFound, Conflict):  # deleted or re-embedded meanwhile
            continue
        advice = f"whosthere gallery rebuild {gallery.name}"
        kept, counted = context.store.galleries.counts(gallery.id), context.store.galleries.counted(gallery.id)
        if kept != counted and gallery.seq == context.store.changes.last(gallery.id):
            counts = f"{kept[0]} identities and {kept[1]} faces are counted; there are {counted[0]} and {counted[1]}"
            yield Finding(f"counts of {name}", False, counts, advice)
        if compared.snapshot_problem is not None:
            yield Finding(f"snapshot of {name}", False, compared.snapshot_problem, advice)
        found = f"{compared.in_database} faces in the database, {compared.in_index} in the index"
        if compared.different:
            found += f", {compared.different} different"
        yield Finding(name, not compared.different, found, advice)
