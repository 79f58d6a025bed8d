"""CSV files: no cell is computed by a spreadsheet, and each one can be read back."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.csv_files import protect, restore, row_writer

ROOT = Path(__file__).resolve().parents[2]

SIGNS = "=+-@\uff1d\uff0b\uff0d\uff20"


@pytest.mark.parametrize("before", ["", " ", "'", "ana;", "ana\t", "ana,", "ana\n", "\t", "\r", "\n"])
@pytest.mark.parametrize("sign", list(SIGNS))
def test_formulas_are_protected_at_the_start_and_behind_separators(before: str, sign: str) -> None:
    cell = protect(f"{before}{sign}1")
    assert cell != f"{before}{sign}1"
    for separator in ",;\t\r\n":
        assert not any(part.lstrip().startswith(tuple(SIGNS)) for part in cell.split(separator))
    assert restore(cell) == f"{before}{sign}1"


@pytest.mark.parametrize(
    "text", ["", "ana", "'t Hooft", "O'Hara, Ana", "photos/ana-1.jpg", "1 - 2; x - y", "a=b", "x;a"]
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert protect(text) == text
    assert restore(text) == text


@given(st.text(alphabet=f"{SIGNS}' \t\r\n,;ab1", max_size=12))
def test_every_text_is_read_back(text: str) -> None:
    assert restore(protect(text)) == text


def test_numbers_stay_numbers() -> None:
    file = io.StringIO(newline="")
    row_writer(file)([-0.25, -3, None, "-0.25"])
    assert file.getvalue() == "-0.25,-3,,'-0.25\r\n"


def test_no_module_writes_csv_in_another_way() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("indexer", "search_service", "benchmarks")
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("csv.writer", "csv.DictWriter")
    ]
    assert [place.partition(":")[0] for place in found] == ["indexer/csv_files.py"]


def test_reader_of_csv_sees_protected_cells_as_text() -> None:
    file = io.StringIO(newline="")
    row_writer(file)(["=1+1", 'say "+1"', "a;=2"])
    file.seek(0)
    (cells,) = csv.reader(file)
    assert cells == ["'=1+1", 'say "+1"', "a;'=2"]
    assert [restore(cell) for cell in cells] == ["=1+1", 'say "+1"', "a;=2"]
