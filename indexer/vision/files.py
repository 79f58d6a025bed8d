"""Model files on disk: found, checked against their hash, fetched, prepared once and kept."""

from __future__ import annotations

import http.client
import importlib.util
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from indexer.disk import write_atomically
from indexer.errors import ModelUnavailable
from indexer.types import sha256
from indexer.vision import prepare
from indexer.vision.packs import ModelFile

FETCH_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class ModelFiles:
    """The models folder and the other places a file may come from."""

    folder: Path

    def read(self, file: ModelFile) -> bytes:
        """The file's bytes, from the models folder, else a package's data, else its URL; its hash is right.

        Raises ModelUnavailable: a file in the models folder that is damaged, or none that can be had.
        """
        for path in self._places(file):
            if path.is_file():
                return _checked(path.read_bytes(), file, str(path))
        return self._fetch(file)

    def state(self, file: ModelFile) -> str:
        """Where the file lies and whether it is sound, for people: a path, or why there is none. Fetches nothing."""
        for path in self._places(file):
            if path.is_file():
                _checked(path.read_bytes(), file, str(path))
                return str(path)
        raise ModelUnavailable(f"{file.name} is not on this machine; it is fetched from {file.url} at first use")

    def prepared(self, file: ModelFile) -> bytes:
        """The file made fit for every runtime. Made once: a copy is kept in the models folder, and used as long as its
        own hash is the one the pack knows."""
        target = self.folder / "prepared" / f"{file.prepared_sha256}.onnx"
        try:
            kept = target.read_bytes()
            if sha256(kept) == file.prepared_sha256:
                return kept
        except OSError:
            pass  # not made yet
        original = self.read(file)
        try:
            model = prepare.prepare(original, file.free_sides)
        except Exception as error:  # a file of the right hash that is no ONNX model raises nearly anything
            raise ModelUnavailable(f"{file.name} is not an ONNX model that can be prepared: {error}") from error
        if sha256(model) == file.prepared_sha256:  # another version of onnx may write the same model in other bytes
            with suppress(OSError):  # a read-only or full disk costs the time to prepare again, nothing else
                write_atomically(target, [model])
        return model

    def _places(self, file: ModelFile) -> list[Path]:
        places = [self.folder / file.name]
        spec = importlib.util.find_spec(file.package) if file.package else None
        if spec is not None:
            places += [Path(root) / file.package_path for root in spec.submodule_search_locations or ()]
        return places

    def _fetch(self, file: ModelFile) -> bytes:
        try:
            with urllib.request.urlopen(file.url, timeout=FETCH_TIMEOUT_SECONDS) as answer:  # noqa: S310 (packs name https)
                data: bytes = answer.read(file.size + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is the answer too, and holds the connection
            raise ModelUnavailable(
                f"{file.name} is not in {self.folder} and cannot be fetched from {file.url}: {error}"
            ) from error
        _checked(data, file, file.url)
        try:
            write_atomically(self.folder / file.name, [data])
        except OSError as error:
            raise ModelUnavailable(f"{file.name} cannot be written to {self.folder}: {error}") from error
        return data


def _checked(data: bytes, file: ModelFile, place: str) -> bytes:
    found = sha256(data)
    if found != file.sha256:
        raise ModelUnavailable(
            f"{place} is not {file.name}: expected {file.size} bytes with SHA-256 {file.sha256}, "
            f"found {len(data)} bytes with {found}"
        )
    return data
