"""Folders and ZIP files that contain photos."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from indexer.enrollment.file_names import (
    common_root,
    is_photo_name,
    is_system_path,
    keys_of,
    match_key,
    relative_name,
)
from indexer.errors import InvalidRequest, RejectedImage
from indexer.types import Reason

MANIFEST = "manifest.csv"
"""The manifest at the top of a folder or ZIP file, in upper or lower case."""

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Accepted compression methods of ZIP entries: for these two, `ZipExtFile.read(n)` decompresses at most `n` bytes. For
bzip2, LZMA and Zstandard it decompresses a whole block, regardless of the size that the entry claims."""


ZIP_START = b"PK\x03\x04"
"""Signature of the first entry of a ZIP file (APPNOTE 4.3.7)."""

UNLISTED = "*"
"""Stands for the files of a folder that cannot be read."""

Reader = Callable[[int], bytes]
"""Returns the bytes of a photo, at most the given number. Raises RejectedImage."""


Finder = Callable[[str], "Reader | None"]
"""Returns the photo that a manifest names, or None if there is none. Raises InvalidRequest for a name that is unsafe or
fits several files."""


@dataclass(frozen=True)
class Container:
    """A folder or an open ZIP file."""

    label: str
    photos: Callable[[], Sequence[tuple[str, Reader]]]
    """Returns the photos with their names, which are relative and have forward slashes; sorted by name."""
    find: Finder
    top_files: Callable[[], Sequence[str]]
    """Returns the names of the files that are not in a folder inside."""
    unsafe: Sequence[str] = ()
    """Entries of a ZIP file whose names point out of it."""

    def display_name(self, name: str) -> str:
        """Returns the name of a file for people."""
        return f"{self.label}/{name}" if self.label else name


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def open_container(path: Path) -> Container:
    return folder_container(path) if path.is_dir() else zip_container(path, str(path))


def folder_container(root: Path) -> Container:
    return Container(
        str(root),
        lambda: [
            (name, _read_unlisted if name.endswith(f"/{UNLISTED}") else file_reader(root / name))
            for name in _photo_names(root)
        ],
        _FolderFinder(root).find,
        lambda: [name for name in _listed(str(root)) if os.path.isfile(root / name)],  # noqa: PTH113 (may raise)
    )


def _read_unlisted(limit: int) -> bytes:
    raise RejectedImage("the folder cannot be read", code=Reason.UNREADABLE_IMAGE)


