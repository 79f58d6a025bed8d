"""Which identities of an index's hits are returned, and why a better one is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from indexer.types import Hit, Identity, NamedIdentity
from search_service.matching.ranking import Barred, Candidate, Outranked, outranked, rank

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)

HITS = [Hit(1, 10, 0.9), Hit(2, 20, 0.8), Hit(3, 30, 0.7), Hit(4, 40, 0.6)]


def named(number: int) -> NamedIdentity:
    return NamedIdentity(number, f"e-{number}", None, {}, 1)


def identity(number: int, valid_from: datetime | None = None, valid_until: datetime | None = None) -> Identity:
    return Identity(number, f"e-{number}", None, {}, valid_from, valid_until, 1, NOON, NOON)


EXPIRED, EARLY = identity(2, valid_until=NOON), identity(2, valid_from=NOON + SECOND)


def test_ranks_follow_the_order_of_hits() -> None:
    assert rank(HITS[:2], {i: named(i) for i in (1, 2)}, 10) == (
        Candidate(1, named(1), 0.9, 10),
        Candidate(2, named(2), 0.8, 20),
    )


def test_identities_that_are_not_valid_are_left_out_without_a_gap() -> None:
    people = {i: named(i) for i in (2, 4)}
    ranked = rank(iter(HITS), people, 5)
    assert ranked == (Candidate(1, named(2), 0.8, 20), Candidate(2, named(4), 0.6, 40))
    assert rank(HITS, people, 1) == ranked[:1]
    assert rank(HITS, {}, 5) == rank([], people, 5) == ()


@pytest.mark.parametrize(
    ("hits", "others", "expected"),
    [
        (HITS, {2: EXPIRED}, Outranked(Barred.EXPIRED, 0.8)),
        (HITS, {2: EARLY}, Outranked(Barred.NOT_YET_VALID, 0.8)),
        (HITS, {2: EARLY, 1: identity(1, valid_until=NOON)}, Outranked(Barred.EXPIRED, 0.9)),
        (HITS, {4: identity(4, valid_until=NOON)}, None),
        (HITS, {}, None),
        ([], {2: EXPIRED}, None),
    ],
    ids=["expired", "not yet valid", "the best of two", "below a valid one", "deleted", "no hits"],
)
def test_best_hit_outranks_unless_it_was_deleted(
    hits: list[Hit], others: dict[int, Identity], expected: Outranked | None
) -> None:
    assert outranked(hits, {3: named(3)}, others, NOON) == expected


@pytest.mark.parametrize(
    ("person", "barred"),
    [
        (identity(2, valid_until=NOON), Barred.EXPIRED),
        (identity(2, valid_until=NOON + SECOND), None),
        (identity(2, valid_from=NOON), None),
        (identity(2, valid_from=NOON + SECOND), Barred.NOT_YET_VALID),
        (identity(2, NOON - SECOND, NOON), Barred.EXPIRED),
        (identity(2), None),  # it changed between two queries
    ],
)
def test_identity_is_valid_from_the_first_moment_and_before_the_last(person: Identity, barred: Barred | None) -> None:
    """The same as in `Store.valid_identities`."""
    assert outranked([HITS[1]], {}, {2: person}, NOON) == (Outranked(barred, 0.8) if barred else None)
