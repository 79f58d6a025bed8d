"""The open-set protocol on labelled photos: which photos are enrolled, and which are searched.

Of each person with two or more photos, the first K by name are enrolled, or all but one if there are fewer. The other
photos of people with more than K are searched: these are the mated probes. People with one photo are strangers. If they
are fewer than LEAST_STRANGERS, everyone who is searched is also a stranger to the others: their own identity is then
ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from indexer.enrollment.rows import Row
from indexer.errors import InvalidRequest
from indexer.types import Person, Pick

LEAST_STRANGERS = 50
"""People with one photo from which on they are the only strangers: they support an FPIR of 10 %."""


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation. `pick` None takes the defaults of the commands. Raises InvalidRequest."""

    photos: int = 1
    """Photos of each person to enroll."""
    pick: Pick | None = None
    draws: int = 1000
    """Bootstrap draws for the intervals."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.photos < 1:
            raise InvalidRequest(f"photos is {self.photos}; expected the photos enrolled of a person, 1 or more")
        if self.draws < 100:
            raise InvalidRequest(f"draws is {self.draws}; expected 100 or more, or the intervals mean nothing")
        if self.seed < 0:
            raise InvalidRequest(f"seed is {self.seed}; expected 0 or more")

    @property
    def enrolling(self) -> Pick:
        return self.pick or Pick.ONLY

    @property
    def searching(self) -> Pick:
        return self.pick or Pick.LARGEST


@dataclass(frozen=True, eq=False)
class Split:
    """The photos by their use."""

    enrolled: tuple[Row, ...]
    mated: tuple[Row, ...]
    strangers: tuple[Row, ...]
    """Of people with one photo."""
    unlabelled: int = 0
    """Rows that do not name a person."""


def split(rows: Sequence[Row], photos: int) -> Split:
    """Splits labelled photos; `photos` of each person are enrolled. Raises InvalidRequest if nobody can be searched."""
    if not rows:
        raise InvalidRequest("the given paths hold no photos; expected a folder of folders, one for each person")
    people: dict[str, list[Row]] = {}
    for row in rows:
        # Validity dates are not evaluated: an expired person would count as missed.
        person = Person(row.person.external_id, row.person.name)
        people.setdefault(person.external_id, []).append(replace(row, person=person))
    unlabelled = len(people.pop("", []))
    enrolled: list[Row] = []
    mated: list[Row] = []
    strangers: list[Row] = []
    for own in people.values():
        if len(own) == 1:
            strangers += own
        else:
            enrolled += own[: min(photos, len(own) - 1)]
            mated += own[photos:]
    if len(people) < 2:
        raise InvalidRequest(
            f"the {len(rows):,} photos are of {len(people)} person by their folders or names; expected a folder of "
            "folders, one for each person: give the folder that contains those"
        )
    if not mated:
        raise InvalidRequest(
            f"of {len(people):,} people, none has more than {photos} photo{'s' * (photos > 1)}: there is nobody to "
            "search for; expected several photos of some people, in a folder for each"
        )
    return Split(tuple(enrolled), tuple(mated), tuple(strangers), unlabelled)
