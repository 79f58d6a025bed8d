"""One photo to enroll."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.enrollment.containers import Reader, printable
from indexer.errors import InvalidRequest, RejectedImage
from indexer.gallery.spelling import is_same_text
from indexer.gallery.validation import check_person
from indexer.types import Person, Reason


@dataclass(frozen=True)
class Row:
    """A photo and whom it shows. `image` is its name for people; `read` raises RejectedImage for invalid rows too."""

    image: str
    person: Person
    read: Reader
    stem: str | None = None
    """The whole stem of the file's name, if the identity is only a guess from it: `ana` for `ana_1.jpg`."""

    def is_enrolled_for(self, external_id: str) -> bool:
        """Returns whether an identity is the one of this row: the person's, or the one of the whole stem, which
        versions that did not group such photos have enrolled."""
        return any(is_same_text(one, external_id) for one in (self.person.external_id, self.stem) if one is not None)


def checked_row(image: str, person: Person, read: Reader, stem: str | None = None) -> Row:
    """Returns the row, or an invalid one if the person is invalid."""
    try:
        check_person(person)
    except InvalidRequest as error:
        return invalid_row(image, person.external_id, error.message, Reason.INVALID_ROW)
    return Row(printable(image), person, read, stem)


def invalid_row(image: str, external_id: str, message: str, reason: Reason) -> Row:
    """Returns a row whose photo is rejected when it is read."""
    rejection = RejectedImage(message, code=reason)

    def read(limit: int) -> bytes:
        raise rejection

    return Row(printable(image), Person(printable(external_id)), read)
