"""A download in progress: `NAME.part`, and what is needed to resume it as JSON in `NAME.part.state`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from indexer.errors import ModelUnavailable
from indexer.files import sync_folder, write_atomically
from indexer.models.model_files import UnusableFile
from indexer.types import sha256

MAX_BYTES = 4 * 2**30
"""Limit for a file of unknown size. The largest face networks have a quarter of it."""


@dataclass(frozen=True)
class Progress:
    """How much of a file, or of the ZIP that contains it, has arrived."""

    name: str
    done: int
    """Stored bytes, including those of earlier pulls."""
    total: int | None
    """Size in bytes; None while it is unknown."""
    waiting: bool = False
    """Whether another pull works in the same folder and this one waits; `name` is then the name of its pack."""


ProgressListener = Callable[[Progress], None]


@dataclass(frozen=True)
class ResumeState:
    """Identifies the version of the remote file that the stored bytes belong to."""

    key: str
    """Hash of the URL, which may contain secrets."""
    validator: str
    """The response's strong ETag, otherwise its Last-Modified; empty if it has neither."""
    total: int | None
    """Size in bytes; None while it is unknown."""


@dataclass(frozen=True)
class PartialFile:
    """A file that is on its way from one URL or path. Its methods raise OSError."""

    folder: Path
    name: str
    location: str
    """The URL or path."""
    size: int = 0
    """Expected size in bytes; 0 if unknown."""
    is_verifiable: bool = False
    """Whether a known hash, or the checksums of a ZIP, would reveal a mixture of two versions."""
    progress: ProgressListener = field(default=lambda _: None, compare=False)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.part"

    @property
    def _state_path(self) -> Path:
        return self.folder / f"{self.name}.part.state"  # files named .json describe packs

    @property
    def stored(self) -> int:
        """The number of bytes stored so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def _key(self) -> str:
        return sha256(without_credentials(self.location).encode())

    def resume_state(self) -> ResumeState | None:
        """Returns the recorded state if the stored bytes come from this URL and can be continued."""
        try:
            state = ResumeState(**json.loads(self._state_path.read_bytes()))
            is_usable = state.validator.isascii() and self.stored <= int(state.total or MAX_BYTES)
        except (AttributeError, OSError, TypeError, ValueError):
            return None
        return state if is_usable and state.key == self._key and (self.is_verifiable or state.validator) else None

    @property
    def resumable(self) -> int:
        """The number of stored bytes that a download can keep."""
        return self.stored if self.resume_state() else 0

    @property
    def is_complete(self) -> bool:
        state = self.resume_state()
        return self.is_verifiable and state is not None and state.total == self.stored

    def start(self, validator: str = "", total: int | None = None) -> None:
        """Starts over with an empty file."""
        self._state_path.unlink(missing_ok=True)  # first: a state must never describe other bytes
        self.path.write_bytes(b"")
        self.record(validator, total)

    def record(self, validator: str, total: int | None) -> None:
        """Records what is needed to resume."""
        state = ResumeState(self._key, validator, total)
        write_atomically(self._state_path, [json.dumps(asdict(state)).encode()])

    def receive(self, chunks: Iterable[bytes], total: int | None) -> None:
        """Appends the chunks and syncs them to the disk. `total` is the size of the whole file, None if unknown.

        Raises UnusableFile if the size is not the expected one, ModelUnavailable if the disk has too little space. What
        cannot be written is deleted.
        """
        if total is not None and (total != self.size if self.size else total > MAX_BYTES):
            expected = self.size or f"at most {MAX_BYTES}"
            raise UnusableFile(f"{shown(self.location)} is not {self.name}: expected {expected} bytes, found {total}")
        total = total or self.size or None
        free = shutil.disk_usage(self.folder).free
        if total and total - self.stored > free:
            if not self.stored:
                self.discard()
            raise ModelUnavailable(f"{self.name} needs {total} bytes in {self.folder}, but only {free} are free there")
        for done in self._append(chunks):
            self.progress(Progress(self.name, done, total))
        if not total:
            self.progress(Progress(self.name, self.stored, self.stored))

    def _append(self, chunks: Iterable[bytes]) -> Iterator[int]:
        """Yields the number of stored bytes after each chunk."""
        done, limit = self.stored, self.size or MAX_BYTES
        try:
            with self.path.open("ab", buffering=0) as out:
                for chunk in chunks:
                    done += len(chunk)
                    if done > limit:
                        raise UnusableFile(f"{shown(self.location)} is not {self.name}: it exceeds {limit} bytes")
                    rest = memoryview(chunk)
                    while rest:  # an unbuffered file may accept only a part
                        rest = rest[out.write(rest) :]
                    yield done
                os.fsync(out.fileno())
        except OSError:
            self.discard()
            raise

    def move_to(self, target: Path) -> None:
        """Replaces `target`, durably."""
        try:
            self.path.replace(target)
            sync_folder(self.folder)
        finally:
            self.discard()

    def discard(self) -> None:
        for path in (self._state_path, self.path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def is_url(location: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", location, re.IGNORECASE) is not None


def without_credentials(url: str) -> str:
    """Returns the URL without user and password."""
    return re.sub(r"(?<=://)[^/?#]*@", "", url, count=1)


def shown(location: str) -> str:
    """Returns a path, or a URL without the parts that may be secret, for messages."""
    return re.split("[?#]", without_credentials(location))[0] if is_url(location) else location
