"""Photo files for tests, and what is read from their rows."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from indexer.enrollment.rows import Row
from indexer.errors import RejectedImage

LIMIT = 1000


def write(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def pack(path: Path, files: Mapping[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def summarize(rows: Sequence[Row], root: Path) -> list[tuple[str, str, bytes | str]]:
    """Returns the image below `root`, the identity, and the content or the reason of each row."""
    return [(row.image.removeprefix(f"{root}/"), row.person.external_id, content(row)) for row in rows]


def content(row: Row, limit: int = LIMIT) -> bytes | str:
    try:
        return row.read(limit)
    except RejectedImage as rejection:
        return str(rejection.code)


def message(row: Row) -> str:
    try:  # not `pytest.raises`, whose frames would keep the archive open until they are collected
        row.read(LIMIT)
    except RejectedImage as rejection:
        return rejection.message
    pytest.fail(f"{row.image} was read")
