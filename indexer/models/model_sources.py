"""Where a model file can be obtained: its own URL, a mirror, a local folder or a ZIP."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from indexer.errors import ModelUnavailable
from indexer.models.model_files import UnusableFile
from indexer.models.packs import ModelFile
from indexer.models.partial_file import is_url, shown

CHUNK_BYTES = 2**18
"""Bytes of a local file that are in memory at a time."""

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Accepted in a ZIP, because `ZipExtFile.read(n)` decompresses only these two to at most `n` bytes."""


class SourceNotFound(Exception):
    """A source does not have the file; the next one is tried."""


@dataclass(frozen=True)
class Source:
    """A place that may have a model file."""

    location: str
    """A URL or a path."""
    is_zip: bool
    """Whether the file is a member of a ZIP at that location."""

    @property
    def is_url(self) -> bool:
        return is_url(self.location)


def find_sources(file: ModelFile, mirror: str | None) -> list[Source]:
    """Returns the places to try, in order: the file's own URL, or those at the mirror, a URL, a folder or a ZIP.

    A mirror has the file by its name, or in the ZIP that its own URL names. Raises ModelUnavailable if there is none.
    """
    if mirror is None:
        if not file.url:
            raise ModelUnavailable(f"{file.name} is missing, and its pack names no URL to fetch it from")
        return [_checked(Source(file.url, is_zip=bool(file.member)), file)]
    base = Source(mirror, is_zip=True)
    url, folder = urlsplit(_checked(base, file).location if base.is_url else ""), Path(mirror)
    if url.path.lower().endswith(".zip") or folder.is_file():
        return [base]
    if not (base.is_url or folder.is_dir()):
        raise ModelUnavailable(f"{file.name} cannot be taken from {mirror}: expected a URL, a folder or a ZIP")
    names = {file.name: False}
    if file.member and (archive := PurePosixPath(unquote(urlsplit(file.url).path)).name):
        names[archive] = True
    if not base.is_url:
        return [Source(str(folder / name), is_zip) for name, is_zip in names.items()]
    paths = {f"{url.path.rstrip('/')}/{quote(name)}": is_zip for name, is_zip in names.items()}
    return [Source(urlunsplit(url._replace(path=path)), is_zip) for path, is_zip in paths.items()]


def _checked(source: Source, file: ModelFile) -> Source:
    with suppress(ValueError):  # unbalanced brackets, or a port that is not a number
        parts = urlsplit(source.location)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return source
    raise ModelUnavailable(f"{file.name} cannot be taken from {shown(source.location)}: expected an HTTP or HTTPS URL")


def read_local(path: Path, file: ModelFile, source: Source) -> Iterator[bytes]:
    """Yields the content of a local file, or of the file's member of a local ZIP.

    Raises UnusableFile if the ZIP is damaged or does not contain the file, ModelUnavailable if it cannot be read.
    """
    place = shown(source.location)
    try:
        with ExitStack() as stack:
            if source.is_zip:
                archive = stack.enter_context(zipfile.ZipFile(path))
                stream = stack.enter_context(archive.open(_find_member(archive, file, place)))
            else:
                stream = stack.enter_context(path.open("rb"))
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise ModelUnavailable(f"{file.name} cannot be read from {place}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        reason = str(error) or type(error).__name__
        problem = f"{file.name} cannot be read from {place}, which is damaged or not a ZIP: {reason}"
        raise UnusableFile(problem) from error


def _find_member(archive: zipfile.ZipFile, file: ModelFile, place: str) -> zipfile.ZipInfo:
    """Finds the file in any folder of the ZIP. Raises UnusableFile."""
    wanted = PurePosixPath(file.member or file.name).name
    members = [member for member in archive.infolist() if not member.is_dir()]
    found = [member for member in members if PurePosixPath(member.filename).name == wanted]
    found = [member for member in found if member.filename == file.member] or found
    names = ", ".join(member.filename for member in (found or members)[:10])
    if len(found) != 1:
        raise UnusableFile(f"{place} has {len(found) or 'no'} files named {wanted}; expected one, found {names}")
    if found[0].compress_type not in COMPRESSIONS or found[0].flag_bits & 1:
        raise UnusableFile(f"{names} in {place} is not readable: expected deflate without a password")
    return found[0]
