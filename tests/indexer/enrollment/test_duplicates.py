"""Identities of a gallery that look alike, and photos that look like another identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment import duplicates
from indexer.enrollment.duplicates import Duplicates, find_duplicates
from indexer.gallery.store import Store
from indexer.types import Gallery, Tier
from indexer.vectors.synchronizer import SynchronizedIndex
from tests.indexer.enrollment.similar_faces import BOUND, index_of, near, new
from tests.indexer.gallery.faces import vector


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


def best_scores(faces: Sequence[tuple[str, NDArray[np.float32]]], threshold: float) -> dict[tuple[str, str], float]:
    """Returns the best score of each pair of identities, by comparing every pair of faces."""
    best: dict[tuple[str, str], float] = {}
    for i, (a, one) in enumerate(faces):
        for b, other in faces[i + 1 :]:
            score = float(one.astype(np.float64) @ other.astype(np.float64))
            key = (min(a, b), max(a, b))
            if a != b and score >= threshold:
                best[key] = max(best.get(key, -1), score)
    return best


def summarize(found: Duplicates) -> dict[tuple[str, str], float]:
    pairs = {}
    for pair in found.pairs:
        a, b = (side.external_id for side in pair.identities)
        pairs[min(a, b), max(a, b)] = pair.score
    assert len(pairs) == len(found.pairs)
    return pairs


@pytest.fixture
def crowd(store: Store, gallery: Gallery) -> list[tuple[str, NDArray[np.float32]]]:
    """Sixty faces of fourteen people under twenty ids, in random order."""
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
def test_every_pair_above_the_threshold_is_found(
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
    expected = best_scores(crowd, threshold)
    assert (found.faces, found.exact, found.complete, found.threshold) == (60, True, True, threshold)
    assert heard[-1] == (60, 60)
    assert found.pairs, "the test needs at least one pair"
    assert summarize(found) == pytest.approx(expected, abs=2e-3)
    assert [pair.score for pair in found.pairs] == sorted((pair.score for pair in found.pairs), reverse=True)
    for pair in found.pairs[:10]:
        one, other = (store.faces.get(gallery.id, side.face_id) for side in pair.identities)
        a, b = (store.embeddings.of_faces(gallery, [f.id]).vectors[0] for f in (one, other))
        assert float(a @ b) == pytest.approx(pair.score, abs=2e-3)
        people = [store.identities.get(gallery.id, side.external_id) for side in pair.identities]
        assert [p.id for p in people] == [one.identity_id, other.identity_id]
        assert people[0].id < people[1].id


def test_nearest_neighbors_find_the_same_pairs(
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
    assert summarize(nearest) == pytest.approx(summarize(every), abs=1e-5)
    assert nearest.wrong_photos == pytest.approx(every.wrong_photos)


@pytest.mark.parametrize("most", [1, 5, 20])
def test_only_the_best_pairs_are_returned(
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
def test_wrong_photo_is_distinguished_from_one_person_under_two_ids(
    store: Store, gallery: Gallery, index: SynchronizedIndex, monkeypatch: pytest.MonkeyPatch, all_pairs: int
) -> None:
    """Ana has a photo of ben by mistake; cem and cem-2 are one person with correct photos; dan's only photo shows ben,
    and it is unknown which id is wrong."""
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


@pytest.mark.parametrize("all_pairs", [100, 0], ids=["every pair", "the nearest"])
def test_faces_unlike_their_own_identity_are_outliers(
    store: Store, gallery: Gallery, index: SynchronizedIndex, monkeypatch: pytest.MonkeyPatch, all_pairs: int
) -> None:
    """Ana has a photo of somebody who is not enrolled; of the two photos of cem, either may be the wrong one."""
    monkeypatch.setattr(duplicates, "ALL_PAIRS", all_pairs)
    monkeypatch.setattr(duplicates, "BLOCK_COLUMNS", 3)
    people = [("ana", 1), ("ana", 1), ("ana", 2), ("ben", 3), ("cem", 4), ("cem", 5), ("dan", 6), ("dan", 6)]
    faces = [new(who, near(seen, i), i) for i, (who, seen) in enumerate(people)]
    enrolled = [one.face_id for one in store.faces.enroll(gallery, faces)]
    found = find_duplicates(store, gallery, index, BOUND, own_bound=BOUND)
    assert found.wrong_photos == ()
    assert {odd.face.face_id for odd in found.outliers} == {enrolled[2], enrolled[4], enrolled[5]}
    assert {odd.face.external_id for odd in found.outliers} == {"ana", "cem"}
    scores = [odd.own_score for odd in found.outliers]
    assert scores == sorted(scores)
    assert scores[-1] < BOUND


def test_empty_gallery_and_single_identity_have_no_duplicates(
    store: Store, gallery: Gallery, index: SynchronizedIndex
) -> None:
    assert find_duplicates(store, gallery, index, 0.5) == Duplicates(0.5, 0, True, True, (), ())
    store.faces.enroll(gallery, [new("ana", vector(1), 1)])
    assert find_duplicates(store, gallery, index, -1) == Duplicates(-1, 1, True, True, (), ())
    store.faces.enroll(gallery, [new("ana", near(1, 2), 2)])
    assert find_duplicates(store, gallery, index, -1) == Duplicates(-1, 2, True, True, (), ())


def test_merging_a_found_pair_leaves_no_duplicates(store: Store, gallery: Gallery, index: SynchronizedIndex) -> None:
    store.faces.enroll(gallery, [new("ana", near(1, 1), 1), new("ana-2", near(1, 2), 2), new("ben", vector(2), 3)])
    [pair] = find_duplicates(store, gallery, index, BOUND).pairs
    into, other = (side.external_id for side in pair.identities)
    assert (into, other) == ("ana", "ana-2")
    store.identities.merge(gallery.id, into, other)
    assert find_duplicates(store, gallery, index, BOUND).pairs == ()
