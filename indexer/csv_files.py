"""Writes CSV whose cells spreadsheets do not compute, and reads such cells back.

A spreadsheet computes text that begins with certain signs (OWASP, CSV injection), also text from a file that others
wrote. An apostrophe before the sign prevents that. Some spreadsheets separate cells with semicolons or tabs, so the
signs are protected behind these within a cell too.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from typing import IO

_STARTS = r"(?:(?:^|(?<=[,;\t\r\n]))(?=[ ']*[=+\-@\uff1d\uff0b\uff0d\uff20])|^(?=[ ']*[\t\r\n]))"
"""The places at which a spreadsheet may begin to compute. The last four signs are those of East Asian keyboards."""

_UNPROTECTED = re.compile(_STARTS)
_PROTECTED = re.compile(_STARTS + "'")


def row_writer(file: IO[str], line_end: str = "\r\n") -> Callable[[Iterable[object]], object]:
    """Returns a function that writes a row of cells. Text is protected; numbers and None are written as they are."""
    write = csv.writer(file, lineterminator=line_end).writerow
    return lambda cells: write([protect(cell) if isinstance(cell, str) else cell for cell in cells])


def protect(text: str) -> str:
    """Returns text that spreadsheets show as it is, apart from the apostrophes that `restore` removes."""
    return _UNPROTECTED.sub("'", text)


def restore(cell: str) -> str:
    """Returns the text from which `protect` returned the cell. Other text seldom changes."""
    return _PROTECTED.sub("", cell) if "'" in cell else cell
