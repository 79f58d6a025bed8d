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
from indexer.models.packs import BUILT_IN, CHECKPOINTS, DETECTORS, FileSet, ModelFile
from indexer.types import sha256

SHA256 = re.compile(rb"[0-9a-f]{64}")

PREPARATION_VERSION = 2
"""Raise it when preparing the same file gives another network."""


class UnusableFile(ModelUnavailable):
    """The content is not the expected file."""


@dataclass(frozen=True)
class ModelFiles:
    """The models folder and the other places where a file may be. Thread-safe. All methods raise ModelUnavailable."""

    folder: Path
    fallback: Path | None = None
    """Another models folder, which is read but not written."""
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    """Held while a file is prepared, which takes seconds and a gigabyte; concurrent callers need the same result."""

    def path(self, file: ModelFile) -> Path | None:
        """Returns where the file is: in the models folder or in an installed package; None if it is missing."""
        return next((path for path in self._candidates(file) if path.is_file()), None)

    def are_present(self, pack: FileSet) -> bool:
        """Returns whether all files of the pack are present."""
        return all(self.path(file) for file in pack.files)

    def problem(self, pack: FileSet) -> str | None:
        """Returns briefly why the files of the pack cannot be used; None if they can."""
        if not self.are_present(pack):
            return "not installed"
        checkpoints = [file for file in pack.files if file.network in CHECKPOINTS]
        needs_torch = any(not self.prepared_path(file).is_file() for file in checkpoints)
        if needs_torch and importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed (pip install 'whosthere[torch]')"
        return None

    def check_present(self, pack: FileSet, kind: str) -> None:
        """Raises ModelUnavailable if a file of the pack, a `kind` such as "model pack", is missing."""
        missing = " and ".join(file.name for file in pack.files if not self.path(file))
        if missing:
            raise ModelUnavailable(
                f"{kind} {pack.name} is not installed: {missing} missing in {self.folder}; "
                f"`whosthere models pull {pack.name}` fetches it"
            )

    def read(self, file: ModelFile) -> bytes:
        """Returns the content, verified. The first use of a file of unknown hash records its hash."""
        path = self.path(file)
        if path is None:
            raise ModelUnavailable(f"{file.name} is not in {self.folder}; `whosthere models pull` fetches it")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
        self.check_hash(file, sha256(data), len(data), str(path))
        self.record_hash(file, sha256(data))
        return data

    def location(self, file: ModelFile) -> str:
        """Returns the path of the file for messages, after verifying the file."""
        self.read(file)
        return str(self.path(file))

    def check_hash(self, file: ModelFile, found: str, size: int, place: str) -> None:
        """Raises UnusableFile if content with this SHA-256 and size in bytes, found at `place`, is not the file."""
        known = self.with_known_hash(file)
        if known.sha256 in ("", found) and known.size in (0, size):
            return
        expected = f"{known.size} bytes with " if known.size else ""
        origin = "" if file.sha256 or not known.sha256 else f" (recorded in {file.name}.sha256 at its first use)"
        raise UnusableFile(
            f"{place} is not {file.name}: expected {expected}SHA-256 {known.sha256 or 'of any value'}{origin}, "
            f"found {size} bytes with {found}"
        )

    def with_known_hash(self, file: ModelFile) -> ModelFile:
        """Returns the file with the hash that its pack names or that its first use recorded, if there was one."""
        if file.sha256:
            return file
        record = self._hash_record(file)
        if self.fallback and not record.exists():
            record = self.fallback / record.name
        try:
            found = record.read_bytes().split(maxsplit=1)
        except FileNotFoundError:
            return file
        except OSError as error:
            raise ModelUnavailable(f"{record} cannot be read: {error.strerror}") from error
        if not found or not SHA256.fullmatch(found[0]):  # replacing it would accept any file
            raise ModelUnavailable(f"{record} is damaged: expected a SHA-256 of 64 hexadecimal digits")
        return replace(file, sha256=found[0].decode())

    def with_hash(self, file: ModelFile) -> ModelFile:
        """Returns the file with its hash, which is computed and recorded at its first use."""
        known = self.with_known_hash(file)
        return known if known.sha256 else replace(file, sha256=sha256(self.read(file)))

    def record_hash(self, file: ModelFile, found: str) -> None:
        """Records the hash that the file must have from now on, unless one is known."""
        if not self.with_known_hash(file).sha256:
            self._write_hash_record(file, found)

    def _write_hash_record(self, file: ModelFile, found: str) -> None:
        """Writes `NAME.sha256` in the format of `sha256sum`."""
        try:
            write_atomically(self._hash_record(file), [f"{found}  {file.name}\n".encode()], shared=True)
        except OSError as error:
            raise ModelUnavailable(f"the hash of {file.name} cannot be written to {self.folder}: {error}") from error

    def prepared_model(self, file: ModelFile) -> bytes:
        """Returns the network as an ONNX model that every runtime accepts.

        A copy is kept in the models folder and used as long as it has the hash that the pack names or that was recorded
        with it.
        """
        with self._lock:
            file = self.with_hash(file)
            target = self.prepared_path(file)
            copy = ModelFile(f"prepared/{target.name}", file.network, "", "", sha256=file.prepared_sha256)
            expected = self.with_known_hash(copy).sha256
            with suppress(OSError):
                data = target.read_bytes()
                if expected and sha256(data) == expected:
                    return data
            model = self._prepare(file, self.read(file))
            if file.prepared_sha256 and sha256(model) != file.prepared_sha256:
                return model  # another version of onnx may write the same model in other bytes
            with suppress(OSError, ModelUnavailable):  # on a read-only or full disk, it is prepared each time
                write_atomically(target, [model], shared=True)
                if not file.prepared_sha256:
                    self._write_hash_record(copy, sha256(model))
            return model

    def quantized_model(self, file: ModelFile) -> bytes:
        """Returns the int8 model that `quantize.quantize_embedder` made from this very file."""
        target = self.quantized_path(file)
        try:
            model, about = target.read_bytes(), target.with_suffix(".json").read_bytes()
        except FileNotFoundError as error:
            raise ModelUnavailable(f"{file.name} has no int8 form here; {_how_to_quantize(file)}") from error
        except OSError as error:
            raise ModelUnavailable(f"{target} cannot be read: {error.strerror}") from error
        known = self.with_hash(file)
        try:
            report = json.loads(about)
            source, expected = str(report["source_sha256"]), str(report["sha256"])
        except (ValueError, TypeError, KeyError) as error:
            report_path = target.with_suffix(".json")
            raise ModelUnavailable(f"{report_path} is damaged; {_how_to_quantize(file)}") from error
        found = sha256(model)
        problem = ""
        if source != known.sha256:
            problem = f"was made from another {file.name}: expected SHA-256 {known.sha256}, found {source}"
        elif found != expected:
            problem = f"is damaged: expected SHA-256 {expected}, found {len(model)} bytes with {found}"
        if problem:
            raise ModelUnavailable(f"{target} {problem}; {_how_to_quantize(file)}")
        return model

    def prepared_path(self, file: ModelFile) -> Path:
        """Returns where the ONNX model that is prepared from a file of known hash is stored."""
        return self.folder / "prepared" / f"{file.prepared_sha256 or f'{file.sha256}-{PREPARATION_VERSION}'}.onnx"

    def quantized_path(self, file: ModelFile) -> Path:
        """Returns where the file's int8 form is stored; its report has the same name with `.json`."""
        return self.folder / "int8" / f"{file.name}.int8.onnx"

    def _prepare(self, file: ModelFile, original: bytes) -> bytes:
        if file.network in CHECKPOINTS:
            return bytes(load_checkpoints_module(file).convert_to_onnx(original, file))
        try:
            return onnx_prepare.prepare(original, free_sides=file.network in DETECTORS, side=file.input_size)
        except Exception as error:  # a file that is not an ONNX model raises nearly anything
            raise ModelUnavailable(f"{file.name} is not an ONNX model that can be prepared: {error}") from error

    def _candidates(self, file: ModelFile) -> list[Path]:
        paths = [folder / file.name for folder in (self.folder, self.fallback) if folder]
        spec = importlib.util.find_spec(file.package) if file.package else None
        if spec is not None:
            paths += [Path(root) / file.package_path for root in spec.submodule_search_locations or ()]
        return paths

    def _hash_record(self, file: ModelFile) -> Path:
        return self.folder / f"{file.name}.sha256"


def load_checkpoints_module(file: ModelFile) -> Any:
    """Imports the module `checkpoints`. Raises ModelUnavailable if PyTorch, which it needs, is not installed."""
    try:
        from indexer.models import checkpoints
    except ImportError as error:
        raise ModelUnavailable(
            f"{file.name} is a PyTorch checkpoint, and PyTorch is not installed: pip install 'whosthere[torch]'",
            code=PYTORCH_MISSING,
        ) from error
    return checkpoints


def _how_to_quantize(file: ModelFile) -> str:
    own_pack, plus, _ = file.name.partition("+")  # see `catalogue.FileDescription`
    pack = own_pack if plus else next((pack.name for pack in BUILT_IN if pack.embedder.name == file.name), "PACK")
    return f"`whosthere models quantize {pack} --calibrate FOLDER` makes it"
