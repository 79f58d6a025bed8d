"""The available model packs: the built-in ones and those that JSON files in `packs/` describe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexer.errors import InvalidRequest, ModelUnavailable, NotFound, WhosthereError, quoted
from indexer.models import packs
from indexer.models.model_files import ModelFiles
from indexer.models.packs import (
    BUILT_IN,
    CHECKPOINTS,
    DETECTORS,
    EMBEDDERS,
    SFACE,
    UNMEASURED_TAIL,
    UNMEASURED_THRESHOLD,
    ModelFile,
    Network,
    Pack,
)
from indexer.models.staging import StagedFiles, read_file, read_onnx, staging
from indexer.types import Precision, ScoreTail, sha256

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class Strict(BaseModel):
    """A description that a file contains."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileDescription(Strict):
    """One file of a user's pack; the fields are those of `packs.ModelFile`."""

    file: str = Field(pattern=r"^[^/\\]+$")
    """Begins with `PACK+`, so that no two packs share a file name."""
    network: Network
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    size: int = Field(default=0, ge=0)
    licence: str = ""
    origin: str = ""
    url: str = ""
    member: str = ""

    def to_model_file(self) -> ModelFile:
        return ModelFile(
            self.file, self.network, self.licence, self.origin, self.sha256, self.size, self.url, self.member
        )


class PackDescription(Strict):
    """A user's pack, `packs/NAME.json` in the models folder; the fields are those of `packs.Pack`.

    `detector` may name another pack whose detector is used. The defaults of `same_threshold` and `tail` are
    UNMEASURED_THRESHOLD and UNMEASURED_TAIL.
    """

    detector: str | FileDescription
    embedder: FileDescription
    dim: int = Field(ge=1, le=65_536)
    mean: float = 127.5
    scale: float = Field(default=1 / 127.5, gt=0)
    mirror: bool = True
    same_threshold: float | None = Field(default=None, ge=-1, le=1)
    tail: ScoreTail | None = None
    summary: str = ""
    terms: str = ""


def check_name(name: str) -> None:
    """Raises InvalidRequest unless the name is valid for a model pack."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot name a model pack; expected {NAME.pattern}")


PackCheck = Callable[[Pack, ModelFiles], Pack]
"""Runs a pack's networks once: `vision.pack_check.check_pack`."""


