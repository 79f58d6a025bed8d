"""Tests that depend on numbers pass in every precision, with either runtime, and with the kernels of older CPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.variants import VARIANTS, environment_of

TESTS = Path(__file__).resolve().parent
MARK = "@pytest.mark." + "numeric"
ALONE = ("-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts=-ra --strict-markers --strict-config")
"""Arguments of a pytest that runs inside a test of another one."""


@pytest.mark.parametrize("name", VARIANTS)
def test_numeric_tests_pass_in_each_variant(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    if problem := variant.problem():
        pytest.skip(problem)
    files = [str(path) for path in TESTS.rglob("test_*.py") if MARK in path.read_text(encoding="utf-8")]
    with environment_of(variant) as environment:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-m", "numeric", *files, *ALONE, f"--basetemp={tmp_path / 'base'}"],
            cwd=TESTS.parent,
            env={key: value for key, value in environment.items() if not key.startswith("PYTEST_")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
