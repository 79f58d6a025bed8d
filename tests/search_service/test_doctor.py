"""Findings of doctor on a service's keys, jobs and webhooks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from indexer.models.packs import SFACE
from indexer.types import Person
from search_service.doctor import Finding, examine
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.postgres import execute
from tests.search_service.store.test_events import seen


@pytest.fixture
def context(context: ServiceContext) -> ServiceContext:
    context.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    return context


def found(context: ServiceContext, check: str) -> Finding:
    (one,) = [finding for finding in examine(context) if finding.check == check]
    return one


def test_service_without_usable_keys_is_reported(context: ServiceContext) -> None:
    assert found(context, "API keys").found == "none: serve answers requests of this machine only"
    door, _ = context.keys.create("door", [Scope.SEARCH])
    finding = found(context, "API keys")
    assert (finding.ok, finding.found) == (True, "1 usable, 0 revoked or expired")
    context.keys.revoke(door.id)
    finding = found(context, "API keys")
    assert (finding.ok, finding.found) == (False, "0 usable, 1 revoked or expired")
    assert "whosthere keys create" in finding.advice


def test_data_that_others_can_open_is_reported(context: ServiceContext) -> None:
    assert found(context, "permissions").ok
    database = context.settings.home / "whosthere.db"
    database.chmod(0o640)
    finding = found(context, f"permissions of {database}")
    assert (finding.ok, finding.found) == (False, "others than its owner can open it")
    assert f"chmod go= {database}" in finding.advice


def test_keys_that_investigate_are_reported(context: ServiceContext) -> None:
    context.keys.create("door", [Scope.SEARCH])
    context.keys.create("personnel", [Scope.INVESTIGATE, Scope.ENROLL])
    assert "scope investigate" not in [finding.check for finding in examine(context)]
    context.keys.create("police", [Scope.SEARCH, Scope.INVESTIGATE])
    finding = found(context, "scope investigate")
    assert finding.ok
    assert finding.found.startswith("1 keys, such as 'police'")


def test_wrong_counts_are_reported_and_corrected(context: ServiceContext) -> None:
    gallery = context.store.galleries.get("staff")
    context.store.identities.put(gallery.id, Person("ana"))
    assert "counts of gallery staff" not in [finding.check for finding in examine(context)]
    execute(context.engine, "UPDATE galleries SET identities = 7")
    finding = found(context, "counts of gallery staff")
    assert (finding.ok, finding.found) == (False, "7 identities and 0 faces are counted; there are 1 and 0")
    assert "whosthere gallery rebuild staff" in finding.advice
    context.store.galleries.correct_counts(gallery.id)
    assert context.store.galleries.counts(gallery.id) == (1, 0)


def test_job_that_cannot_continue_is_reported(context: ServiceContext) -> None:
    gallery = context.store.galleries.get("staff")
    job = context.jobs.create(gallery.id, 1, {"pick": "only"}, [b"PK"])
    assert found(context, "jobs").found == "1 waiting or running"
    assert [f for f in examine(context) if not f.ok and "job" in f.check] == []
    held = context.jobs.claim(60)
    assert held is not None
    context.jobs.postpone(held, "the disk is full", 60)
    finding = found(context, f"job {job.id}")
    assert (finding.ok, finding.found) == (False, "waits: the disk is full")


def test_dead_deliveries_are_reported(context: ServiceContext) -> None:
    webhook, _ = context.webhooks.create("http://127.0.0.1:9/hook", None, ["match"])
    assert found(context, f"webhook {webhook.id}").ok
    context.events.record(context.store.galleries.get("staff"), seen(), timedelta(0))
    assert found(context, f"webhook {webhook.id}").found == "1 events waiting, 0 dead"
    (due,) = [one.id for one in context.webhooks.due([])]
    claimed = context.webhooks.claim(due, timedelta(seconds=60))
    assert claimed is not None
    context.webhooks.mark_failed(claimed, "nobody answers", None)
    finding = found(context, f"webhook {webhook.id}")
    assert (finding.ok, finding.found) == (False, "0 events waiting, 1 dead")
    assert f"whosthere webhooks replay {webhook.id}" in finding.advice
