"""Comparison of answers whose numbers may be rounded differently."""

from __future__ import annotations

from typing import Any

import pytest


def assert_nearly_equal(one: Any, other: Any, abs_tol: float = 0.001, rel_tol: float = 1e-6) -> None:
    """Checks that two JSON values are the same but for the rounding of numbers.

    In batches of different sizes, a network may add the same numbers up in different orders.
    """
    if isinstance(other, dict):
        assert set(one) == set(other)
        for key in other:
            assert_nearly_equal(one[key], other[key], abs_tol, rel_tol)
    elif isinstance(other, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_nearly_equal(a, b, abs_tol, rel_tol)
    elif isinstance(other, float):
        assert one == pytest.approx(other, abs=abs_tol, rel=rel_tol)
    else:
        assert one == other
