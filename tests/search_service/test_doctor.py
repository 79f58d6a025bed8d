"""What doctor says of a running service's own things: keys, jobs, webhooks."""

from __future__ import annotations

from datetime import timedelta

import pytest

from indexer.models.packs import SFACE
from search_service.doctor import Finding, examine
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.search_service.store.test_events import seen


@pytest.fixture
def home(home: ServiceContext) -> ServiceContext:
    home.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    return home


def found(home: ServiceContext, check: str) -> Finding:
    (one,) = [finding for finding in examine(home) if finding.check == check]
    return one


def test_nobody_can_ask_when_all_keys_are_revoked(home: ServiceContext) -> None:
    assert found(home, "API keys").found == "none: serve answers this machine alone"
    door, _ = home.keys.create("door", [Scope.SEARCH])
    finding = found(home, "API keys")
    assert (finding.ok, finding.found) == (True, "1 usable, 0 revoked or expired")
    home.keys.revoke(door.id)
    finding = found(home, "API keys")
    assert (finding.ok, finding.found) == (False, "0 usable, 1 revoked or expired")
    assert "whosthere keys create" in finding.advice


def test_a_job_that_gets_no_further_is_wrong(home: ServiceContext) -> None:
    gallery = home.store.galleries.get("staff")
    job = home.jobs.create(gallery.id, 1, {"pick": "only"}, [b"PK"])
    assert found(home, "jobs").found == "1 wait or run"
    assert [f for f in examine(home) if not f.ok and "job" in f.check] == []
    held = home.jobs.claim(60)
    assert held is not None
    home.jobs.postpone(held, "the disk is full", 60)
    finding = found(home, f"job {job.id}")
    assert (finding.ok, finding.found) == (False, "waits: the disk is full")


def test_events_that_were_given_up_are_wrong(home: ServiceContext) -> None:
    webhook, _ = home.webhooks.create("http://127.0.0.1:9/hook", None, ["match"])
    assert found(home, f"webhook {webhook.id}").ok
    home.events.record(home.store.galleries.get("staff"), seen(), timedelta(0))
    assert found(home, f"webhook {webhook.id}").found == "1 events on their way, 0 given up"
    (due,) = [one.id for one in home.webhooks.due([])]
    claimed = home.webhooks.claim(due, timedelta(seconds=60))
    assert claimed is not None
    home.webhooks.mark_failed(claimed, "nobody answers", None)
    finding = found(home, f"webhook {webhook.id}")
    assert (finding.ok, finding.found) == (False, "0 events on their way, 1 given up")
    assert f"whosthere webhooks replay {webhook.id}" in finding.advice
