"""What people hand over to be enrolled: folders, files, ZIPs and manifests, read as rows.

A row is one photo and whom it shows, or why the row itself is wrong. Nothing is decoded here, and photos are read
only when their turn comes.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import IO, Any

from indexer.errors import InvalidRequest, RejectedImage, WhosthereError
from indexer.gallery.validation import check_person
from indexer.types import Person, Reason

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
"""Endings by which a folder's files count as photos. Files named one by one always do."""

MANIFEST = "manifest.csv"
"""The manifest that a folder or ZIP may bring along at its top."""

COLUMNS = ("image", "external_id", "name", "valid_from", "valid_until")
MAX_MANIFEST_BYTES = 64 * 2**20
"""A million rows of 60 characters."""

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How the entries of a ZIP may be packed: the two that `ZipExtFile.read(n)` unpacks no further than `n` bytes. Of
bzip2, LZMA and Zstandard it unpacks all that a piece of the file holds, whatever size the entry claims."""


@dataclass(frozen=True)
class Row:
    """`image` is how people know the photo. `read` returns its bytes, at most the given number, or raises
    RejectedImage, also when the row itself is wrong."""

    image: str
    person: Person
    read: Callable[[int], bytes]


@dataclass(frozen=True)
class _Place:
    """Somewhere photos lie: a folder or an open ZIP. `names` are relative, with forward slashes."""

    label: str
    names: Sequence[str]
    reader: Callable[[str], Callable[[int], bytes]]
    folder: Path | None = None
    unsafe: Sequence[str] = ()
    known: frozenset[str] = field(default_factory=frozenset)

    def naming(self, name: str) -> str:
        """How people know a file of it."""
        return f"{self.label}/{name}" if self.label else name


def rows_of(paths: Sequence[Path], manifest: Path | None = None) -> list[Row]:
    """The rows of everything in `paths`.

    A folder of folders is one identity a folder; loose files are one identity a stem; a `manifest.csv` at the top
    of a folder or ZIP, or the one given, says it all instead. With a manifest given, images are looked for beside
    it, then in `paths`. Raises InvalidRequest: a path that is not there, a ZIP or manifest that cannot be read.
    """
    for path in paths:
        _check_there(path, str(path), "; expected a folder, an image or a ZIP")
    if manifest is not None:
        _check_there(manifest, f"manifest {manifest}")
        for path in paths:
            if not (path.is_dir() or _is_zip(path)):
                raise InvalidRequest(f"with a manifest, paths are folders or ZIPs that hold its images; got {path}")
        places = [_folder(manifest.parent), *(_place(path) for path in paths)]
        return _manifest_rows(_read_manifest(manifest), str(manifest), places)
    rows: list[Row] = []
    for path in paths:
        rows += _rows_of_place(_place(path)) if path.is_dir() or _is_zip(path) else [_loose(path)]
    return rows


def rows_of_archive(file: IO[bytes]) -> list[Row]:
    """The rows of an open ZIP, which stays open while they are read; their images are named as they are in it.

    Raises InvalidRequest: a ZIP or manifest that cannot be read.
    """
    return _rows_of_place(_zip(file, ""))


def identity_of_stem(stem: str) -> str:
    """`ana_1` and `ana_02` are both `ana`; a number that stands alone is the identity itself."""
    return re.sub(r"_\d+$", "", stem) or stem


# Places


def _check_there(path: Path, label: str, expected: str = "") -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InvalidRequest(f"there is no {label}{expected}") from error
    except OSError as error:  # a name that is too long, a loop of links, a folder that is closed to us
        raise InvalidRequest(f"{label} cannot be read: {error.strerror}{expected}") from error


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _place(path: Path) -> _Place:
    return _folder(path) if path.is_dir() else _zip(path, str(path))


def _folder(root: Path) -> _Place:
    def reader(name: str) -> Callable[[int], bytes]:
        return _file_reader(root / name)

    return _Place(str(root), (), reader, folder=root)


def _folder_names(root: Path) -> list[str]:
    """The photos below `root`, through links too; only a link to a folder that it lies in leads nowhere."""
    names: list[str] = []
    above: dict[str, frozenset[str]] = {}  # the real paths of the folders that each folder lies in
    for folder, inner, files in os.walk(root, followlinks=True):
        here, outer = os.path.realpath(folder), above.pop(folder, frozenset())
        if here in outer:
            inner.clear()
            continue
        inner[:] = [name for name in inner if not _hidden([name])]
        above |= {os.path.join(folder, name): outer | {here} for name in inner}  # noqa: PTH118 (the key of os.walk)
        names += [Path(folder, name).relative_to(root).as_posix() for name in files if not _hidden([name])]
    return sorted(name for name in names if _is_photo(root / name))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_NAMES and os.path.isfile(path)  # noqa: PTH113 (Path.is_file may raise)


def _file_reader(path: Path) -> Callable[[int], bytes]:
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


def _zip(file: Path | IO[bytes], label: str) -> _Place:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # a damaged directory of entries raises nearly anything
        raise InvalidRequest(f"{label or 'the archive'} is not a ZIP that can be read: {error}") from error
    entries = {e.filename.replace("\\", "/"): e for e in archive.infolist() if not e.is_dir()}  # as old .NET wrote them
    unsafe = [name for name in entries if escapes(name)]
    visible = [n for n in entries if n not in unsafe and not _hidden(PurePosixPath(n).parts)]
    root = _common_root(visible)
    names = {name.removeprefix(root): entries[name] for name in visible}
    known = {name: entries[name] for name in visible} | names  # a manifest beside the ZIP may say either

    def reader(name: str) -> Callable[[int], bytes]:
        return _entry_reader(archive, known[name])

    return _Place(label, sorted(names), reader, unsafe=unsafe, known=frozenset(known))


def _entry_reader(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        too_large = RejectedImage(
            f"the archive entry unpacks to more than the {limit:,} bytes allowed", code=Reason.IMAGE_TOO_LARGE
        )
        if entry.compress_type not in COMPRESSIONS:
            raise RejectedImage(
                f"the archive entry is packed by method {entry.compress_type}; expected 0 (stored) or 8 (deflated)",
                code=Reason.UNREADABLE_IMAGE,
            )
        if entry.file_size > limit:
            raise too_large
        try:
            with archive.open(entry) as file:
                data = file.read(limit + 1)  # the header's size may lie
        except Exception as error:  # damaged or encrypted entries raise nearly anything, zlib's own error too
            raise RejectedImage(f"the archive entry cannot be read: {error}", code=Reason.UNREADABLE_IMAGE) from error
        if len(data) > limit:
            raise too_large
        return data

    return read


def escapes(name: str) -> bool:
    """Whether an entry's name points out of the archive."""
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/") or bool(re.match(r"^[A-Za-z]:", plain))


