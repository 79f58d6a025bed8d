"""Model files on disk: found, checked against their hash, prepared once and kept."""

from __future__ import annotations

import importlib.util
import json
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from indexer.errors import PYTORCH_MISSING, ModelUnavailable
from indexer.files import write_atomically
from indexer.models import onnx_prepare
from indexer.models.packs import BUILT_IN, CHECKPOINTS, DETECTORS, ModelFile
from indexer.types import sha256

SHA256 = re.compile(rb"[0-9a-f]{64}")

PREPARED = 1
"""Raise it when preparing makes other networks of the same files."""


@dataclass(frozen=True)
class ModelFiles:
    """The models folder and the other places a file may come from. Thread-safe."""

    folder: Path
    beyond: Path | None = None
    """Another models folder, which is read and not written."""
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Held while a file is prepared: it takes seconds and a gigabyte, and who asks meanwhile needs the same."""

    def path(self, file: ModelFile) -> Path | None:
        """Where the file lies: in the models folder, else in a package; None where it does not."""
        return next((path for path in self._places(file) if path.is_file()), None)

    def read(self, file: ModelFile) -> bytes:
        """The file's bytes; its hash is right. Raises ModelUnavailable: a damaged file, or none."""
        path = self.path(file)
        if path is None:
            raise ModelUnavailable(f"{file.name} is not in {self.folder}; `whosthere models pull` fetches it")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
        known = self.known(file)
        if not known.sha256:
            self.record(file, sha256(data))
            return data
        return checked(data, known, str(path))

    def state(self, file: ModelFile) -> str:
        """Where the file lies, for people. Raises ModelUnavailable where it does not, or is not sound."""
        self.read(file)
        return str(self.path(file))

    def known(self, file: ModelFile) -> ModelFile:
        """The file with the hash that was recorded at its first use, where its pack does not name one. Raises
        ModelUnavailable where what was recorded cannot be read."""
        if file.sha256:
            return file
        record = self._record(file)
        if self.beyond and not record.exists():
            record = self.beyond / record.name
        try:
            found = record.read_bytes().split(maxsplit=1)
        except FileNotFoundError:
            return file
        except OSError as error:
            raise ModelUnavailable(f"{record} cannot be read: {error.strerror}") from error
        if not found or not SHA256.fullmatch(found[0]):  # a new one must not take its place unasked
            raise ModelUnavailable(f"{record} is damaged: expected a SHA-256 of 64 hexadecimal digits")
        return replace(file, sha256=found[0].decode())

    def identified(self, file: ModelFile) -> ModelFile:
        """The file with its hash. One that is used for the first time is read, and its hash written down. Raises
        ModelUnavailable."""
        known = self.known(file)
        if not known.sha256:
            self.read(file)
            known = self.known(file)
        return known

    def record(self, file: ModelFile, found: str) -> None:
        """Writes down the hash that the file must have from now on, as `sha256sum` does. Raises ModelUnavailable."""
        try:
            write_atomically(self._record(file), [f"{found}  {file.name}\n".encode()], shared=True)
        except OSError as error:
            raise ModelUnavailable(f"the hash of {file.name} cannot be written to {self.folder}: {error}") from error

    def prepared(self, file: ModelFile) -> bytes:
        """The network as an ONNX model that every runtime takes. Made once: a copy is kept in the models folder, and
        used as long as its own hash is the one that the pack knows or that was written down beside it.

        Raises ModelUnavailable.
        """
        with self._lock:
            file = self.identified(file)
            target = self.prepared_path(file)
            kept = ModelFile(f"prepared/{target.name}", file.network, "", "", sha256=file.prepared_sha256)
            expected = self.known(kept).sha256
            with suppress(OSError):  # not made yet
                data = target.read_bytes()
                if expected and sha256(data) == expected:
                    return data
            model = self._prepare(file, self.read(file))
            if file.prepared_sha256 and sha256(model) != file.prepared_sha256:
                return model  # another version of onnx may write the same model in other bytes
            with suppress(OSError, ModelUnavailable):  # a read-only or full disk costs the time to do it again
                write_atomically(target, [model], shared=True)
                if not file.prepared_sha256:
                    self.record(kept, sha256(model))
            return model

    def quantised(self, file: ModelFile) -> bytes:
        """The int8 model that `quantize.quantise` made of this very file. Raises ModelUnavailable where it made none,
        made it of another file, or the model is damaged."""
        target = self.quantised_path(file)
        try:
            model, about = target.read_bytes(), target.with_suffix(".json").read_bytes()
        except FileNotFoundError as error:
            raise ModelUnavailable(f"{file.name} has no int8 form here; {_quantise_again(file)}") from error
        except OSError as error:
            raise ModelUnavailable(f"{target} cannot be read: {error.strerror}") from error
        known = self.identified(file)
        try:
            report = json.loads(about)
            source, expected = str(report["source_sha256"]), str(report["sha256"])
        except (ValueError, TypeError, KeyError) as error:
            place = target.with_suffix(".json")
            raise ModelUnavailable(f"{place} is damaged; {_quantise_again(file)}") from error
        if source != known.sha256:
            raise ModelUnavailable(
                f"{target} was made of another {file.name}: expected one with SHA-256 {known.sha256}, "
                f"found {source}; {_quantise_again(file)}"
            )
        if sha256(model) != expected:
            raise ModelUnavailable(
                f"{target} is damaged: expected SHA-256 {expected}, found {len(model)} bytes with {sha256(model)}; "
                f"{_quantise_again(file)}"
            )
        return model

    def prepared_path(self, file: ModelFile) -> Path:
        """Where the ONNX model that is made of a file is kept, whose hash is known."""
        return self.folder / "prepared" / f"{file.prepared_sha256 or f'{file.sha256}-{PREPARED}'}.onnx"

    def quantised_path(self, file: ModelFile) -> Path:
        """Where the file's int8 form is kept; what is known of it lies beside as JSON."""
        return self.folder / "int8" / f"{file.name}.int8.onnx"

    def _prepare(self, file: ModelFile, original: bytes) -> bytes:
        if file.network in CHECKPOINTS:
            return bytes(checkpoints_for(file).to_onnx(original, file))
        try:
            return onnx_prepare.prepare(original, free_sides=file.network in DETECTORS)
        except Exception as error:  # a file of the right hash that is no ONNX model raises nearly anything
            raise ModelUnavailable(f"{file.name} is not an ONNX model that can be prepared: {error}") from error

    def _places(self, file: ModelFile) -> list[Path]:
        places = [folder / file.name for folder in (self.folder, self.beyond) if folder]
        spec = importlib.util.find_spec(file.package) if file.package else None
        if spec is not None:
            places += [Path(root) / file.package_path for root in spec.submodule_search_locations or ()]
        return places

    def _record(self, file: ModelFile) -> Path:
        return self.folder / f"{file.name}.sha256"


def checkpoints_for(file: ModelFile) -> Any:
    """The module `checkpoints`, which needs PyTorch. Raises ModelUnavailable where that is not installed."""
    try:
        from indexer.models import checkpoints
    except ImportError as error:
        raise ModelUnavailable(
            f"{file.name} is a PyTorch checkpoint, and PyTorch is not installed: pip install 'whosthere[torch]'",
            code=PYTORCH_MISSING,
        ) from error
    return checkpoints


def _quantise_again(file: ModelFile) -> str:
    own, plus, _ = file.name.partition("+")  # see `catalogue.FileDescription`
    name = own if plus else next((pack.name for pack in BUILT_IN if pack.embedder.name == file.name), "PACK")
    return f"`whosthere models quantize {name} --calibrate FOLDER` makes it"


def checked(data: bytes, file: ModelFile, place: str) -> bytes:
    """`data`, which was found at `place`. Raises ModelUnavailable when it is not that file."""
    found = sha256(data)
    if found != file.sha256:
        raise ModelUnavailable(
            f"{place} is not {file.name}: expected {f'{file.size} bytes with ' if file.size else ''}SHA-256 "
            f"{file.sha256}, found {len(data)} bytes with {found}"
        )
    return data
