"""Bringing the files of a model pack into the models folder: fetched or copied, resumed, verified, then put in place.

A file grows as `NAME.part`, with what must be known to go on with it beside it in `NAME.part.state`, and gets its
name only when it is whole, on the disk and the one that was asked for. One pull at a time works in a models folder.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import shutil
import struct
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from indexer.errors import ModelUnavailable
from indexer.files import sync_folder, try_lock, unlock, write_atomically
from indexer.models.model_files import ModelFiles
from indexer.models.packs import ModelFile, Pack
from indexer.types import sha256

PIECE_BYTES = 2**18
"""What is held in memory of a file on its way."""

MAX_BYTES = 4 * 2**30
"""Of a file whose size is not known beforehand; the largest networks for faces have a quarter of it."""

TELL_SECONDS = 0.1
"""Between two words about the progress of one file."""

LOCK_NAME = ".pull.lock"
LOCK_SECONDS = 0.1
"""Between two looks whether the other pull is done."""

NOT_THERE = (401, 403, 404, 410)
"""Statuses after which the next place is tried. Object stores say 403 of what is not there to who may not list them."""

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How the members of a ZIP may be packed: the two that `ZipExtFile.read(n)` unpacks no further than `n` bytes."""


@dataclass(frozen=True)
class Progress:
    """How far a file, or the ZIP that holds it, has come."""

    name: str
    done: int
    """Bytes, those of earlier pulls among them."""
    total: int | None
    """Bytes; None while nobody said how many there are."""
    waiting: bool = False
    """Whether another pull is at work in the same folder, and this one, `name` being its pack, waits for it."""


@dataclass(frozen=True)
class Pulled:
    """A file of the pack that is there now, its hash right."""

    file: ModelFile
    path: Path
    sha256: str
    source: str
    """The URL or path that it came from; empty when it was there already."""


@dataclass(frozen=True)
class Patience:
    """How long servers are borne with."""

    silence_seconds: float = 30.0
    """Without a single byte, after which the connection counts as cut."""
    pauses_seconds: tuple[float, ...] = (0.5, 2.0, 5.0)
    """Before each new attempt after a cut. When the last has brought nothing either, that was it; when one brings
    more of the file than there was, they begin again."""


def _tell_nobody(_: Progress) -> None:
    pass


def pull(
    pack: Pack,
    files: ModelFiles,
    source: str | None = None,
    progress: Callable[[Progress], None] = _tell_nobody,
    patience: Patience | None = None,
) -> list[Pulled]:
    """Sees to it that every file of the pack is there, sound; those that are there already are left alone.

    They come from their own URLs, or from `source`: a URL or a folder under which they lie by their names or in the
    ZIP that their URL names, or a ZIP. Where a file's hash is not known beforehand, the first pull records it.

    Raises ModelUnavailable. What a cut connection brought is kept for the next pull, wrong bytes are not, and a full
    disk is given back what was taken of it.
    """
    found = [_there(file, files) for file in pack.files]
    there = [pulled for pulled in found if pulled]
    if len(there) == len(found):
        return there  # also in a folder where nothing can be written
    with _writing(pack.name, files.folder):
        files.folder.mkdir(parents=True, exist_ok=True)
    with _alone(files.folder, pack.name, progress):
        return _Pull(pack, files, source, progress, patience or Patience()).run(found)


def _there(file: ModelFile, files: ModelFiles) -> Pulled | None:
    """The file where it lies already; None when it does not, or is damaged. A hash that is not known is recorded."""
    path = files.path(file)
    if path is None:
        return None
    known = files.known(file)
    try:
        found, size = _hash(path), path.stat().st_size
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
    if known.sha256 not in ("", found) or known.size not in (0, size):
        return None
    if not known.sha256:
        files.record(file, found)
    return Pulled(file, path, found, "")


class _NotThere(Exception):
    """A place does not have the file; says so in words."""


class _NoMember(_NotThere):
    """A ZIP is there, and the file is not in it."""


class _Cut(Exception):
    """The connection ended, or fell silent, before the file was whole."""


class _NoAnswer(_Cut):
    """There was none to begin with."""


class _Wrong(ModelUnavailable):
    """Bytes came, and they are not what was asked for."""


class _Unwritable(ModelUnavailable):
    """The disk does not take them."""


@dataclass(frozen=True)
class _Place:
    where: str
    """A URL or a path."""
    zipped: bool
    """Whether a ZIP lies there, the file in it."""


