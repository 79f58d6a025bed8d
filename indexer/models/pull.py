"""Brings the files of a model pack into the models folder: downloaded or copied, verified, then renamed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import ModelUnavailable
from indexer.files import exclusive_lock
from indexer.models.download import RetryPolicy, download
from indexer.models.model_files import ModelFiles, UnusableFile
from indexer.models.model_sources import Source, SourceNotFound, find_sources, read_local
from indexer.models.packs import FileSet, ModelFile
from indexer.models.partial_file import PartialFile, Progress, ProgressListener, shown

LOCK_NAME = ".pull.lock"
LOCK_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PulledFile:
    """A file of the pack that is present and intact."""

    file: ModelFile
    path: Path
    sha256: str
    source: str
    """The URL or path that it was taken from; empty if it was present before."""


def pull(
    pack: FileSet,
    files: ModelFiles,
    mirror: str | None = None,
    progress: ProgressListener = lambda _: None,
    retry: RetryPolicy | None = None,
) -> list[PulledFile]:
    """Ensures that every file of the pack is present and intact, and fetches the others: from their own URLs, or from
    `mirror`, a URL, a folder or a ZIP.

    Hashes that the pack does not know are recorded by the first pull. An interrupted download is resumed by the next
    pull. One pull at a time works in a models folder. Raises ModelUnavailable.
    """
    work = _Pull(pack, files, mirror, progress, retry or RetryPolicy())
    present = [work.find(file) for file in pack.files]
    found = [pulled for pulled in present if pulled]
    if len(found) == len(present):
        return found  # before locking: the folder may be read-only
    has_reported = False
    try:
        while True:
            with exclusive_lock(files.folder / LOCK_NAME) as has_lock:
                if has_lock:
                    return work.run(present)
            if not has_reported:
                progress(Progress(pack.name, 0, None, waiting=True))
            has_reported = True
            time.sleep(LOCK_POLL_SECONDS)
    except OSError as error:
        raise ModelUnavailable(f"{pack.name} cannot be written to {files.folder}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Pull:
    """The pull of one pack."""

    pack: FileSet
    files: ModelFiles
    mirror: str | None
    progress: ProgressListener
    retry: RetryPolicy

    def run(self, present: list[PulledFile | None]) -> list[PulledFile]:
        """Obtains the files that are not present, unless another pull has brought them meanwhile. Raises OSError."""
        pulled = [
            found or self.find(file) or self._obtain(file) for file, found in zip(self.pack.files, present, strict=True)
        ]
        for name in (self._archive_name, *(file.name for file in self.pack.files)):
            PartialFile(self.files.folder, name, "").discard()  # an interrupted pull from elsewhere may remain
        return pulled

    @property
    def _archive_name(self) -> str:
        """The ZIP that has files of the pack; it is deleted when all of them are extracted."""
        return f"{self.pack.name}.zip"

    def find(self, file: ModelFile) -> PulledFile | None:
        """Returns the file if it is present and intact. Raises ModelUnavailable if it cannot be read."""
        path = self.files.path(file)
        if path is None:
            return None
        try:
            return self._accept(file, path, self._hash(file, path, str(path)), "")
        except UnusableFile:
            return None
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error

    def _hash(self, file: ModelFile, path: Path, place: str) -> str:
        """Returns the SHA-256 of what is on the disk. Raises UnusableFile unless it is the file, and OSError."""
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        self.files.check_hash(file, found, path.stat().st_size, place)
        return found

    def _accept(self, file: ModelFile, path: Path, sha256: str, source: str) -> PulledFile:
        self.files.record_hash(file, sha256)
        return PulledFile(file, path, sha256, source)

    def _obtain(self, file: ModelFile) -> PulledFile:
        missing = []
        for source in find_sources(file, self.mirror):
            try:
                return self._obtain_from(source, file)
            except SourceNotFound as error:
                missing.append(str(error))
            except OSError as error:
                problem = f"{file.name} cannot be written to {self.files.folder}: {error.strerror or error}"
                raise ModelUnavailable(problem) from error
        raise ModelUnavailable(f"{file.name} was not found: {'; '.join(missing)}")

    def _obtain_from(self, source: Source, file: ModelFile) -> PulledFile:
        known, place, path = self.files.with_known_hash(file), shown(source.location), Path(source.location)
        part = self._partial(file.name, source, known.size, is_verifiable=bool(known.sha256))
        archive = self._partial(self._archive_name, source, is_verifiable=True)
        try:
            if source.is_url:
                download(archive if source.is_zip else part, self.retry)
                path = archive.path
            elif not path.is_file():
                raise SourceNotFound(f"there is no {path}")
            if source.is_zip or not source.is_url:
                part.start()
                part.receive(read_local(path, file, source), known.size or None)
            sha256 = self._hash(file, part.path, place)
        except UnusableFile:
            part.discard()
            if source.is_zip and source.is_url:
                archive.discard()
            raise
        target = self.files.folder / file.name
        part.move_to(target)
        return self._accept(file, target, sha256, place)

    def _partial(self, name: str, source: Source, size: int = 0, *, is_verifiable: bool) -> PartialFile:
        return PartialFile(self.files.folder, name, source.location, size, is_verifiable, self.progress)
