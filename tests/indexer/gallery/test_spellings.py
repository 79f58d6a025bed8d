"""External ids in different Unicode normalization forms are one identity, also those stored before."""

from __future__ import annotations

import unicodedata

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from indexer.errors import InvalidRequest
from indexer.gallery.schema import IdentityRow
from indexer.gallery.store import Store
from indexer.types import Gallery, Outcome, Person
from tests.indexer.gallery.faces import enroll_one, new_face

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
FORMS = [COMPOSED, DECOMPOSED]


def respell(store: Store, before: str, after: str) -> None:
    """Stores an identity as versions did that kept every spelling."""
    with Session(store.engine) as session, session.begin():
        session.execute(update(IdentityRow).where(IdentityRow.external_id == before).values(external_id=after))


def test_every_form_names_the_same_new_identity(store: Store, gallery: Gallery) -> None:
    assert store.identities.add_missing(gallery, [Person(DECOMPOSED), Person(COMPOSED)]) == set(FORMS)
    found, created = store.identities.put(gallery.id, Person(DECOMPOSED, "Zoe"))
    assert (found.external_id, created) == (COMPOSED, False)
    enrolled = store.faces.enroll(gallery, [new_face(form, i) for i, form in enumerate(FORMS)])
    assert {one.identity_id for one in enrolled} == {found.id}
    [again] = store.faces.enroll(gallery, [new_face(DECOMPOSED, 0)])
    assert again.outcome is Outcome.UNCHANGED
    assert [one.external_id for one in store.identities.list(gallery.id)] == [COMPOSED]


@pytest.mark.parametrize("given", FORMS, ids=["form C", "form D"])
def test_identity_stored_in_form_d_is_found_by_every_form(store: Store, gallery: Gallery, given: str) -> None:
    enroll_one(store, gallery, new_face(COMPOSED, 1))
    respell(store, COMPOSED, DECOMPOSED)
    stored = store.identities.get(gallery.id, given)
    assert (stored.external_id, stored.faces) == (DECOMPOSED, 1)
    assert store.identities.add_missing(gallery, [Person(given)]) == set()
    assert store.identities.put(gallery.id, Person(given, "Zoe"))[0].id == stored.id
    [enrolled] = store.faces.enroll(gallery, [new_face(given, 2)])
    assert (enrolled.outcome, enrolled.identity_id) == (Outcome.ENROLLED, stored.id)
    assert len(store.faces.list(gallery.id, given)) == 2
    with pytest.raises(InvalidRequest, match="cannot be merged with itself"):
        store.identities.merge(gallery.id, given, DECOMPOSED)
    assert store.identities.delete(gallery.id, given) == 2


def test_identities_stored_in_both_forms_stay_apart_and_can_be_merged(store: Store, gallery: Gallery) -> None:
    store.identities.put(gallery.id, Person("ana"))
    respell(store, "ana", DECOMPOSED)
    store.identities.put(gallery.id, Person("ben"))
    respell(store, "ben", COMPOSED)
    assert [store.identities.get(gallery.id, form).external_id for form in FORMS] == FORMS
    assert store.identities.merge(gallery.id, COMPOSED, DECOMPOSED)[0].external_id == COMPOSED
    assert [one.external_id for one in store.identities.list(gallery.id)] == [COMPOSED]