class _FolderFinder:
    """Finds the files of a folder by the names in a manifest. Listings of folders are kept."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[str, dict[str, list[str]]] = {}
        """The names in each folder that was searched, by their match keys."""

    def find(self, name: str) -> Reader | None:
        if os.path.isfile(self._root / name):  # noqa: PTH113 (Path.is_file raises on a name that is too long)
            return file_reader(self._root / name)
        path = str(self._root)
        for part in PurePosixPath(relative_name(name)).parts:
            inner = os.path.join(path, part)  # noqa: PTH118 (Path cannot be checked without raising)
            if not os.path.exists(inner):  # noqa: PTH110
                found = self._equal(path, part)
                _check_one_file(name, found)
                if not found:
                    return None
                inner = os.path.join(path, found[0])  # noqa: PTH118
            path = inner
        return file_reader(Path(path)) if os.path.isfile(path) else None  # noqa: PTH113

    def _equal(self, folder: str, name: str) -> list[str]:
        if folder not in self._names:
            self._names[folder] = keys_of(_listed(folder))
        return self._names[folder].get(match_key(name), [])


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208
    except (OSError, ValueError):  # not a folder, a name that is too long, a NUL
        return []


def _photo_names(root: Path) -> list[str]:
    """Returns the photos below `root`, sorted. Links are followed, except to a folder that contains them.

    A folder that cannot be read is returned with UNLISTED below it. Raises InvalidRequest if that is `root`.
    """
    names: list[str] = []

    def unlisted(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == root:
            raise InvalidRequest(f"{root} cannot be read: {error.strerror}") from error
        names.append((folder / UNLISTED).relative_to(root).as_posix())

    above: dict[str, frozenset[str]] = {}  # the real paths of each folder's parents
    for folder, inner, files in os.walk(root, onerror=unlisted, followlinks=True):
        here, outer = os.path.realpath(folder), above.pop(folder, frozenset())
        if here in outer:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not is_system_path([name])]
        above |= {os.path.join(folder, name): outer | {here} for name in inner}  # noqa: PTH118 (the key of os.walk)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if not is_system_path([name])]
    return sorted(name for name in names if name.endswith(f"/{UNLISTED}") or _is_photo(root / name))


def _is_photo(path: Path) -> bool:
    return is_photo_name(path.name) and os.path.isfile(path)  # noqa: PTH113 (Path.is_file may raise)


def file_reader(path: Path) -> Reader:
    def read(limit: int) -> bytes:
        try:
            size = path.stat().st_size
            if size > limit:
                raise RejectedImage(
                    f"the file has {size:,} bytes, more than the {limit:,} allowed", code=Reason.IMAGE_TOO_LARGE
                )
            return path.read_bytes()
        except OSError as error:
            raise RejectedImage(
                f"the file cannot be read: {error.strerror or error}", code=Reason.UNREADABLE_IMAGE
            ) from error

    return read


def zip_container(file: Path | IO[bytes], label: str) -> Container:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # a damaged central directory raises nearly any exception
        problem = zip_problem(file, error)
        raise InvalidRequest(f"{label or 'the archive'} is not a readable ZIP file: {problem}") from error
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    unsafe = [name for name in entries if escapes(name)]
    visible = [(relative_name(raw), entry) for raw, entry in entries.items() if not escapes(raw)]
    visible = [(name, entry) for name, entry in visible if not is_system_path(PurePosixPath(name).parts)]
    root = _root_of([name for name, _ in visible])
    inner = [(name.removeprefix(root), entry) for name, entry in visible]
    known = dict(visible) | dict(inner)  # a manifest outside the ZIP file may use either name
    keys = keys_of(known)

    def find(name: str) -> Reader | None:
        found = [name] if name in known else keys.get(match_key(name), [])
        if not found and escapes(name):
            raise InvalidRequest(f"its image {name!r} points out of the archive")
        _check_one_file(name, found)
        return _entry_reader(archive, known[found[0]]) if found else None

    return Container(
        label,
        lambda: [
            (name, _entry_reader(archive, entry))
            for name, entry in sorted(inner, key=lambda one: one[0])
            if is_photo_name(name)
        ],
        find,
        lambda: sorted(name for name, _ in inner if "/" not in name),
        [name.replace("\\", "/") for name in unsafe],
    )


def zip_problem(file: Path | IO[bytes], error: Exception) -> str:
    """Returns why a ZIP file cannot be opened."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return zip_problem(opened, error)
    file.seek(0)
    is_cut = file.read(len(ZIP_START)) == ZIP_START and not zipfile.is_zipfile(file)
    return "it is incomplete, its end is missing; copy or send it again" if is_cut else str(error)


def _check_one_file(name: str, found: Sequence[str]) -> None:
    if len(found) > 1:
        raise InvalidRequest(f"its image {name!r} fits {len(found)} files: {', '.join(map(repr, found))}")


def _entry_reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Reader:
    def read(limit: int) -> bytes:
        too_large = RejectedImage(
            f"the archive entry decompresses to more than the {limit:,} bytes allowed", code=Reason.IMAGE_TOO_LARGE
        )
        if entry.compress_type not in COMPRESSIONS:
            raise RejectedImage(
                f"the archive entry is compressed by method {entry.compress_type}; expected 0 (stored) or 8 (deflated)",
                code=Reason.UNREADABLE_IMAGE,
            )
        if entry.file_size > limit:
            raise too_large
        try:
            with archive.open(entry) as file:
                data = file.read(limit + 1)  # the size in the header may be wrong
        except Exception as error:  # damaged or encrypted entries raise nearly any exception, zlib.error too
            is_damaged = isinstance(error, (zipfile.BadZipFile, zlib.error, EOFError))
            problem = f"{error}; it is damaged, copy or send the archive again" if is_damaged else str(error)
            raise RejectedImage(f"the archive entry cannot be read: {problem}", code=Reason.UNREADABLE_IMAGE) from error
        if len(data) > limit:
            raise too_large
        return data

    return read


def escapes(name: str) -> bool:
    """Returns whether an entry's name points out of the archive."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/") or bool(re.match(r"^[A-Za-z]:", plain))


def printable(name: str) -> str:
    """Returns a file name as printable text: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def _root_of(names: Sequence[str]) -> str:
    """Returns the single top folder of an archive if it only contains folders or a manifest; else ''.

    Files that are neither photos nor a manifest do not count.
    """
    counted = [name for name in names if is_photo_name(name) or is_manifest(PurePosixPath(name).name)]
    root = common_root(counted)
    inner = [name.removeprefix(root) for name in counted]
    return root if any("/" in name or is_manifest(name) for name in inner) else ""


def is_manifest(name: str) -> bool:
    return name.lower() == MANIFEST
