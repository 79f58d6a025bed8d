"""Tests of the checks and the serialization of embeddings, and of boxes and detections."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from decimal import Decimal

import numpy as np
import pytest
from numpy.typing import ArrayLike

from indexer.errors import InvalidRequest, InvalidVector, WhosthereError
from indexer.types import (
    UNIT_TOLERANCE,
    Box,
    Detection,
    check_vectors,
    normalize,
    sha256,
    vector_to_bytes,
    vectors_from_bytes,
)

UNIT = [0.6, 0.0, -0.8]


@pytest.mark.parametrize(
    "values",
    [
        UNIT,
        tuple(UNIT),
        [UNIT],
        np.array(UNIT, dtype=np.float64),
        np.array(UNIT, dtype=np.float32),
        np.array(UNIT, dtype=np.float16),
        np.array(UNIT, dtype=">f4"),
        np.array(UNIT, dtype=">f8"),
        [np.float32(value) for value in UNIT],
    ],
    ids=lambda values: f"{type(values).__name__}-{getattr(values, 'dtype', '')}",
)
def test_one_vector_becomes_one_row(values: ArrayLike) -> None:
    found = check_vectors(values, 3)
    assert found.shape == (1, 3)
    assert found.dtype == np.dtype("=f4")
    assert found.flags.c_contiguous
    assert found[0] == pytest.approx(UNIT, abs=5e-4)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8, np.uint64])
def test_integer_vectors_are_accepted(dtype: type[np.generic]) -> None:
    assert check_vectors(np.array([0, 1, 0], dtype=dtype), 3).tolist() == [[0.0, 1.0, 0.0]]
    assert check_vectors([0, -1, 0], 3).tolist() == [[0.0, -1.0, 0.0]]


def test_any_memory_layout_becomes_contiguous() -> None:
    rows = np.eye(4, dtype=np.float32)[:, ::-1]
    for odd in (rows, np.asfortranarray(rows), np.repeat(rows, 2, axis=0)[::2], np.repeat(rows, 2, axis=1)[:, ::2]):
        found = check_vectors(odd, 4)
        assert found.flags.c_contiguous
        assert np.array_equal(found, np.eye(4)[::-1])


def test_check_vectors_does_not_modify_its_argument() -> None:
    given = np.array([[1.0005, 0.0]], dtype=np.float32)
    given.flags.writeable = False
    found = check_vectors(given, 2)
    assert found.tolist() == [[1.0, 0.0]]
    assert given[0, 0] == np.float32(1.0005)
    writable = np.array([[1.0, 0.0]], dtype=np.float32)
    check_vectors(writable, 2)[0, 0] = 5
    assert writable[0, 0] == 1


def test_no_vectors_become_no_rows() -> None:
    assert check_vectors(np.empty((0, 3)), 3).shape == (0, 3)


BAD: list[tuple[object, str]] = [
    ([], "must have 3 numbers"),
    ([[]], "must have 3 numbers"),
    (1.0, "must have 3 numbers"),
    ([1.0, 0.0], "must have 3 numbers"),
    ([1.0, 0.0, 0.0, 0.0], "must have 3 numbers"),
    (np.zeros((1, 1, 3)), r"must have 3 numbers; got an array of shape \(1, 1, 3\)"),
    (np.zeros((3, 1)), "must have 3 numbers"),
    ([[1.0, 0.0, 0.0], [1.0, 0.0]], "must be 3 numbers"),
    (["1", "0", "0"], "must be 3 numbers"),
    ("1,0", "must be 3 numbers"),
    (b"abc", "must be 3 numbers"),
    (None, "must be 3 numbers"),
    ([1.0, None, 0.0], "must be 3 numbers"),
    ([True, False, False], "its type is bool"),
    ([1j, 0, 0], "its type is complex"),
    ({"x": 1}, "must be 3 numbers"),
    ([Decimal(1), Decimal(0), Decimal(0)], "its type is object"),
    ([10**30, 0, 0], "must be 3 numbers"),
    (np.array(["2026-01-01"], dtype="datetime64[D]"), "its type is datetime64"),
    ([float("nan"), 0.0, 1.0], "not finite"),
    ([float("inf"), 0.0, 0.0], "not finite"),
    ([float("-inf"), 0.0, 0.0], "not finite"),
    ([1e300, 0.0, 0.0], "not finite"),
    ([1e30, 0.0, 0.0], "length 1; got inf"),
    ([0.0, 0.0, 0.0], "length 1; got 0.0000"),
    ([2.0, 0.0, 0.0], "length 1; got 2.0000"),
    ([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]], "length 1; got 0.5000"),
    ([1 + 2 * UNIT_TOLERANCE, 0.0, 0.0], "length 1; got 1.0020"),
    ([1 - 2 * UNIT_TOLERANCE, 0.0, 0.0], "length 1; got 0.9980"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[repr(values)[:40] for values, _ in BAD])
def test_invalid_vectors_are_rejected(values: ArrayLike, message: str) -> None:
    with pytest.raises(InvalidVector, match=message) as caught:
        check_vectors(values, 3)
    assert caught.value.code == "invalid_embedding"
    assert isinstance(caught.value, InvalidRequest)
    assert isinstance(caught.value, WhosthereError)


def test_half_precision_is_accepted_and_normalized() -> None:
    rng = np.random.default_rng(0)
    exact = normalize(rng.standard_normal((200, 512)).astype(np.float32))
    found = check_vectors(exact.astype(np.float16), 512)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert np.abs(found - exact).max() < 1e-3


def test_bytes_are_little_endian_float32() -> None:
    expected = bytes.fromhex("0000803f 000000c0 00000000".replace(" ", ""))
    for dtype in ("<f4", ">f4"):
        assert vector_to_bytes(np.array([1, -2, 0], dtype=dtype)) == expected
    assert vector_to_bytes(np.array([1, 9, -2, 9, 0], dtype=np.float32)[::2]) == expected
    found = vectors_from_bytes([expected, expected], 3)
    assert found.tolist() == [[1, -2, 0]] * 2
    assert found.dtype == np.dtype("=f4")
    assert found.flags.writeable
    assert vectors_from_bytes([], 3).shape == (0, 3)


def test_bytes_round_trip_exactly() -> None:
    odd = np.array([-0.0, 1e-45, 3.4e38, np.nextafter(1, 0, dtype=np.float32)], dtype=np.float32)
    assert vectors_from_bytes([vector_to_bytes(odd)], 4).tobytes() == odd.tobytes()


@pytest.mark.parametrize("size", [0, 8, 11, 13, 16])
def test_bytes_of_another_size_are_rejected(size: int) -> None:
    with pytest.raises(InvalidVector, match=f"has {size} bytes, expected 12"):
        vectors_from_bytes([bytes(12), bytes(size)], 3)


def test_normalize_scales_rows_to_unit_length() -> None:
    raw = np.array([[3, 4], [0, -0.001]], dtype=np.float32)
    found = normalize(raw)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0.6, 0.8], [0, -1]]))
    assert raw[0, 0] == 3
    assert normalize(np.empty((0, 2), dtype=np.float32)).shape == (0, 2)


@pytest.mark.parametrize("row", [[0, 0], [np.nan, 1], [np.inf, 1], [3e38, 3e38]])
def test_normalize_rejects_zero_and_infinite_rows(row: list[float]) -> None:
    with pytest.raises(InvalidVector, match="length zero or of infinite values"):
        normalize(np.array([[1, 0], row], dtype=np.float32))


def test_box_has_area_center_and_size() -> None:
    box = Box(10, 20, 30, 40)
    assert (box.area, box.center) == (1200, (25, 40))
    assert box.size == pytest.approx(1200**0.5)
    assert Box(1, 2, -3, 4).size == 0
    with pytest.raises(FrozenInstanceError):
        box.x = 1  # type: ignore[misc]


def test_scaled_detection_has_scaled_box_and_landmarks() -> None:
    points = np.array([[10, 20], [30, 40], [1, 2], [3, 4], [5, 6]], dtype=np.float32)
    there = Detection(Box(10, 20, 30, 40), points, 0.75)
    found = there.scaled(2, 0.5, dx=100, dy=-1)
    assert found.box == Box(120, 9, 60, 20)
    assert found.landmarks.dtype == np.float32
    assert found.landmarks.tolist() == [[120, 9], [160, 19], [102, 0], [106, 1], [110, 2]]
    assert found.score == 0.75
    assert there.box == Box(10, 20, 30, 40)
    assert there.landmarks.tolist() == points.tolist()
    back = found.scaled(0.5, 2, -50, 2)
    assert back.box == there.box
    assert np.array_equal(back.landmarks, points)


def test_sha256_is_hexadecimal() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
