"""Who looks like whom: while enrolling, and in a whole gallery."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment import duplicates, reading
from indexer.enrollment.duplicates import Duplicates, find_duplicates
from indexer.enrollment.enroller import Enroller, Result
from indexer.enrollment.lookalikes import Lookalike, Lookalikes, lookalike_bound
from indexer.enrollment.rows import Row
from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Gallery, Outcome, Person, Pick, Reason, ScoreTail, Tier
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import SynchronizedIndex
from indexer.vision.pipeline import FacePipeline, ImageResult
from tests.indexer.gallery.faces import DIM, face, image_hash, vector
from tests.postgres import Database, opened

BOUND = 0.6
PACK = replace(SFACE, dim=DIM)
MAX_BYTES = 1_000_000


def near(person: int, photo: int, cosine: float = 0.9) -> NDArray[np.float32]:
    """What is seen on a photo of a person: at that cosine from `vector(person)`, in a direction of the photo's own."""
    own, aside = vector(person), vector(1000 + photo)
    aside = aside - (aside @ own) * own
    return np.asarray(cosine * own + math.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside), dtype=np.float32)


def new(external_id: str, embedding: NDArray[np.float32], image: int) -> NewFace:
    return NewFace(Person(external_id), image_hash(image), face(embedding))


@pytest.fixture
def store(sqlite_template: Path, tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "truth.db"
    path.write_bytes(sqlite_template.read_bytes())
    with opened(Database("sqlite", f"sqlite:///{path}").url) as store:
        yield store


@pytest.fixture
def gallery(store: Store) -> Gallery:
    return store.galleries.create("staff", PACK.name, PACK.fingerprint, DIM)


def index_of(store: Store, gallery: Gallery, folder: Path, tier: Tier = Tier.EXACT) -> SynchronizedIndex:
    return SynchronizedIndex(store, gallery, folder, FaissEngine(tier))


@pytest.fixture
def index(store: Store, gallery: Gallery, tmp_path: Path) -> SynchronizedIndex:
    return index_of(store, gallery, tmp_path / "indexes")


def alike(found: Sequence[Lookalike | None]) -> list[tuple[str, bool] | None]:
    """Whom each looks like, and whether by a face that is enrolled."""
    return [None if one is None else (one.external_id, one.face_id is not None) for one in found]


# New faces


@pytest.mark.parametrize("tier", [Tier.EXACT, Tier.COMPRESSED])
def test_a_new_person_is_compared_with_who_is_enrolled(
    store: Store, gallery: Gallery, tmp_path: Path, tier: Tier
) -> None:
    [enrolled] = store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    lookalikes = Lookalikes(store, gallery, index_of(store, gallery, tmp_path, tier), BOUND, hold=True)
    [found] = lookalikes.find([new("ana-2", near(1, 2), 2)])
    assert found is not None
    score = float(near(1, 1) @ near(1, 2))
    assert (found.external_id, found.face_id, found.bound) == ("ana", enrolled.face_id, BOUND)
    assert found.score == pytest.approx(score, abs=1e-3)
    assert found.details == {
        "external_id": "ana",
        "face_id": enrolled.face_id,
        "score": round(found.score, 4),
        "bound": BOUND,
    }
    assert "'ana'" in found.message
    assert lookalikes.find([new("ana", near(1, 2), 2), new("ben", vector(2), 3)]) == [None, None]
    assert lookalikes.find([]) == []


def test_what_changed_since_counts(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [None]
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [("ana", True)]
    store.identities.delete(gallery.id, "ana")
    assert alike(lookalikes.find([new("ana-2", near(1, 2), 2)])) == [None]


def test_the_bound_itself_is_alike(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", vector(1), 1)])
    for cosine, expected in ((BOUND + 1e-3, [("ana", True)]), (BOUND - 1e-3, [None])):
        probe = new("ben", near(1, 5, cosine), 2)
        assert alike(Lookalikes(store, gallery, index, BOUND, hold=True).find([probe])) == expected
    exactly = Lookalikes(store, gallery, index, float(vector(1) @ vector(1)), hold=True)
    assert alike(exactly.find([new("ben", vector(1), 2)])) == [("ana", True)]


def test_a_further_photo_is_nobody_else_s_where_it_is_more_like_its_own(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    """Twins, let in once, are not held at each further photo; a photo of the other twin is."""
    own, twin = vector(1), near(1, 7, 0.8)
    store.faces.enroll(gallery, [new("ana", own, 1), new("twin", twin, 2)])
    towards_ana, towards_twin = (v / np.linalg.norm(v) for v in (2 * own + twin, own + 2 * twin))
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert alike(lookalikes.find([new("ana", towards_ana, 3), new("twin", towards_twin, 4)])) == [None, None]
    assert alike(lookalikes.find([new("ana", towards_twin, 3)])) == [("twin", True)]
    assert alike(lookalikes.find([new("twin", towards_ana, 4)])) == [("ana", True)]


def test_own_faces_of_the_same_few_photos_count_as_well(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    """The one before is let in although nobody is enrolled yet; the one after is compared with it too."""
    own, twin = vector(1), near(1, 7, 0.7)
    store.faces.enroll(gallery, [new("twin", twin, 1)])
    between = np.asarray((3 * own + twin) / np.linalg.norm(3 * own + twin), dtype=np.float32)
    lookalikes = Lookalikes(store, gallery, index, 0.75, hold=True)
    assert alike(lookalikes.find([new("ana", between, 3)])) == [("twin", True)]
    assert alike(lookalikes.find([new("ana", own, 2), new("ana", between, 3)])) == [None, None]


@pytest.mark.parametrize("hold", [True, False])
def test_within_the_same_few_photos(store: Store, gallery: Gallery, index: SynchronizedIndex, hold: bool) -> None:
    """The second id of ana is found; her third is as well, and by the second only where that is let in."""
    faces = [
        new("ana", near(1, 1), 1),
        new("ana-2", near(1, 2), 2),
        new("ana-3", near(1, 2, 0.91), 3),
        new("ben", near(2, 3), 4),
    ]
    found = alike(Lookalikes(store, gallery, index, BOUND, hold).find(faces))
    third = "ana" if hold else "ana-2"
    assert found == [None, ("ana", False), (third, False), None]


def test_the_same_image_is_left_to_the_store(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1)])
    lookalikes = Lookalikes(store, gallery, index, BOUND, hold=True)
    assert lookalikes.find([new("ben", near(1, 1), 1)]) == [None]
    assert lookalikes.find([new("cem", near(2, 2), 2), new("dan", near(2, 2), 2)]) == [None, None]


def test_the_bound_follows_the_gallery_and_stays_a_cosine() -> None:
    tail = SFACE.tail
    assert lookalike_bound(SFACE, 0) == lookalike_bound(SFACE, 1000)
    fmr = tail.rate * math.exp(-(lookalike_bound(SFACE, 10) - tail.start) / tail.scale)
    assert fmr == pytest.approx(1e-6, rel=1e-2)
    growing = [lookalike_bound(SFACE, 10**n) for n in range(3, 9)]
    assert growing == sorted(set(growing))
    assert lookalike_bound(replace(SFACE, tail=ScoreTail(0.5, 1e-3, 0.2)), 10**9) == 1
    assert lookalike_bound(replace(SFACE, tail=ScoreTail(0.5, 1e-8, 0.2)), 10) == 0.5


# Enrolling


class Told(FacePipeline):
    """Sees on a photo the face that its bytes tell: `person photo cosine`."""

    def __init__(self) -> None:
        super().__init__(PACK, ModelFiles(Path("nowhere")))

    def load(self) -> None:
        pass

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[ImageResult]:
        return [ImageResult((face(_told(image)),)) for image in images]


def _told(image: bytes) -> NDArray[np.float32]:
    person, photo, cosine = image.split()
    return near(int(person), int(photo), float(cosine))


def row(external_id: str, person: int, photo: int, cosine: float = 0.9) -> Row:
    image = f"{person} {photo} {cosine}"
    return Row(f"{external_id}/{photo}.jpg", Person(external_id), lambda _: image.encode())


def enroll(
    store: Store, gallery: Gallery, index: SynchronizedIndex, rows: Sequence[Row], hold: bool | None
) -> list[Result]:
    lookalikes = None if hold is None else Lookalikes(store, gallery, index, BOUND, hold)
    return list(Enroller(store, Told(), gallery, MAX_BYTES, 3, lookalikes=lookalikes).enroll(rows))


@pytest.mark.parametrize("apart", [1, 40], ids=["in one chunk", "in different chunks"])
def test_one_person_under_two_ids_is_held(store: Store, gallery: Gallery, index: SynchronizedIndex, apart: int) -> None:
    others = [row(f"p{i}", 10 + i, 10 + i) for i in range(apart)]
    results = enroll(store, gallery, index, [row("ana", 1, 1), *others, row("ana-2", 1, 2)], hold=True)
    assert {result.outcome for result in results[:-1]} == {Outcome.ENROLLED}
    held = results[-1]
    assert (held.outcome, held.reason, held.face_id) == (Outcome.REJECTED, Reason.LOOKS_LIKE_ANOTHER_IDENTITY, None)
    assert held.message is not None
    assert f"looks like identity 'ana': cosine {held.details['score']:.3f}, bound 0.600" in held.message
    assert held.details["external_id"] == "ana"
    assert held.details["face_id"] == (results[0].face_id if apart == 40 else None)
    assert store.galleries.counts(gallery.id) == (apart + 1, apart + 1), "nobody is made without a face"
    again = enroll(store, gallery, index, [row("ana", 1, 1), *others, row("ana-2", 1, 2)], hold=True)
    assert {result.outcome for result in again[:-1]} == {Outcome.UNCHANGED}
    assert (again[-1].outcome, again[-1].reason) == (held.outcome, held.reason)


def test_it_is_told_and_let_in_when_that_is_asked_for(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    first, second, further = enroll(
        store, gallery, index, [row("ana", 1, 1), row("ana-2", 1, 2), row("ana-2", 1, 3)], hold=False
    )
    assert (first.outcome, first.message, first.details) == (Outcome.ENROLLED, None, {})
    assert (second.outcome, second.reason) == (Outcome.ENROLLED, None)
    assert second.face_id is not None
    assert second.message is not None
    assert "'ana'" in second.message
    assert second.details["external_id"] == "ana"
    assert further.outcome is Outcome.ENROLLED
    again = enroll(store, gallery, index, [row("ana-2", 1, 2)], hold=False)
    assert [(result.outcome, result.message) for result in again] == [(Outcome.UNCHANGED, None)]


def test_nothing_is_said_where_nobody_asks(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    results = enroll(store, gallery, index, [row("ana", 1, 1), row("ana-2", 1, 2)], hold=None)
    assert [(result.outcome, result.message) for result in results] == [(Outcome.ENROLLED, None)] * 2


def test_what_is_said_with_a_held_photo_does_not_count(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    store.identities.put(gallery.id, Person("ben", "Ben"))
    said = replace(row("ben", 1, 2), person=Person("ben", "Somebody"))
    enroll(store, gallery, index, [row("ana", 1, 1), said], hold=True)
    assert store.identities.get(gallery.id, "ben").name == "Ben"


def test_the_same_image_keeps_its_own_word(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    results = enroll(store, gallery, index, [row("ana", 1, 1), row("ben", 1, 1)], hold=True)
    again = enroll(store, gallery, index, [row("cem", 1, 1)], hold=True)
    for result in (results[1], *again):
        assert result.reason is Reason.LOOKS_LIKE_ANOTHER_IDENTITY
        assert "the same image is enrolled for identity 'ana'" in str(result.message)


def test_workers_in_any_order_come_to_the_same(
    sqlite_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "CHUNK", 3)
    random = np.random.default_rng(3)
    rows = [row(f"p{random.integers(30)}", int(random.integers(12)), i) for i in range(60)]
    outcomes = []
    for workers in (1, 5):
        path = tmp_path / f"{workers}.db"
        path.write_bytes(sqlite_template.read_bytes())
        with opened(f"sqlite:///{path}") as store:
            gallery = store.galleries.create("staff", PACK.name, PACK.fingerprint, DIM)
            lookalikes = Lookalikes(store, gallery, index_of(store, gallery, tmp_path / f"{workers}"), BOUND, hold=True)
            enroller = Enroller(store, Told(), gallery, MAX_BYTES, workers, lookalikes=lookalikes)
            outcomes.append(list(enroller.enroll(rows)))
    assert outcomes[0] == outcomes[1]
    assert len({result.outcome for result in outcomes[0]}) == 2


# Everybody


def brute(faces: Sequence[tuple[str, NDArray[np.float32]]], threshold: float) -> dict[tuple[str, str], float]:
    """The best score of each two identities, by comparing every face with every other."""
    best: dict[tuple[str, str], float] = {}
    for i, (a, one) in enumerate(faces):
        for b, other in faces[i + 1 :]:
            score = float(one.astype(np.float64) @ other.astype(np.float64))
            key = (min(a, b), max(a, b))
            if a != b and score >= threshold:
                best[key] = max(best.get(key, -1), score)
    return best


def told(found: Duplicates) -> dict[tuple[str, str], float]:
    pairs = {}
    for pair in found.pairs:
        a, b = (side.external_id for side in pair.identities)
        pairs[min(a, b), max(a, b)] = pair.score
    assert len(pairs) == len(found.pairs)
    return pairs


@pytest.fixture
def crowd(store: Store, gallery: Gallery) -> list[tuple[str, NDArray[np.float32]]]:
    """Sixty faces of fourteen people under twenty ids, enrolled in any order."""
    random = np.random.default_rng(11)
    owners = random.integers(20, size=60)
    faces = [(f"p{owner:02}", near(int(owner) % 14, i, 0.85)) for i, owner in enumerate(owners)]
    store.faces.enroll(gallery, [new(owner, embedding, i) for i, (owner, embedding) in enumerate(faces)])
    return faces


@pytest.mark.parametrize(
    ("tier", "blocks", "threshold"),
    [
        (Tier.EXACT, (1024, 4096), 0.5),
        (Tier.EXACT, (1024, 4096), -1.0),
        (Tier.EXACT, (7, 28), -1.0),
        (Tier.EXACT, (10, 10), 0.5),
        (Tier.EXACT, (3, 5), 0.5),
        (Tier.COMPRESSED, (16, 32), 0.5),
    ],
)
def test_every_pair_is_found(
    store: Store,
    gallery: Gallery,
    crowd: list[tuple[str, NDArray[np.float32]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tier: Tier,
    blocks: tuple[int, int],
    threshold: float,
) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", blocks[0])
    monkeypatch.setattr(duplicates, "BLOCK_COLUMNS", blocks[1])
    heard: list[tuple[int, int]] = []
    found = find_duplicates(
        store,
        gallery,
        index_of(store, gallery, tmp_path, tier),
        threshold,
        lambda done, total: heard.append((done, total)),
    )
    expected = brute(crowd, threshold)
    assert (found.faces, found.exact, found.complete, found.threshold) == (60, True, True, threshold)
    assert heard[-1] == (60, 60)
    assert found.pairs, "or nothing is tested"
    assert told(found) == pytest.approx(expected, abs=2e-3)
    assert [pair.score for pair in found.pairs] == sorted((pair.score for pair in found.pairs), reverse=True)
    for pair in found.pairs[:10]:
        one, other = (store.faces.get(gallery.id, side.face_id) for side in pair.identities)
        a, b = (store.embeddings.of_faces(gallery, [f.id]).vectors[0] for f in (one, other))
        assert float(a @ b) == pytest.approx(pair.score, abs=2e-3)
        people = [store.identities.get(gallery.id, side.external_id) for side in pair.identities]
        assert [p.id for p in people] == [one.identity_id, other.identity_id]
        assert people[0].id < people[1].id


def test_the_nearest_of_each_find_the_same(
    store: Store,
    gallery: Gallery,
    crowd: list[tuple[str, NDArray[np.float32]]],
    index: SynchronizedIndex,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every = find_duplicates(store, gallery, index, 0.5)
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 59)
    monkeypatch.setattr(duplicates, "BLOCK_ROWS", 16)
    nearest = find_duplicates(store, gallery, index, 0.5)
    assert not nearest.exact
    assert nearest.faces == 60
    assert told(nearest) == pytest.approx(told(every), abs=1e-5)
    assert nearest.wrong_photos == pytest.approx(every.wrong_photos)


@pytest.mark.parametrize("most", [1, 5, 20])
def test_of_too_many_pairs_the_best_are_told(
    store: Store,
    gallery: Gallery,
    crowd: list[tuple[str, NDArray[np.float32]]],
    index: SynchronizedIndex,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    whole = find_duplicates(store, gallery, index, -1)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", most)
    for block in (1024, 8):
        monkeypatch.setattr(duplicates, "BLOCK_ROWS", block)
        monkeypatch.setattr(duplicates, "BLOCK_COLUMNS", block)
        found = find_duplicates(store, gallery, index, -1)
        assert not found.complete
        assert [p.identities for p in found.pairs] == [p.identities for p in whole.pairs[:most]]


@pytest.mark.parametrize("all_pairs", [100, 0], ids=["every pair", "the nearest"])
def test_a_wrong_photo_is_told_from_one_person_under_two_ids(
    store: Store, gallery: Gallery, index: SynchronizedIndex, monkeypatch: pytest.MonkeyPatch, all_pairs: int
) -> None:
    """Ana has a photo of ben, which is hers by mistake; cem and cem-2 are one person, whose photos are all right; dan's
    only photo is of ben, and nobody can tell whose id is wrong."""
    monkeypatch.setattr(duplicates, "ALL_PAIRS", all_pairs)
    people = [("ana", 1), ("ana", 1), ("ana", 2), ("ben", 2), ("ben", 2), ("cem", 3), ("cem", 3)]
    people += [("cem-2", 3), ("cem-2", 3), ("dan", 2)]
    enrolled = store.faces.enroll(gallery, [new(who, near(seen, i), i) for i, (who, seen) in enumerate(people)])
    found = find_duplicates(store, gallery, index, BOUND)
    [wrong] = found.wrong_photos
    assert (wrong.face.external_id, wrong.face.face_id) == ("ana", enrolled[2].face_id)
    assert wrong.looks_like.external_id in ("ben", "dan")
    assert wrong.own_score < BOUND <= wrong.score
    assert {p.identities[0].external_id + " " + p.identities[1].external_id for p in found.pairs} == {
        "ana ben",
        "ana dan",
        "ben dan",
        "cem cem-2",
    }


def test_nobody_and_one_alone_have_no_duplicates(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    assert find_duplicates(store, gallery, index, 0.5) == Duplicates(0.5, 0, True, True, (), ())
    store.faces.enroll(gallery, [new("ana", vector(1), 1)])
    assert find_duplicates(store, gallery, index, -1) == Duplicates(-1, 1, True, True, (), ())
    store.faces.enroll(gallery, [new("ana", near(1, 2), 2)])
    assert find_duplicates(store, gallery, index, -1) == Duplicates(-1, 2, True, True, (), ())


def test_merging_what_was_found_leaves_nothing(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1), new("ana-2", near(1, 2), 2), new("ben", vector(2), 3)])
    [pair] = find_duplicates(store, gallery, index, BOUND).pairs
    into, other = (side.external_id for side in pair.identities)
    assert (into, other) == ("ana", "ana-2")
    store.identities.merge(gallery.id, into, other)
    assert find_duplicates(store, gallery, index, BOUND).pairs == ()
