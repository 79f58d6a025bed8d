"""A compressed index finds what exact search finds, after any changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.vectors import compressed, gpu, mapped_file, self_check
from indexer.vectors.flat import build_flat_index
from indexer.vectors.mapped_file import MappedFile
from indexer.vectors.product_codes import ProductCodeScan
from tests.indexer.gallery.together import in_threads
from tests.indexer.vectors.compressed_faces import (
    DIM,
    at_cosine,
    build_index,
    faces_of,
    ids,
    random_units,
)
from tests.indexer.vectors.compressed_faces import file as file
from tests.indexer.vectors.compressed_faces import people as people


def test_hits_equal_those_of_exact_search(people: FaceVectors, file: Path) -> None:
    index = compressed.open_index(mapped_file.read(file))
    exact = build_flat_index(DIM, [people], None)
    rows = np.random.default_rng(3).choice(len(people.face_ids), 1000, replace=False)
    probes = at_cosine(people.vectors[rows], 0.6, 4)
    for row, found, right in zip(
        rows, index.nearest_identities(probes, 5), exact.nearest_identities(probes, 5), strict=True
    ):
        assert found[0].identity_id == people.identity_ids[row]
        above = [hit for hit in right if hit.score > 0.45]  # that could be above a threshold
        assert ids(found)[: len(above)] == ids(above)
        assert [hit.face_id for hit in found[: len(above)]] == [hit.face_id for hit in above]
        assert [hit.score for hit in found[: len(above)]] == pytest.approx([hit.score for hit in above], abs=1e-4 * 5)
    own = index.nearest_faces(people.vectors[rows], 3)
    assert [hits[0].face_id for hits in own] == people.face_ids[rows].tolist()


def test_half_precision_changes_scores_by_less_than_1e_4(people: FaceVectors) -> None:
    some, probes = people.vectors[:2000], random_units(100, DIM, 9)
    moved = np.abs(probes @ some.T - probes @ some.astype(np.float16).astype(np.float32).T)
    assert 0 < moved.max() < 1e-4


@pytest.mark.parametrize("later", [False, True], ids=["in the file", "added later"])
def test_person_with_thousands_of_photos_hides_no_other(
    tmp_path: Path, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The expected person ranks behind five thousand photos of another."""
    monkeypatch.setattr(self_check, "MATED_PROBES", 100)
    probe = random_units(1, 64, 1)
    others = random_units(8000, 64, 2)
    crowd = at_cosine(np.repeat(probe, 5000, axis=0), 0.9, 3)
    mates = np.concatenate([at_cosine(probe, cosine, 10 + i) for i, cosine in enumerate((0.8, 0.75, 0.7, 0.65))])
    vectors = np.concatenate([others, mates, crowd])
    owners = np.concatenate([np.arange(1, 8001), [9001, 9002, 9003, 9004], np.full(5000, 9000)])
    first = 8004 if later else len(vectors)
    index = build_index(tmp_path, faces_of(vectors[:first], owners[:first]))
    if later:
        rest = faces_of(vectors[first:], owners[first:], first + 1)
        index.put(rest.face_ids, rest.identity_ids, rest.vectors)
    for k in (1, 2, 3, 5):
        [found] = index.nearest_identities(probe, k)
        assert ids(found) == [9000, 9001, 9002, 9003, 9004][:k]
        best = int((crowd.astype(np.float16).astype(np.float32) @ probe[0]).argmax())
        assert found[0].face_id == 8005 + best or found[0].score == pytest.approx(0.9, abs=1e-3)
    [found] = index.nearest_faces(probe, 5004)
    assert ids(found).count(9000) == 5000
    assert ids(found)[5000:] == [9001, 9002, 9003, 9004]


