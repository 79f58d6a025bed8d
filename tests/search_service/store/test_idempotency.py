"""Tests of stored answers on both databases, in threads and processes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from indexer.gallery.database import open_database
from search_service.store import idempotency as module
from search_service.store.idempotency import LEASE_SECONDS, RETENTION, Claim, IdempotencyStore, Pending, StoredAnswer
from search_service.store.schema import AnswerRow
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database

ANSWER = StoredAnswer("ab" * 32, 201, {"content-type": "application/json", "etag": '"1"'}, b'{"name": "\xc3\xbc"}')
SECOND = timedelta(seconds=1)


def claimed(answers: IdempotencyStore, key: str = "k", owner: str = "") -> Claim:
    claim = answers.claim(owner, key)
    assert isinstance(claim, Claim)
    return claim


def at(monkeypatch: pytest.MonkeyPatch, later: timedelta) -> None:
    """Sets the clock forward."""
    monkeypatch.setattr(module, "now", lambda: datetime.now(UTC) + later)


def rows(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(AnswerRow)) or 0


def test_stored_answer_is_returned_again(answers: IdempotencyStore) -> None:
    claim = claimed(answers)
    assert answers.claim("", "k") == Pending()
    answers.put(claim, ANSWER)
    assert answers.claim("", "k") == ANSWER
    assert answers.claim("", "k") == ANSWER


def test_owners_have_separate_keys(answers: IdempotencyStore) -> None:
    answers.put(claimed(answers), ANSWER)
    for owner, key in (("", "other"), ("key1", "k"), ("key2", "k")):
        claimed(answers, key, owner)
    assert answers.claim("", "k") == ANSWER


def test_released_key_can_be_claimed_again(answers: IdempotencyStore) -> None:
    answers.release(claimed(answers))
    answers.put(claimed(answers), ANSWER)
    assert answers.claim("", "k") == ANSWER


def test_claim_from_before_clock_was_set_back_is_free(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, timedelta(days=1))
    claimed(answers)
    at(monkeypatch, timedelta())
    claimed(answers)
    at(monkeypatch, -SECOND * LEASE_SECONDS / 2)  # on a machine whose clock is behind
    assert answers.claim("", "k") == Pending()


def test_answered_key_cannot_be_released(answers: IdempotencyStore) -> None:
    claim = claimed(answers)
    answers.put(claim, ANSWER)
    answers.release(claim)
    answers.put(claim, replace(ANSWER, status=404))
    assert answers.claim("", "k") == ANSWER


def test_claim_of_a_dead_process_ends_with_its_lease(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = claimed(answers)
    at(monkeypatch, timedelta(seconds=LEASE_SECONDS) - SECOND)
    assert answers.claim("", "k") == Pending()
    at(monkeypatch, timedelta(seconds=LEASE_SECONDS) + SECOND)
    alive = claimed(answers)
    answers.renew([dead])
    answers.release(dead)
    assert not answers.put(dead, replace(ANSWER, status=500))
    assert answers.claim("", "k") == Pending()
    assert answers.put(alive, ANSWER)
    assert answers.claim("", "k") == ANSWER


def test_renewed_claims_are_kept(answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [claimed(answers, f"k{number}") for number in range(3)]
    dead = claimed(answers, "dead")
    at(monkeypatch, timedelta(seconds=LEASE_SECONDS / 2))
    answers.renew(held)
    at(monkeypatch, timedelta(seconds=LEASE_SECONDS) + SECOND)
    assert [answers.claim("", claim.key) for claim in held] == [Pending()] * 3
    assert claimed(answers, "dead") != dead
    for claim in held:
        assert answers.put(claim, ANSWER)
        assert answers.claim("", claim.key) == ANSWER


def test_delayed_process_keeps_unclaimed_key(answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = claimed(answers)
    at(monkeypatch, timedelta(seconds=3 * LEASE_SECONDS))
    answers.renew([claim])
    assert answers.claim("", "k") == Pending()
    assert answers.put(claim, ANSWER)


def test_data_can_be_stored_in_place_of_an_answer(answers: IdempotencyStore) -> None:
    memory = StoredAnswer("cd" * 32, 200, None, b"[]")
    answers.put(claimed(answers), memory)
    assert answers.claim("", "k") == memory


def test_answer_is_kept_for_its_retention(answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answers.put(claimed(answers), ANSWER)
    at(monkeypatch, RETENTION - SECOND)
    assert answers.claim("", "k") == ANSWER
    at(monkeypatch, RETENTION + SECOND)
    claimed(answers)


def test_beyond_the_bytes_of_an_owner_its_oldest_answers_are_deleted(engine: Engine) -> None:
    answers = IdempotencyStore(engine, max_owner_bytes=50_000)
    answers.put(claimed(answers, "other", "other"), ANSWER)
    waiting = claimed(answers, "waiting", "owner")
    for number in range(100):
        answers.put(claimed(answers, str(number), "owner"), replace(ANSWER, body=bytes(1000)))
    found = [answers.claim("owner", str(number)) for number in range(100)]
    kept = [number for number, answer in enumerate(found) if isinstance(answer, StoredAnswer)]
    assert kept == list(range(min(kept), 100))
    assert 30 <= len(kept) <= 40
    assert answers.claim("other", "other") == ANSWER
    assert answers.put(waiting, ANSWER)


def test_expired_answers_are_swept(answers: IdempotencyStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SWEEP_BATCH", 3)
    for number in range(7):
        answers.put(claimed(answers, f"old-{number}"), ANSWER)
    with Session(engine) as session, session.begin():
        session.execute(update(AnswerRow).values(expires_at=datetime.now(UTC) - SECOND))
    at(monkeypatch, timedelta(days=365))  # also those stored before the clock was set back
    answers.put(claimed(answers, "ahead"), ANSWER)
    at(monkeypatch, timedelta())
    answers.put(claimed(answers, "new"), ANSWER)
    assert answers.sweep() == 8
    assert rows(engine) == 1
    assert answers.sweep() == 0
    assert answers.claim("", "new") == ANSWER


@pytest.mark.parametrize("is_expired", [False, True])
def test_one_of_many_threads_gets_a_new_or_expired_claim(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch, is_expired: bool
) -> None:
    if is_expired:
        claimed(answers)
        at(monkeypatch, timedelta(seconds=LEASE_SECONDS) + SECOND)
    found = in_threads([lambda: answers.claim("", "k")] * 12)
    assert sorted(type(one).__name__ for one in found) == ["Claim"] + ["Pending"] * 11


def _claim(url: str) -> str:
    engine = open_database(url)
    try:
        return type(IdempotencyStore(engine).claim("", "k")).__name__
    finally:
        engine.dispose()


def test_one_of_several_processes_gets_the_claim(database: Database) -> None:
    assert sorted(in_processes(_claim, [(database.url,)] * 3)) == ["Claim", "Pending", "Pending"]


def test_concurrent_sweeps_do_not_block_each_other(answers: IdempotencyStore, engine: Engine) -> None:
    for number in range(30):
        claimed(answers, str(number))
    with Session(engine) as session, session.begin():
        session.execute(update(AnswerRow).values(expires_at=datetime.now(UTC) - SECOND))
    in_threads([answers.sweep] * 4)
    answers.sweep()
    assert rows(engine) == 0