def _text(name: str) -> str:
    """A file name as text that can be printed and written: bytes that are no UTF-8, which old systems left in names,
    become question marks."""
    return name.encode("utf-8", "replace").decode()


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _common_root(names: Sequence[str]) -> str:
    """The folder that the whole archive was packed from, with its slash, if everything lies in folders of it."""
    tops = {PurePosixPath(name).parts[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return ""
    (top,) = tops
    inner = [name.removeprefix(f"{top}/") for name in names]
    packed = MANIFEST in inner or any("/" in name for name in inner)
    return f"{top}/" if packed else ""


# Rows


def _rows_of_place(place: _Place) -> list[Row]:
    rows = [
        _wrong(name, "", f"the archive entry {name!r} points out of the archive", Reason.INVALID_ROW)
        for name in place.unsafe
    ]
    manifest = _manifest_of(place)
    if manifest is not None:
        return rows + _manifest_rows(manifest, place.naming(MANIFEST), [place])
    names = _folder_names(place.folder) if place.folder is not None else place.names
    return rows + [
        _row(place.naming(name), Person(_identity_of_name(name)), place.reader(name))
        for name in names
        if PurePosixPath(name).suffix.lower() in IMAGE_NAMES
    ]


def _loose(path: Path) -> Row:
    return _row(str(path), Person(identity_of_stem(path.stem)), _file_reader(path))


def _identity_of_name(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 else identity_of_stem(PurePosixPath(name).stem)


def _row(image: str, person: Person, read: Callable[[int], bytes]) -> Row:
    try:
        check_person(person)
    except InvalidRequest as error:
        return _wrong(image, person.external_id, error.message, Reason.INVALID_ROW)
    return Row(_text(image), person, read)


def _wrong(image: str, external_id: str, message: str, reason: Reason) -> Row:
    rejection = RejectedImage(message, code=reason)

    def read(limit: int) -> bytes:
        raise rejection

    return Row(_text(image), Person(_text(external_id)), read)


# Manifests


def _manifest_of(place: _Place) -> str | None:
    if place.folder is not None:
        path = place.folder / MANIFEST
        return _read_manifest(path) if os.path.isfile(path) else None  # noqa: PTH113 (Path.is_file may raise)
    if MANIFEST not in place.known:
        return None
    try:
        return _decode_manifest(place.reader(MANIFEST)(MAX_MANIFEST_BYTES), place.naming(MANIFEST))
    except RejectedImage as error:
        raise InvalidRequest(f"{place.naming(MANIFEST)}: {error.message}") from error


def _read_manifest(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise InvalidRequest(f"the manifest {path} has more than {MAX_MANIFEST_BYTES:,} bytes")
        return _decode_manifest(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidRequest(f"the manifest {path} cannot be read: {error.strerror}") from error


def _decode_manifest(data: bytes, label: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the manifest {label} is not UTF-8 text: {error}") from error


def _manifest_rows(text: str, label: str, places: Sequence[_Place]) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text), dialect=_dialect(text), restkey="")
    header = [
        name.strip().lower() if name.strip().lower() in COLUMNS else name.strip() for name in _header(reader, label)
    ]
    for column in COLUMNS[:2]:
        if column not in header:
            raise InvalidRequest(f"the manifest {label} has no column {column!r}; it has {', '.join(header)}")
    named = [name for name in header if name]  # spreadsheets leave unnamed columns behind
    if len(set(named)) != len(named):
        raise InvalidRequest(f"the manifest {label} has two columns of one name: {', '.join(header)}")
    reader.fieldnames = header
    said: dict[tuple[str, str], tuple[int, object]] = {}
    return list(_checked_rows(reader, places, said, label))


def _header(reader: csv.DictReader[str], label: str) -> Sequence[str]:
    try:
        names = reader.fieldnames
    except csv.Error as error:
        raise InvalidRequest(f"the manifest {label} is not CSV: {error}") from error
    if not names:
        raise InvalidRequest(f"the manifest {label} is empty; expected a line that names its columns")
    return names


def _dialect(text: str) -> type[csv.Dialect]:
    """Commas, or the semicolons or tabs that spreadsheets write in many countries."""
    first = text.splitlines()[0] if text else ""

    class Dialect(csv.excel):
        delimiter = max(",;\t", key=first.count)
        strict = True

    return Dialect


def _checked_rows(
    reader: csv.DictReader[str], places: Sequence[_Place], said: dict[tuple[str, str], tuple[int, object]], label: str
) -> Iterator[Row]:
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidRequest(f"the manifest {label}, line {reader.reader.line_num}, is not CSV: {error}") from error
        if not any(cells.values()):
            continue  # a line of commas, as spreadsheets leave them
        line = reader.line_num
        image = (cells.get("image") or "").strip()
        external_id = (cells.get("external_id") or "").strip()
        try:
            if _spare(cells):
                raise InvalidRequest("it has more cells than the header names columns")
            person = _person(external_id, cells)
            _check_same_person(person, line, said)
            if not image:
                raise InvalidRequest("it names no image")
            yield Row(image, person, _find_image(image, places))
        except RejectedImage as error:
            yield _wrong(image, external_id, error.message, Reason(error.code))
        except WhosthereError as error:
            yield _wrong(image, external_id, f"line {line} of the manifest: {error.message}", Reason.INVALID_ROW)


def _spare(cells: Mapping[str, Any]) -> bool:
    """Whether anything stands in cells that no column names; empty ones are a spreadsheet's leftovers."""
    rest = cells.get("") or ()
    return any(cell.strip() for cell in ([rest] if isinstance(rest, str) else rest))


def _person(external_id: str, cells: Mapping[str, str | None]) -> Person:
    def cell(name: str) -> str | None:
        return (cells.get(name) or "").strip() or None

    person = Person(
        external_id,
        cell("name"),
        parse_time("valid_from", cell("valid_from")),
        parse_time("valid_until", cell("valid_until"), end=True),
        {k: v.strip() for k, v in cells.items() if k and k not in COLUMNS and v and v.strip()},
    )
    check_person(person)
    return person


def _check_same_person(person: Person, line: int, said: dict[tuple[str, str], tuple[int, object]]) -> None:
    """One id is one person: a second name or date for it is a mistake, and nobody knows which is right."""
    for what in ("name", "valid_from", "valid_until"):
        here = getattr(person, what)
        if here is None:
            continue
        first_line, before = said.setdefault((person.external_id, what), (line, here))
        if before != here:
            raise InvalidRequest(
                f"duplicate external_id {person.external_id!r}: its {what} is {here} here "
                f"and {before} in line {first_line}"
            )


def _find_image(image: str, places: Sequence[_Place]) -> Callable[[int], bytes]:
    for place in places:
        if place.folder is not None:
            if os.path.isfile(place.folder / image):  # noqa: PTH113 (Path.is_file raises on a name that is too long)
                return place.reader(image)
        elif image in place.known:
            return place.reader(image)
        elif escapes(image):
            raise InvalidRequest(f"its image {image!r} points out of the archive")
    raise RejectedImage(f"there is no file {image!r} beside the manifest", code=Reason.UNREADABLE_IMAGE)


def parse_time(what: str, value: str | None, end: bool = False) -> datetime | None:
    """An ISO 8601 date or time as UTC; without a zone it is UTC. A date is its first moment, or with `end` the first
    moment after it: valid until the 31st includes the 31st. Raises InvalidRequest."""
    if value is None:
        return None
    try:
        day = _date(value)
        if day == date.max and end:  # what personnel systems write for ever
            return datetime.max.replace(tzinfo=UTC)
        if day is not None:
            return datetime.combine(day, datetime.min.time(), UTC) + timedelta(days=end)
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{what} is {value!r}; expected a date like 2026-12-31 or a time like 2026-12-31T18:00:00+01:00"
        ) from error


def _date(value: str) -> date | None:
    """The date that `value` is in any form of ISO 8601, 20261231 too; None where it holds a time as well."""
    try:
        return date.fromisoformat(value)
    except ValueError:
        return None