@pytest.mark.parametrize("gone", [False, True], ids=["of one person", "removed"])
def test_rows_of_one_person_or_removed_rows_hide_no_other(
    tmp_path: Path, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other people are among the rescored rows, but not the next best one."""
    monkeypatch.setattr(self_check, "MATED_PROBES", 100)
    probes = random_units(20, 128, 1)
    crowds = at_cosine(np.repeat(probes, 250, axis=0), 0.9, 2)
    vectors = np.concatenate([crowds, random_units(8000, 128, 3)])
    owners = np.concatenate([np.repeat(np.arange(1, 21), 250), np.arange(101, 8101)])
    index, exact = (
        build_index(tmp_path, faces_of(vectors, owners)),
        build_flat_index(128, [faces_of(vectors, owners)], None),
    )
    assert index.rescored == 256
    if gone:
        for either in (index, exact):
            either.remove(list(range(1, 5001)))
    k = 1 if gone else 2
    for found, right in zip(index.nearest_identities(probes, k), exact.nearest_identities(probes, k), strict=True):
        assert ids(found) == ids(right)


def test_removed_rows_near_the_probe_hide_no_other(tmp_path: Path) -> None:
    """Removed rows stay in the codes until the next build and are found by the scan."""
    probe = random_units(1, 64, 1)
    crowd = at_cosine(np.repeat(probe, 300, axis=0), 0.9, 3)
    vectors = np.concatenate([random_units(5000, 64, 2), crowd, at_cosine(probe, 0.6, 4)])
    index = build_index(tmp_path, faces_of(vectors))
    index.remove(list(range(5001, 5301)))
    assert len(index) == 5001
    assert ids(index.nearest_identities(probe, 1)[0]) == [5301]
    assert ids(index.nearest_faces(probe, 1)[0]) == [5301]
    again = faces_of(crowd, first=6001)
    index.put(again.face_ids, again.identity_ids, again.vectors)
    index.remove(again.face_ids.tolist())
    assert ids(index.nearest_identities(probe, 1)[0]) == [5301]
    assert sorted(index.face_ids().tolist()) == [*range(1, 5001), 5301]


def test_index_is_outgrown_after_many_additions_or_removals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "MIN_CHANGED_ROWS", 20)
    index = build_index(tmp_path, faces_of(random_units(400, 16, 1)))
    more = faces_of(random_units(26, 16, 2), first=1001)
    index.put(more.face_ids[:25], more.identity_ids[:25], more.vectors[:25])  # a sixteenth
    assert not index.is_outgrown
    index.put(more.face_ids[25:], more.identity_ids[25:], more.vectors[25:])
    assert index.is_outgrown
    index = build_index(tmp_path, faces_of(random_units(400, 16, 1)))
    index.remove(list(range(1, 81)))  # a fifth
    assert not index.is_outgrown
    index.remove([81])
    assert index.is_outgrown
    index = compressed.open_index(mapped_file.read(tmp_path / "1.index"))
    assert index.is_outgrown
    assert len(index) == 319
    assert sorted(index.erased_face_ids().tolist()) == list(range(1, 82))


def test_hundred_thousand_single_additions_equal_a_new_build(tmp_path: Path) -> None:
    """Searches and removals happen in between."""
    dim, first, rng = 16, 2000, np.random.default_rng(1)
    total = first + 100_000
    vectors, owners = random_units(total, dim, 2), rng.integers(1, 40_000, total)
    index = build_index(tmp_path, faces_of(vectors[:first], owners[:first]))
    there = np.zeros(total, np.bool_)
    there[:first] = True
    for i in range(first, total):
        index.put(np.array([i + 1]), owners[i : i + 1], vectors[i : i + 1])
        there[i] = True
        if i % 5 == 0:
            gone = int(rng.integers(0, i))
            index.remove([gone + 1])
            there[gone] = False
        if i % 1000 == 0:
            probe = int(rng.integers(0, i))
            [[hit]] = index.nearest_faces(vectors[probe : probe + 1], 1)
            assert (hit.face_id == probe + 1) == there[probe]
    rows = np.flatnonzero(there)
    assert len(index) == len(rows)
    assert index.face_ids().tolist() == (rows + 1).tolist()
    face_ids, identity_ids, kept = index.contents()
    order = np.argsort(face_ids)
    assert identity_ids[order].tolist() == owners[rows].tolist()
    assert (kept[order] == vectors[rows].astype(np.float16)).all()
    (tmp_path / "fresh").mkdir()
    fresh = build_index(tmp_path / "fresh", FaceVectors(rows + 1, owners[rows], vectors[rows]))
    probes = at_cosine(vectors[rows[:: len(rows) // 100]], 0.9, 3)
    for one, other in zip(index.nearest_identities(probes, 3), fresh.nearest_identities(probes, 3), strict=True):
        assert [(hit.identity_id, hit.face_id) for hit in one] == [(hit.identity_id, hit.face_id) for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-6)


def test_searches_are_correct_while_faces_change(tmp_path: Path) -> None:
    """Faces that stay are always found, removed ones never, and every score is correct."""
    stay, move = random_units(2000, 32, 1), random_units(300, 32, 2)
    moved = faces_of(move, first=5001)
    index = build_index(tmp_path, faces_of(np.concatenate([stay, random_units(300, 32, 3)])))
    done = threading.Event()
    searched = [0]

    def change() -> None:
        try:
            for _ in range(3):
                for start in range(0, 300, 10):
                    part = slice(start, start + 10)
                    index.put(moved.face_ids[part], moved.identity_ids[part], moved.vectors[part])
                    index.remove(list(range(2001 + start, 2011 + start)))
                index.remove(moved.face_ids.tolist())
        finally:
            done.set()

    def search(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not done.is_set():
            row = int(rng.integers(0, 2000))
            [hits] = index.nearest_identities(stay[row : row + 1], 2)
            assert (hits[0].identity_id, hits[0].face_id) == (row + 1, row + 1)
            row = int(rng.integers(0, 300))
            [hits] = index.nearest_identities(move[row : row + 1], 2)
            for hit in hits:
                vector = stay[hit.face_id - 1] if hit.face_id <= 2000 else None
                if hit.face_id > 5000:
                    vector = move[hit.face_id - 5001]
                assert hit.identity_id == hit.face_id
                if vector is not None:
                    assert hit.score == pytest.approx(float(move[row] @ vector), abs=5e-4)
            searched[0] += 1

    in_threads([change, *(lambda s=s: search(s) for s in range(8))])
    assert searched[0] > 8
    assert index.face_ids().tolist() == list(range(1, 2001))


class ExactScan:
    """Finds the best rows by the vectors themselves, at most `most` of them."""

    most = 10**9

    def __init__(self, base: MappedFile) -> None:
        self._rows = base.vectors.astype(np.float32)

    def add(self, vectors: NDArray[np.float32]) -> None:
        self._rows = np.concatenate([self._rows, vectors])

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        rows = np.argsort(-(queries @ self._rows.T), axis=1)[:, : min(count, self.most)]
        return np.asarray(rows, dtype=np.int64)


class ShortScan(ExactScan):
    """Returns few rows, as a GPU returns at most 2,048."""

    most = 300


@pytest.mark.parametrize("scan", [ProductCodeScan, ExactScan, ShortScan, gpu.GpuScan])
def test_every_scan_gives_the_same_answers(
    tmp_path: Path, scan: Callable[[MappedFile], compressed.CandidateScan]
) -> None:
    if scan is gpu.GpuScan and (problem := gpu.unavailable_reason()):
        pytest.skip(problem)
    vectors, owners = random_units(3000, 48, 1), np.random.default_rng(2).integers(1, 1500, 3000)
    index = build_index(tmp_path, faces_of(vectors[:2000], owners[:2000]), scan)
    rest = faces_of(vectors[2000:], owners[2000:], 2001)
    index.put(rest.face_ids, rest.identity_ids, rest.vectors)
    gone = list(range(1, 3000, 7))
    index.remove(gone)
    exact = build_flat_index(48, [faces_of(vectors, owners)], None)
    exact.remove(gone)
    probes = at_cosine(vectors[1::50], 0.7, 3)
    for found, right in zip(index.nearest_identities(probes, 2), exact.nearest_identities(probes, 2), strict=True):
        assert found[0].identity_id == right[0].identity_id
        assert found[0].score == pytest.approx(right[0].score, abs=5e-4)
    assert [len(hits) for hits in index.nearest_identities(probes[:2], 1400)] == [
        len(hits) for hits in exact.nearest_identities(probes[:2], 1400)
    ]
    assert [ids(hits) for hits in index.nearest_faces(probes[:2], 4000)] != []
    assert [len(hits) for hits in index.nearest_faces(probes[:2], 4000)] == [len(exact)] * 2


def test_precise_scan_with_few_rows_does_not_rescore_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It returns fewer rows than a scan of codes needs, and that is enough."""
    monkeypatch.setattr(self_check, "MIN_RESCORED", 4)
    monkeypatch.setattr(self_check, "MATED_PROBES", 100)
    monkeypatch.setattr(ShortScan, "most", 8)
    vectors = random_units(20_000, 16, 1)
    index = build_index(tmp_path, faces_of(vectors), ShortScan)
    assert compressed.open_index(index.base).rescored == 20
    scored: list[int] = []
    pick = index._vectors

    def picked(rows: NDArray[np.int64]) -> mapped_file.Float16Vectors:
        scored.append(len(rows))
        return pick(rows)

    monkeypatch.setattr(index, "_vectors", picked)
    assert ids(index.nearest_identities(vectors[7:8], 1)[0]) == [8]
    assert max(scored) <= 8


def test_damaged_vector_marks_the_index_as_damaged(tmp_path: Path) -> None:
    vectors = random_units(500, 16, 1)
    path = tmp_path / "1.index"
    compressed.build(path, 16, [faces_of(vectors)], {})
    data = bytearray(path.read_bytes())
    data[7 * 32 + 3] ^= 4
    path.write_bytes(data)
    index = compressed.open_index(mapped_file.read(path))
    assert not index.is_damaged
    with pytest.raises(StorageUnavailable, match=r"the embedding of face 8; the index is being rebuilt, try again"):
        index.nearest_identities(vectors[7:8], 1)
    assert index.is_damaged
    index = compressed.open_index(mapped_file.read(path))
    index.remove([8])  # erased rows are not verified
    assert ids(index.nearest_identities(vectors[8:9], 1)[0]) == [9]
    assert not index.is_damaged


def test_removed_face_is_erased_from_a_later_file_of_another_process(tmp_path: Path) -> None:
    """A later file may have replaced the mapped one and contain faces that were added since."""
    vectors = random_units(600, 16, 1)
    index = build_index(tmp_path, faces_of(vectors[:500]))
    rest = faces_of(vectors[500:], first=501)
    index.put(rest.face_ids, rest.identity_ids, rest.vectors)
    path = tmp_path / "1.index"
    compressed.build(path, 16, [faces_of(vectors)], {})
    code = mapped_file.read(path).codes[549].tobytes()
    index.remove([5, 550])
    data = path.read_bytes()
    for row in (4, 549):
        assert vectors[row].astype(np.float16).tobytes() not in data
    assert code not in data
    assert mapped_file.read(path).is_present().sum() == 598
    path.unlink()
    path.mkdir()  # not a file
    index.remove([6])
    assert len(index) == 597


def test_replaced_face_stays_in_a_later_file_of_another_process(tmp_path: Path) -> None:
    vectors = random_units(100, 16, 1)
    index = build_index(tmp_path, faces_of(vectors[:50]))
    compressed.build(tmp_path / "1.index", 16, [faces_of(vectors)], {})
    rest = faces_of(vectors[50:], first=51)
    index.put(rest.face_ids, rest.identity_ids, rest.vectors)
    assert mapped_file.read(tmp_path / "1.index").is_present().all()
