"""Photos to enroll: folders, files, ZIP files and manifests, read as rows.

Nothing is decoded here, and photos are read only when they are enrolled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from indexer.enrollment.containers import (
    Container,
    file_reader,
    folder_container,
    is_zip,
    open_container,
    zip_container,
)
from indexer.enrollment.manifest_files import manifest_of, read_manifest
from indexer.enrollment.manifests import manifest_rows
from indexer.enrollment.rows import Row, checked_row, invalid_row
from indexer.errors import InvalidRequest
from indexer.gallery.spelling import normalize_text
from indexer.types import Person, Reason


def rows_of(paths: Sequence[Path], manifest: Path | None = None) -> list[Row]:
    """Returns the rows of everything in `paths`.

    A folder of folders has one folder for each identity; loose files are grouped by their stem. A `manifest.csv` at
    the top of a folder or ZIP file, or the given manifest, replaces both. The images of a given manifest are searched
    in its folder, then in `paths`.

    Raises:
        InvalidRequest: A path does not exist, or a ZIP file or manifest cannot be read.
    """
    for path in paths:
        _check_exists(path, str(path), "; expected a folder, an image or a ZIP file")
    if manifest is not None:
        _check_exists(manifest, f"manifest {manifest}")
        for path in paths:
            if not (path.is_dir() or is_zip(path)):
                raise InvalidRequest(f"with a manifest, paths must be folders or ZIP files with its images; got {path}")
        containers = [folder_container(manifest.parent), *(open_container(path) for path in paths)]
        return manifest_rows(read_manifest(manifest), containers)
    rows: list[Row] = []
    for path in paths:
        rows += _container_rows(open_container(path)) if path.is_dir() or is_zip(path) else [_file_row(path)]
    return rows


def rows_of_archive(file: IO[bytes]) -> list[Row]:
    """Returns the rows of an open ZIP file, which must stay open while they are read. Images have their names in it.

    Raises:
        InvalidRequest: The ZIP file or its manifest cannot be read.
    """
    return _container_rows(zip_container(file, ""))


def identity_of_stem(stem: str) -> str:
    """Returns the identity of a file stem: `ana` for `ana_1` and `ana_02`; a number alone is an identity."""
    return re.sub(r"_\d+$", "", normalize_text(stem)) or stem


def _check_exists(path: Path, label: str, expected: str = "") -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InvalidRequest(f"there is no {label}{expected}") from error
    except OSError as error:  # too long a name, a loop of links, missing permissions
        raise InvalidRequest(f"{label} cannot be read: {error.strerror}{expected}") from error


def _container_rows(container: Container) -> list[Row]:
    rows = [
        invalid_row(name, "", f"the archive entry {name!r} points out of the archive", Reason.INVALID_ROW)
        for name in container.unsafe
    ]
    manifest = manifest_of(container)
    if manifest is not None:
        return rows + manifest_rows(manifest, [container])
    return rows + [
        checked_row(container.display_name(name), Person(_identity_of_name(name)), reader)
        for name, reader in container.photos()
    ]


def _file_row(path: Path) -> Row:
    return checked_row(str(path), Person(identity_of_stem(path.stem)), file_reader(path))


def _identity_of_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    return normalize_text(parts[0]) if len(parts) > 1 else identity_of_stem(PurePosixPath(name).stem)