class Catalogue:
    """Finds and adds model packs. It reads the disk each time, so that new packs appear at once. Thread-safe."""

    def __init__(self, files: ModelFiles, check: PackCheck) -> None:
        self._files = files
        self._check = check

    def find(self, name: str) -> Pack:
        """Returns the pack, with the hashes of its files as far as they are known.

        Raises NotFound, or ModelUnavailable if its description cannot be read.
        """
        found = next((pack for pack in BUILT_IN if pack.name == name), None)
        if found is None:
            if not NAME.fullmatch(name) or not self._description_path(name).is_file():
                names = ", ".join(self.names())
                raise NotFound(
                    f"there is no model pack {quoted(name)}; expected one of {names}", code="model_not_found"
                )
            found = self._to_pack(name, self._read_description(name))
        return replace(found, detector=self._known(found.detector), embedder=self._known(found.embedder))

    def names(self) -> list[str]:
        """Returns the built-in packs, the best first, then the user's packs."""
        own = sorted(path.stem for path in (self._files.folder / "packs").glob("*.json") if NAME.fullmatch(path.stem))
        built_in = [pack.name for pack in BUILT_IN]
        return built_in + [name for name in own if name not in built_in]

    def is_installed(self, pack: Pack) -> bool:
        """Whether all files of the pack are present."""
        return self._files.are_present(pack)

    def problem(self, pack: Pack, precision: Precision) -> str | None:
        """Returns briefly why the pack cannot be used in this precision; None if it can."""
        problem = self._files.problem(pack)
        if problem is not None:
            return problem
        if precision is Precision.INT8 and not self._files.quantized_path(pack.embedder).is_file():
            return f"no int8 form (whosthere models quantize {pack.name})"
        return None

    def describe(self, name: str) -> dict[str, object]:
        """Returns the pack as JSON. If its description cannot be read, `problem` says why."""
        try:
            pack = self.find(name)
        except WhosthereError as error:
            return {"name": name, "installed": False, "problem": error.message}
        return packs.describe(pack) | {"installed": self.is_installed(pack)}

    def find_installed(self, name: str) -> Pack:
        """Returns the pack. Raises NotFound, or ModelUnavailable if a file is missing."""
        pack = self.find(name)
        self._files.check_present(pack, "model pack")
        return pack

    def best_installed(self) -> Pack:
        """Returns the best built-in pack whose files are present."""
        best = next((pack for pack in BUILT_IN if self.is_installed(pack)), SFACE)
        return self.find_installed(best.name)

    def install(self, name: str, detector: Path, embedder: Path) -> Pack:
        """Copies local files into the models folder as the files of a built-in pack.

        Raises ModelUnavailable if one is not the file of that pack or does not run; nothing is kept then.
        """
        with self._staging() as (staged, catalogue):
            pack = catalogue.find(name)
            for file, path in ((pack.detector, detector), (pack.embedder, embedder)):
                data = read_file(path)
                self._files.check_hash(file, sha256(data), len(data), str(path))
                staged.write(file.name, data)
            catalogue.check(catalogue.find(name))
        return self.find(name)

    def add(self, name: str, description: PackDescription, detector: Path | None, embedder: Path) -> Pack:
        """Copies local files into the models folder as a new pack.

        `description` has the files' names in the models folder; its `dim`, hashes and sizes are filled in.

        Raises InvalidRequest if the name is invalid or in use, and ModelUnavailable if the files are not the described
        networks; nothing is kept then.
        """
        check_name(name)
        if name in self.names():
            raise InvalidRequest(f"model pack {name!r} exists already")
        fields = description.model_dump(mode="json")
        with self._staging() as (staged, catalogue):
            for key, path in (("detector", detector), ("embedder", embedder)):
                if path is not None:
                    data = read_file(path) if fields[key]["network"] in CHECKPOINTS else read_onnx(path)
                    staged.write(fields[key]["file"], data)
                    fields[key] |= {"sha256": sha256(data), "size": len(data)}
            pack = catalogue.check(self._to_pack(name, PackDescription(**fields)))
            text = json.dumps(fields | {"dim": pack.dim}, indent=2) + "\n"
            staged.write(str(self._description_path(name).relative_to(self._files.folder)), text.encode())
        return self.find(name)

    def check(self, pack: Pack) -> Pack:
        """Runs the pack's networks once and returns the pack with the right `dim`. Raises ModelUnavailable."""
        return self._check(pack, self._files)

    def remove_file(self, file: ModelFile) -> None:
        """Deletes a file that does not run from the models folder, with its recorded hash."""
        for path in (self._files.folder / file.name, self._files.folder / f"{file.name}.sha256"):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def _staging(self) -> Iterator[tuple[StagedFiles, Catalogue]]:
        """Yields a temporary folder and its catalogue. Raises as `staging` does."""
        with staging(self._files) as staged:
            yield staged, Catalogue(staged, self._check)

    def _known(self, file: ModelFile) -> ModelFile:
        """Returns the file with its hash, if the file is present or its hash is known."""
        known = self._files.with_known_hash(file)
        return known if known.sha256 or self._files.path(file) is None else self._files.with_hash(file)

    def _read_description(self, name: str) -> PackDescription:
        path = self._description_path(name)
        try:
            return PackDescription.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "content"
            raise ModelUnavailable(f"{path} does not describe a model pack: {place}: {first['msg']}") from error

    def _to_pack(self, name: str, description: PackDescription) -> Pack:
        for own in (description.detector, description.embedder):
            if isinstance(own, FileDescription) and not own.file.startswith(f"{name}+"):
                raise ModelUnavailable(f"model pack {name} has the file {own.file}; expected a name like {name}+...")
        detector = (
            self._detector_of(name, description.detector)
            if isinstance(description.detector, str)
            else description.detector.to_model_file()
        )
        embedder = description.embedder.to_model_file()
        for file, kinds, what in ((detector, DETECTORS, "detector"), (embedder, EMBEDDERS, "embedder")):
            if file.network not in kinds:
                raise ModelUnavailable(f"{file.name} is a {file.network}; expected a {what}: {', '.join(kinds)}")
        return Pack(
            name=name,
            detector=detector,
            embedder=embedder,
            dim=description.dim,
            mean=description.mean,
            scale=description.scale,
            mirror=description.mirror,
            same_threshold=UNMEASURED_THRESHOLD if description.same_threshold is None else description.same_threshold,
            tail=description.tail or UNMEASURED_TAIL,
            measured=description.same_threshold is not None and description.tail is not None,
            summary=description.summary
            or f"{detector.network} and {embedder.network}, {description.dim}-d, added here",
            terms=description.terms,
        )

    def _detector_of(self, name: str, other: str) -> ModelFile:
        """Returns the detector that pack `name` uses from another pack."""
        if NAME.fullmatch(other) and self._description_path(other).is_file():
            described = self._read_description(other).detector
            if isinstance(described, str):
                raise ModelUnavailable(
                    f"model pack {name} uses the detector of {other}, which has no detector of its own"
                )
        return self.find(other).detector

    def _description_path(self, name: str) -> Path:
        return self._files.folder / "packs" / f"{name}.json"