@dataclass(frozen=True)
class _Note:
    """What must be known to go on with a part."""

    key: str
    """`_key` of the URL that it comes from."""
    validator: str
    """The answer's strong ETag, else its Last-Modified; empty when it had none."""
    total: int | None
    whole: bool = False
    """Whether all of it has reached the disk."""


@dataclass(frozen=True)
class _Part:
    """A file on its way."""

    folder: Path
    name: str
    size: int
    """Bytes; 0 where that is not known."""
    sure: bool
    """Whether its hash is known. Of other files, two versions glued together would be trusted ever after."""

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.part"

    @property
    def limit(self) -> int:
        """Bytes."""
        return self.size or MAX_BYTES

    @property
    def done(self) -> int:
        """Bytes."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def note(self, url: str) -> _Note | None:
        """None when the part is not one of this URL that can be gone on with."""
        note = self._noted()
        if note is None or note.key != _key(url) or not (note.whole or self.sure or note.validator):
            return None
        fits = note.total is None or (self.done == note.total if note.whole else self.done <= note.total)
        return note if fits else None

    def is_of(self, url: str) -> bool:
        note = self._noted()
        return note is not None and note.key == _key(url)

    def _noted(self) -> _Note | None:
        try:
            said = json.loads(self._note_path.read_bytes())
            ours = isinstance(said["validator"], str) and isinstance(said["total"], int | None)
            return _Note(**said) if ours else None
        except (OSError, ValueError, TypeError, KeyError):  # none, or none of ours
            return None

    def keep(self, note: _Note) -> None:
        write_atomically(self._note_path, [json.dumps(asdict(note)).encode()])

    def begin(self, note: _Note | None = None) -> None:
        """Empties it. The old note goes first: none is better than one about other bytes."""
        self._note_path.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        if note:
            self.keep(note)

    def become(self, target: Path) -> None:
        """Takes the place of `target`, for good."""
        self.path.replace(target)
        self._note_path.unlink(missing_ok=True)
        sync_folder(self.folder)

    def discard(self) -> None:
        for path in (self._note_path, self.path):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @property
    def _note_path(self) -> Path:
        return self.folder / f"{self.name}.part.state"  # not .json: those describe packs


@dataclass(frozen=True)
class _Pull:
    """The pull of one pack, which has the models folder to itself."""

    pack: Pack
    files: ModelFiles
    source: str | None
    progress: Callable[[Progress], None]
    patience: Patience

    def run(self, found: Sequence[Pulled | None]) -> list[Pulled]:
        """`found` is what was there of each file; the others are looked for again: another pull may have ended."""
        pulled = [
            there or _there(file, self.files) or self._bring(file)
            for file, there in zip(self.pack.files, found, strict=True)
        ]
        for part in (self._archive, *map(self._part, self.pack.files)):
            part.discard()  # also what an earlier pull left that went another way
        return pulled

    @property
    def folder(self) -> Path:
        return self.files.folder

    @property
    def _archive(self) -> _Part:
        """The ZIP that files of the pack come in. It never gets a name of its own, and goes when all are out of it."""
        return _Part(self.folder, f"{self.pack.name}.zip", size=0, sure=False)

    def _part(self, file: ModelFile) -> _Part:
        known = self.files.known(file)
        return _Part(self.folder, file.name, known.size, sure=bool(known.sha256))

    def _bring(self, file: ModelFile) -> Pulled:
        tried = []
        for place in _places(file, self.source):
            try:
                return self._bring_from(place, file)
            except _NotThere as error:
                tried.append(str(error))
        raise ModelUnavailable(f"{file.name} is in none of the places where it was looked for: {'; '.join(tried)}")

    def _bring_from(self, place: _Place, file: ModelFile) -> Pulled:
        part = self._part(file)
        try:
            if place.zipped:
                self._unzip(place, file, part)
            elif _is_url(place.where):
                self._fetch(place.where, part)
            else:
                self._copy(Path(place.where), part)
            return self._settle(file, part, _shown(place.where))
        except (_NoMember, _Wrong, _Unwritable):
            part.discard()
            if place.zipped and _is_url(place.where):
                self._archive.discard()
            raise

    def _settle(self, file: ModelFile, part: _Part, source: str) -> Pulled:
        """Gives the part its name, if it is what it should be. What is on the disk is read for that, not what came."""
        known = self.files.known(file)
        target = self.folder / file.name
        with _writing(part.name, self.folder):
            found, size = _hash(part.path), part.done
            if known.sha256 not in ("", found) or known.size not in (0, size):
                raise _Wrong(_difference(file, known, source, found, size))
            part.become(target)
        if not known.sha256:
            self.files.record(file, found)
        return Pulled(file, target, found, source)

    def _copy(self, path: Path, part: _Part) -> None:
        if not path.is_file():
            raise _NotThere(f"there is no {path}")
        with _reading(part.name, str(path)):
            file, size = path.open("rb"), path.stat().st_size
        with file:
            _check_size(part, size, str(path))
            self._begin(part, size)
            self._pour(part, 0, size, _pieces(file, part.name, str(path)))

    def _unzip(self, place: _Place, file: ModelFile, part: _Part) -> None:
        shown, path = _shown(place.where), Path(place.where)
        if _is_url(place.where):
            self._fetch(place.where, self._archive)
            path = self._archive.path
        elif not path.is_file():
            raise _NotThere(f"there is no {path}")
        with _reading(part.name, shown):
            archive = zipfile.ZipFile(path)
        with archive:
            entry = _entry(archive, file, shown)
            _check_size(part, entry.file_size, f"{entry.filename} in {shown}")
            with _reading(part.name, shown):
                packed = archive.open(entry)
            with packed:
                self._begin(part, entry.file_size)
                self._pour(part, 0, entry.file_size, _pieces(packed, part.name, shown))

    def _fetch(self, url: str, part: _Part) -> None:
        """Brings all that lies at the URL into the part, going on from where it was cut, now or in an earlier pull."""
        shown = _shown(url)
        note = part.note(url)
        if note and (note.whole or (part.sure and note.total == part.done)):
            return
        most, came, pauses = part.done if note else 0, False, iter(self.patience.pauses_seconds)
        while True:
            try:
                self._fetch_on(url, part)
                break
            except _Cut as cut:
                if part.note(url) and part.done > most:
                    most, came, pauses = part.done, True, iter(self.patience.pauses_seconds)
                pause = None if isinstance(cut, _NoAnswer) and not came else next(pauses, None)
                if pause is None:
                    raise ModelUnavailable(
                        f"{part.name} cannot be fetched from {shown}: {cut}{_what_is_left(part, url)}"
                    ) from cut
                time.sleep(pause)

    def _fetch_on(self, url: str, part: _Part) -> None:
        """One request's worth. Raises _Cut when that is not the rest."""
        shown = _shown(url)
        answer, start, total = self._answer(url, part)
        with answer:
            _check_answer(part, answer, total, shown)
            note = _Note(_key(url), _validator(answer), total)
            expected = total or part.size
            if start:
                self._make_room(part, expected - start)
            else:
                self._begin(part, expected, note)
            done = self._pour(part, start, expected or None, _body(answer, answer.length))
            if done < expected:
                raise _Cut(f"it ended after {done} of {expected} bytes")
        with _writing(part.name, self.folder):
            part.keep(replace(note, total=done, whole=True))

    def _answer(self, url: str, part: _Part) -> tuple[http.client.HTTPResponse, int, int | None]:
        """An answer with the file, which of its bytes that begins with, and how many there are in all, where known."""
        note, start = part.note(url), part.done
        if note and start:
            wanted = {"Range": f"bytes={start}-"} | ({"If-Range": note.validator} if note.validator else {})
            answer = self._ask(url, wanted)
            total = _total(answer, start, note) if answer else None
            if answer and total is not None:
                return answer, start, total
            if answer and answer.status == 200:
                return answer, 0, answer.length
            if answer:
                answer.close()
        answer = self._ask(url, {})
        if answer is None or answer.status != 200:
            if answer:
                answer.close()
            raise _Wrong(f"{part.name} cannot be fetched from {_shown(url)}: it does not answer with all of it")
        return answer, 0, answer.length

    def _ask(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse | None:
        """None where there is no such range of the file. Raises _NotThere and _NoAnswer."""
        try:
            answer: http.client.HTTPResponse = _opener().open(
                _request(url, headers), timeout=self.patience.silence_seconds
            )
            return answer
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer too, and holds the connection
            said = f"answers {error.code} {error.reason}"
            if error.code == 416:
                return None
            if error.code in NOT_THERE:
                raise _NotThere(f"{_shown(url)} {said}") from error
            raise _NoAnswer(f"it {said}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _NoAnswer(_reason(error)) from error

    def _begin(self, part: _Part, size: int, note: _Note | None = None) -> None:
        """`size` in bytes; 0 where that is not known."""
        self._make_room(part, size)
        with _writing(part.name, self.folder):
            part.begin(note)

    def _make_room(self, part: _Part, needed: int) -> None:
        """`needed` in bytes. Raises ModelUnavailable when the disk has not that much."""
        with _writing(part.name, self.folder):
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise ModelUnavailable(
                f"{part.name} needs {needed} bytes in {self.folder}, and {free} are free on that disk"
            )

    def _pour(self, part: _Part, start: int, total: int | None, pieces: Iterable[bytes]) -> int:
        """Writes the pieces behind the `start` bytes that are there, down to the disk. Returns how many are there."""
        done, told = start, 0.0
        with _writing(part.name, self.folder):
            out = part.path.open("ab", buffering=0)
        with out:
            for piece in pieces:
                done += len(piece)
                if done > part.limit:
                    raise _Wrong(f"{part.name} does not end after {part.limit} bytes, as was expected")
                with _writing(part.name, self.folder):
                    _write(out, piece)
                if time.monotonic() >= told + TELL_SECONDS:
                    told = time.monotonic()
                    self.progress(Progress(part.name, done, total))
            with _writing(part.name, self.folder):
                os.fsync(out.fileno())
        self.progress(Progress(part.name, done, total or done))
        return done


def _places(file: ModelFile, source: str | None) -> list[_Place]:
    """Where the file may be had, in the order in which that is tried. Raises ModelUnavailable: nowhere."""
    if source is None:
        if not file.url:
            raise ModelUnavailable(f"{file.name} is not there, and its pack names no place that it could be had from")
        return [_Place(_checked_url(file.url, file), zipped=bool(file.member))]
    names = [(file.name, False)]
    if file.member and (last := PurePosixPath(unquote(urlsplit(file.url).path)).name):
        names.append((last, True))
    if _is_url(source):
        parts = urlsplit(_checked_url(source, file))
        if parts.path.lower().endswith(".zip"):
            return [_Place(source, zipped=True)]
        return [_Place(_below(parts, name), zipped) for name, zipped in names]
    folder = Path(source)
    if folder.is_file():
        return [_Place(source, zipped=True)]
    if not folder.is_dir():
        raise ModelUnavailable(f"{file.name} cannot be had from {source}: expected a URL, a folder or a ZIP")
    return [_Place(str(folder / name), zipped) for name, zipped in names]


def _is_url(where: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", where, re.IGNORECASE) is not None


def _checked_url(url: str, file: ModelFile) -> str:
    """Raises ModelUnavailable for what is no URL of a web server."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url
    except ValueError:
        pass  # brackets that do not match, a port that is no number
    raise ModelUnavailable(f"{file.name} cannot be had from {url}: expected a URL with http or https")


def _below(parts: SplitResult, name: str) -> str:
    """The query stays: it may be what opens the door."""
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _shown(where: str) -> str:
    """A path as it is, a URL without what may be secret: user, password and query."""
    if not _is_url(where):
        return where
    parts = urlsplit(where)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _key(url: str) -> str:
    """Tells URLs apart and gives nothing of them away."""
    return sha256(_bare(url).encode())


def _bare(url: str) -> str:
    """Without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to web servers only, and never from an encrypted connection to one that is not."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            said = f"{msg}, to {_shown(newurl)}, where it is not followed"
            raise urllib.error.HTTPError(req.full_url, code, said, headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """Speaks HTTP and HTTPS, through the proxies that HTTP_PROXY, HTTPS_PROXY and NO_PROXY name, and nothing else."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """Raises ValueError. A user and password in the URL are sent to that server, and to none that it redirects to."""
    parts = urlsplit(url)
    known = {"User-Agent": "whosthere", **headers}
    request = urllib.request.Request(_bare(url), headers=known)  # noqa: S310 (it was checked)
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    return request


def _validator(answer: http.client.HTTPResponse) -> str:
    """What tells this version of the file from every other, in If-Range; empty when the answer names nothing."""
    etag: str = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")


def _total(answer: http.client.HTTPResponse, start: int, note: _Note) -> int | None:
    """How many bytes the file has, of which the answer goes on from `start`; None when it does not, or not with the
    file that the note is about."""
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", "").strip())
    if answer.status != 206 or not said:
        return None
    first, last, total = map(int, said.groups())
    name = "ETag" if note.validator.startswith('"') else "Last-Modified"
    fits = (
        first == start <= last < total == (note.total or total)
        and answer.length in (None, last + 1 - first)
        and note.validator in ("", answer.headers.get(name, note.validator))
    )
    return total if fits else None


def _check_answer(part: _Part, answer: http.client.HTTPResponse, total: int | None, shown: str) -> None:
    """`total` in bytes. Raises _Wrong when what comes cannot be the file."""
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise _Wrong(f"{shown} answers with {part.name} encoded as {answer.headers['Content-Encoding']}")
    if not part.sure:
        if answer.headers.get_content_type() == "text/html":
            raise _Wrong(f"{shown} answers with a web page; expected {part.name}")
        if total is None and not answer.chunked:
            raise _Wrong(f"{shown} does not say how long {part.name} is, so nobody could tell whether all of it came")
    if total is not None:
        _check_size(part, total, shown)


def _check_size(part: _Part, size: int, shown: str) -> None:
    """`size` in bytes. Raises _Wrong when the part must have another."""
    if part.size and size != part.size:
        raise _Wrong(f"{shown} is not {part.name}: expected {part.size} bytes, found {size}")
    if size > part.limit:
        raise _Wrong(f"{shown} has {size} bytes; expected at most {part.limit} of {part.name}")


def _body(answer: http.client.HTTPResponse, left: int | None) -> Iterator[bytes]:
    """The answer's bytes as they come, `left` of them or to its end. Raises _Cut."""
    while left is None or left > 0:
        try:
            piece = answer.read1(PIECE_BYTES if left is None else min(PIECE_BYTES, left))
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(_reason(error)) from error
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


def _pieces(file: IO[bytes], name: str, shown: str) -> Iterator[bytes]:
    """Raises ModelUnavailable."""
    while True:
        with _reading(name, shown):
            piece = file.read(PIECE_BYTES)
        if not piece:
            return
        yield piece


def _entry(archive: zipfile.ZipFile, file: ModelFile, shown: str) -> zipfile.ZipInfo:
    """The file in the ZIP, in whatever folder. Raises _NoMember and _Wrong."""
    wanted = PurePosixPath(file.member or file.name).name
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    found = [entry for entry in entries if PurePosixPath(entry.filename).name == wanted]
    found = [entry for entry in found if entry.filename == file.member] or found
    if not found:
        others = ", ".join(entry.filename for entry in entries[:10]) or "nothing"
        raise _NoMember(f"{shown} holds no {wanted}, but {others}")
    if len(found) > 1:
        raise _Wrong(f"{shown} holds several {wanted}: {', '.join(entry.filename for entry in found)}")
    if found[0].compress_type not in COMPRESSIONS or found[0].flag_bits & 1:
        raise _Wrong(
            f"{found[0].filename} in {shown} is packed in a way that is not read: expected deflate, no password"
        )
    return found[0]


@contextmanager
def _reading(name: str, shown: str) -> Iterator[None]:
    """Turns what reading a file, or a file in a ZIP, raises into ModelUnavailable."""
    try:
        yield
    except OSError as error:
        raise ModelUnavailable(f"{name} cannot be read from {shown}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError) as error:
        raise _Wrong(f"{name} cannot be read from {shown}, which is damaged or no ZIP: {_reason(error)}") from error


@contextmanager
def _writing(name: str, folder: Path) -> Iterator[None]:
    """Turns what writing raises into ModelUnavailable."""
    try:
        yield
    except OSError as error:
        raise _Unwritable(f"{name} cannot be written to {folder}: {error.strerror or error}") from error


def _write(out: IO[bytes], piece: bytes) -> None:
    """All of it: an unbuffered file may take less at once."""
    left = memoryview(piece)
    while left:
        left = left[out.write(left) :]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _difference(file: ModelFile, known: ModelFile, source: str, found: str, size: int) -> str:
    expected = " with ".join(
        ([f"{known.size} bytes"] if known.size else []) + ([f"SHA-256 {known.sha256}"] if known.sha256 else [])
    )
    since = f"; that was recorded in {file.name}.sha256 when it first came" if known.sha256 and not file.sha256 else ""
    return f"{source} is not {file.name}: expected {expected}, found {size} bytes with {found}{since}"


def _what_is_left(part: _Part, url: str) -> str:
    """What a pull that gave up leaves, in words. What came from there and cannot be gone on with goes."""
    if part.note(url) and part.done:
        return f"; {part.done} bytes are there, and pulling again goes on from them"
    if part.is_of(url):
        part.discard()
    return ""


def _reason(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    return str(inner or error) or type(error).__name__


@contextmanager
def _alone(folder: Path, name: str, progress: Callable[[Progress], None]) -> Iterator[None]:
    """Holds the models folder's lock, waiting for it. The system lets go of it when a process ends, in whatever way."""
    path = folder / LOCK_NAME
    waited = False
    with _writing(name, folder):
        while (lock := try_lock(path)) is None:
            if not waited:
                progress(Progress(name, 0, None, waiting=True))
            waited = True
            time.sleep(LOCK_SECONDS)
    try:
        yield
    finally:
        unlock(path, lock)
