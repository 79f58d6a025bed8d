"""The first with a key answers, and the others get its answer: on both databases, in threads and processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from indexer.gallery.database import open_database
from search_service.store import idempotency as door
from search_service.store.idempotency import LEASE_SECONDS, RETENTION, Claim, IdempotencyStore, Pending, StoredAnswer
from search_service.store.schema import AnswerRow
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database

ANSWER = StoredAnswer("ab" * 32, 201, {"content-type": "application/json", "etag": '"1"'}, b'{"name": "\xc3\xbc"}')
SECOND = timedelta(seconds=1)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = open_database(database.url)
    yield engine
    engine.dispose()


@pytest.fixture
def answers(engine: Engine) -> IdempotencyStore:
    return IdempotencyStore(engine)


def claimed(answers: IdempotencyStore, key: str = "k", owner: str = "") -> Claim:
    claim = answers.claim(owner, key)
    assert isinstance(claim, Claim)
    return claim


def at(monkeypatch: pytest.MonkeyPatch, later: timedelta) -> None:
    """The clock shows that much more."""
    monkeypatch.setattr(door, "now", lambda: datetime.now(UTC) + later)


def rows(engine: Engine) -> int:
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(AnswerRow)) or 0


def test_the_answer_is_given_again(answers: IdempotencyStore) -> None:
    claim = claimed(answers)
    assert answers.claim("", "k") == Pending()
    answers.put(claim, ANSWER)
    assert answers.claim("", "k") == ANSWER
    assert answers.claim("", "k") == ANSWER


def test_each_owner_has_keys_of_their_own(answers: IdempotencyStore) -> None:
    answers.put(claimed(answers), ANSWER)
    for owner, key in (("", "other"), ("key1", "k"), ("key2", "k")):
        claimed(answers, key, owner)
    assert answers.claim("", "k") == ANSWER


def test_a_key_that_is_given_up_is_free(answers: IdempotencyStore) -> None:
    answers.release(claimed(answers))
    answers.put(claimed(answers), ANSWER)
    assert answers.claim("", "k") == ANSWER


def test_a_key_that_was_taken_before_the_clock_was_set_back_is_free(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, timedelta(days=1))
    claimed(answers)
    at(monkeypatch, timedelta())
    claimed(answers)
    at(monkeypatch, -SECOND * LEASE_SECONDS / 2)  # as a machine's whose clock is behind
    assert answers.claim("", "k") == Pending()


def test_an_answer_is_not_given_up(answers: IdempotencyStore) -> None:
    claim = claimed(answers)
    answers.put(claim, ANSWER)
    answers.release(claim)
    answers.put(claim, replace(ANSWER, status=404))
    assert answers.claim("", "k") == ANSWER


def test_whoever_died_holds_the_key_for_a_while(answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_whoever_says_that_it_is_alive_holds_its_keys(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_whoever_was_held_up_and_goes_on_holds_the_key_that_nobody_took(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = claimed(answers)
    at(monkeypatch, timedelta(seconds=3 * LEASE_SECONDS))
    answers.renew([claim])
    assert answers.claim("", "k") == Pending()
    assert answers.put(claim, ANSWER)


def test_what_is_kept_instead_of_an_answer(answers: IdempotencyStore) -> None:
    memory = StoredAnswer("cd" * 32, 200, None, b"[]")
    answers.put(claimed(answers), memory)
    assert answers.claim("", "k") == memory


def test_an_answer_is_kept_for_its_time(answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answers.put(claimed(answers), ANSWER)
    at(monkeypatch, RETENTION - SECOND)
    assert answers.claim("", "k") == ANSWER
    at(monkeypatch, RETENTION + SECOND)
    claimed(answers)


def test_what_is_too_old_is_swept(answers: IdempotencyStore, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "SWEEP_BATCH", 3)
    for number in range(7):
        answers.put(claimed(answers, f"old-{number}"), ANSWER)
    with Session(engine) as session, session.begin():
        session.execute(update(AnswerRow).values(expires_at=datetime.now(UTC) - SECOND))
    at(monkeypatch, timedelta(days=365))  # and what was kept before the clock was set back
    answers.put(claimed(answers, "ahead"), ANSWER)
    at(monkeypatch, timedelta())
    answers.put(claimed(answers, "new"), ANSWER)
    assert answers.sweep() == 8
    assert rows(engine) == 1
    assert answers.sweep() == 0
    assert answers.claim("", "new") == ANSWER


def test_one_of_many_threads_answers(answers: IdempotencyStore) -> None:
    found = in_threads([lambda: answers.claim("", "k")] * 12)
    assert sorted(type(one).__name__ for one in found) == ["Claim"] + ["Pending"] * 11


def test_one_of_many_threads_takes_the_place_of_the_dead(
    answers: IdempotencyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_one_of_several_processes_answers(database: Database) -> None:
    assert sorted(in_processes(_claim, [(database.url,)] * 3)) == ["Claim", "Pending", "Pending"]


def test_sweepers_do_not_stand_in_each_others_way(answers: IdempotencyStore, engine: Engine) -> None:
    for number in range(30):
        claimed(answers, str(number))
    with Session(engine) as session, session.begin():
        session.execute(update(AnswerRow).values(expires_at=datetime.now(UTC) - SECOND))
    in_threads([answers.sweep] * 4)
    answers.sweep()
    assert rows(engine) == 0
