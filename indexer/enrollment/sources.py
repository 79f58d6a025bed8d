"""Photos to enroll: folders, files, ZIP files and manifests, read as rows.

Nothing is decoded here, and photos are read only when they are enrolled.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from indexer.enrollment.containers import (
    Container,
    Reader,
    file_reader,
    folder_container,
    is_zip,
    open_container,
    zip_container,
)
from indexer.enrollment.file_names import are_photos_of_one, identity_of_stem
from indexer.enrollment.manifest_files import manifest_of, read_manifest
from indexer.enrollment.manifests import manifest_rows
from indexer.enrollment.rows import LazyRow, Row, Rows, checked_row, invalid_row, together
from indexer.errors import InvalidRequest
from indexer.gallery.spelling import normalize_text
from indexer.types import Person, Reason


def rows_of(paths: Sequence[Path], manifest: Path | None = None) -> Rows:
    """Returns the rows of everything in `paths`.

    A folder of folders has one folder for each identity; loose files are grouped by their stem. A folder whose photos
    have names from a camera, or numbers, is one identity. A `manifest.csv` at the top of a folder or ZIP file, or the
    given manifest, replaces all of them. The images of a given manifest are searched in its folder, then in `paths`.

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
        return Rows(manifest_rows(read_manifest(manifest), containers))
    rows: list[Row | LazyRow] = []
    for path in paths:
        if path.is_dir():
            rows += _container_rows(open_container(path), _person_of_folder(path))
        else:
            rows += _container_rows(open_container(path)) if is_zip(path) else [_file_row(path)]
    return together(rows)


def rows_of_archive(file: IO[bytes]) -> Rows:
    """Returns the rows of an open ZIP file, which must stay open while they are read. Images have their names in it.

    Raises:
        InvalidRequest: The ZIP file or its manifest cannot be read.
    """
    return together(_container_rows(zip_container(file, "")))


def _check_exists(path: Path, label: str, expected: str = "") -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InvalidRequest(f"there is no {label}{expected}") from error
    except OSError as error:  # too long a name, a loop of links, missing permissions
        raise InvalidRequest(f"{label} cannot be read: {error.strerror}{expected}") from error


def _container_rows(container: Container, person: str = "") -> Sequence[Row | LazyRow]:
    """Returns the rows of a container. If no name of a photo contains an identity, all show `person`."""
    rows = [
        invalid_row(name, "", f"the archive entry {name!r} points out of the archive", Reason.INVALID_ROW)
        for name in container.unsafe
    ]
    manifest = manifest_of(container)
    if manifest is not None:
        return [*rows, *manifest_rows(manifest, [container])]
    photos = container.photos()
    is_person = are_photos_of_one({PurePosixPath(name).stem for name, _ in photos})
    if person and is_person and not any("/" in name for name, _ in photos):
        return rows + [checked_row(container.display_name(name), Person(person), reader) for name, reader in photos]
    return rows + [_named_row(container.display_name(name), name, reader) for name, reader in photos]


def _person_of_folder(path: Path) -> str:
    """Returns the name of a folder, also of `.`, as an external id."""
    return normalize_text(Path(os.path.abspath(path)).name)  # noqa: PTH100 (a link keeps its name)


def _file_row(path: Path) -> Row:
    return _named_row(str(path), path.name, file_reader(path))


def _named_row(image: str, name: str, reader: Reader) -> Row:
    """Returns the row of a photo, with the identity in its name, which is relative to the given path."""
    parts = PurePosixPath(name).parts
    if len(parts) > 1:
        return checked_row(image, Person(normalize_text(parts[0])), reader)
    stem = normalize_text(PurePosixPath(name).stem)
    identity = identity_of_stem(stem)
    return checked_row(image, Person(identity), reader, None if identity == stem else stem)
