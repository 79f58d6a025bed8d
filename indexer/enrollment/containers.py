"""Folders and ZIP files that contain photos."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from indexer.errors import InvalidRequest, RejectedImage
from indexer.types import Reason

IMAGE_NAMES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".gif",
    ]
)
"""Suffixes of the files in a folder that count as photos. Files named explicitly always do."""

MANIFEST = "manifest.csv"
"""The manifest at the top of a folder or ZIP file."""

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Accepted compression methods of ZIP entries: for these two, `ZipExtFile.read(n)` decompresses at most `n` bytes. For
bzip2, LZMA and Zstandard it decompresses a whole block, regardless of the size that the entry claims."""


Reader = Callable[[int], bytes]
"""Returns the bytes of a photo, at most the given number. Raises RejectedImage."""


@dataclass(frozen=True)
class Container:
    """A folder or an open ZIP file. `names` are relative, with forward slashes."""

    label: str
    names: Sequence[str]
    reader: Callable[[str], Reader]
    folder: Path | None = None
    unsafe: Sequence[str] = ()
    """Entries of a ZIP file whose names point out of it."""
    known: frozenset[str] = field(default_factory=frozenset)
    """Names by which a manifest may refer to entries of a ZIP file."""

    def display_name(self, name: str) -> str:
        """Returns the name of a file for people."""
        return f"{self.label}/{name}" if self.label else name


def is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def open_container(path: Path) -> Container:
    return folder_container(path) if path.is_dir() else zip_container(path, str(path))


def folder_container(root: Path) -> Container:
    def reader(name: str) -> Reader:
        return file_reader(root / name)

    return Container(str(root), (), reader, folder=root)


def photo_names(root: Path) -> list[str]:
    """Returns the photos below `root`, sorted. Links are followed, except to a folder that contains them."""
    names: list[str] = []
    above: dict[str, frozenset[str]] = {}  # the real paths of each folder's parents
    for folder, inner, files in os.walk(root, followlinks=True):
        here, outer = os.path.realpath(folder), above.pop(folder, frozenset())
        if here in outer:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not _is_hidden([name])]
        above |= {os.path.join(folder, name): outer | {here} for name in inner}  # noqa: PTH118 (the key of os.walk)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if not _is_hidden([name])]
    return sorted(name for name in names if _is_photo(root / name))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_NAMES and os.path.isfile(path)  # noqa: PTH113 (Path.is_file may raise)


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
        raise InvalidRequest(f"{label or 'the archive'} is not a readable ZIP file: {error}") from error
    entries = {
        e.filename.replace("\\", "/"): e for e in archive.infolist() if not e.is_dir()
    }  # written by old versions of .NET
    unsafe = [name for name in entries if escapes(name)]
    visible = [n for n in entries if n not in unsafe and not _is_hidden(PurePosixPath(n).parts)]
    root = _common_root(visible)
    names = {name.removeprefix(root): entries[name] for name in visible}
    known = {name: entries[name] for name in visible} | names  # a manifest outside the ZIP file may use either name

    def reader(name: str) -> Reader:
        return _entry_reader(archive, known[name])

    return Container(label, sorted(names), reader, unsafe=unsafe, known=frozenset(known))


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
            raise RejectedImage(f"the archive entry cannot be read: {error}", code=Reason.UNREADABLE_IMAGE) from error
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


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _common_root(names: Sequence[str]) -> str:
    """Returns the single top folder of an archive, with a slash, if it only contains folders or a manifest; else ''."""
    tops = {PurePosixPath(name).parts[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return ""
    (top,) = tops
    inner = [name.removeprefix(f"{top}/") for name in names]
    is_root = MANIFEST in inner or any("/" in name for name in inner)
    return f"{top}/" if is_root else ""
