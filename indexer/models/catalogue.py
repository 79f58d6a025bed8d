"""The model packs that can be had: those built in, and those that small files in `packs/` describe."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from indexer.errors import InvalidRequest, ModelUnavailable, NotFound, WhosthereError
from indexer.files import write_atomically
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
from indexer.types import Precision, ScoreTail, sha256

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileDescription(_Strict):
    """One file of a pack of the user's own; the fields are `packs.ModelFile`'s."""

    file: str = Field(pattern=r"^[^/\\]+$")
    """`PACK+...`: so that no two packs share a file, and none is called as one of a built-in pack."""
    network: Network
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    size: int = Field(default=0, ge=0)
    licence: str = ""
    origin: str = ""
    url: str = ""
    member: str = ""

    def model(self) -> ModelFile:
        return ModelFile(
            self.file, self.network, self.licence, self.origin, self.sha256, self.size, self.url, self.member
        )


class PackDescription(_Strict):
    """A pack of the user's own, `packs/NAME.json` in the models folder; the fields are `packs.Pack`'s.

    `detector` may be the name of another pack, whose detector is then used. Without `same_threshold` and `tail` the
    pack takes the UNMEASURED ones of `packs`.
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
    """Raises InvalidRequest unless a model pack may be called that."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot name a model pack; expected {NAME.pattern}")


PackCheck = Callable[[Pack, ModelFiles], Pack]
"""Runs a pack's networks once: `vision.networks.check_pack`."""


class Catalogue:
    """Asks the disk each time: what was pulled or added meanwhile is there. Thread-safe."""

    def __init__(self, files: ModelFiles, check: PackCheck) -> None:
        self._files = files
        self._check = check

    def find(self, name: str) -> Pack:
        """The pack, with the hashes of its files as far as they are known.

        Raises NotFound with the names there are, and ModelUnavailable where its description cannot be read.
        """
        found = next((pack for pack in BUILT_IN if pack.name == name), None)
        if found is None:
            if not NAME.fullmatch(name) or not self._description(name).is_file():
                names = ", ".join(self.names())
                raise NotFound(f"there is no model pack {name!r}; expected one of {names}", code="model_not_found")
            found = self._described(name)
        return replace(found, detector=self._known(found.detector), embedder=self._known(found.embedder))

    def names(self) -> list[str]:
        """The built-in packs, the best first, then the user's own."""
        own = sorted(path.stem for path in (self._files.folder / "packs").glob("*.json") if NAME.fullmatch(path.stem))
        built_in = [pack.name for pack in BUILT_IN]
        return built_in + [name for name in own if name not in built_in]

    def is_installed(self, pack: Pack) -> bool:
        """Whether its files are there."""
        return all(self._files.path(file) for file in pack.files)

    def problem(self, pack: Pack, precision: Precision) -> str | None:
        """Why the pack cannot be used in that precision, in few words; None where it can."""
        if not self.is_installed(pack):
            return "not installed"
        checkpoints = [file for file in pack.files if file.network in CHECKPOINTS]
        waits = any(not self._files.prepared_path(file).is_file() for file in checkpoints)
        if waits and importlib.util.find_spec("torch") is None:
            return "PyTorch is not installed (pip install 'whosthere[torch]')"
        if precision is Precision.INT8 and not self._files.quantized_path(pack.embedder).is_file():
            return f"no int8 form (whosthere models quantize {pack.name})"
        return None

    def describe(self, name: str) -> dict[str, object]:
        """The pack as JSON. Of one that cannot be read `problem` says why, and nothing else is told."""
        try:
            pack = self.find(name)
        except WhosthereError as error:
            return {"name": name, "installed": False, "problem": error.message}
        return packs.describe(pack) | {"installed": self.is_installed(pack)}

    def find_installed(self, name: str) -> Pack:
        """The pack, whose files are there. Raises NotFound and ModelUnavailable."""
        pack = self.find(name)
        if not self.is_installed(pack):
            missing = " and ".join(file.name for file in pack.files if not self._files.path(file))
            raise ModelUnavailable(
                f"model pack {name} is not installed: {missing} missing in {self._files.folder}; "
                f"`whosthere models pull {name}` fetches it"
            )
        return pack

    def best_installed(self) -> Pack:
        """The best of the built-in packs whose files are there."""
        best = next((pack for pack in BUILT_IN if self.is_installed(pack)), SFACE)
        return self.find_installed(best.name)

    def install(self, name: str, detector: Path, embedder: Path) -> Pack:
        """Puts files that are there already in their places in a built-in pack.

        Raises ModelUnavailable, leaving nothing, where one is not the file that the pack asks for or does not run.
        """
        with self._aside() as aside:
            pack = aside.find(name)
            for file, path in ((pack.detector, detector), (pack.embedder, embedder)):
                data = _read(path)
                self._files.check_hash(file, sha256(data), len(data), str(path))
                aside.write(file.name, data)
            aside.check(aside.find(name))
        return self.find(name)

    def add(self, name: str, description: PackDescription, detector: Path | None, embedder: Path) -> Pack:
        """Makes a pack of files that are there already; they are copied. `description` names them as they will be
        called in the models folder; its `dim` is put right, and hashes and sizes are filled in.

        Raises InvalidRequest for a name that is taken or none, and ModelUnavailable, leaving nothing, where the files
        are not the networks that they are said to be.
        """
        check_name(name)
        if name in self.names():
            raise InvalidRequest(f"there is a model pack {name!r} already")
        said = description.model_dump(mode="json")
        with self._aside() as aside:
            for key, path in (("detector", detector), ("embedder", embedder)):
                if path is not None:
                    data = _read(path)
                    aside.write(said[key]["file"], data)
                    said[key] |= {"sha256": sha256(data), "size": len(data)}
            pack = aside.check(self._pack(name, PackDescription(**said)))
            text = json.dumps(said | {"dim": pack.dim}, indent=2) + "\n"
            aside.write(str(self._description(name).relative_to(self._files.folder)), text.encode())
        return self.find(name)

    def check(self, pack: Pack) -> Pack:
        """Runs the pack's networks once. Returns the pack with its `dim` as they answer. Raises ModelUnavailable."""
        return self._check(pack, self._files)

    def remove_file(self, file: ModelFile) -> None:
        """Takes a file that does not run out of the models folder again, with what was written down of it."""
        for path in (self._files.folder / file.name, self._files.folder / f"{file.name}.sha256"):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def _aside(self) -> Iterator[_Aside]:
        """A catalogue in a folder of its own, whose files come into this one when all went well. Raises
        ModelUnavailable when the disk does not take them."""
        folder = self._files.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".adding-") as made:
                aside = _Aside(ModelFiles(Path(made), fallback=folder), self._check)
                yield aside
                for path in sorted(Path(made).rglob("*"), key=lambda p: p.suffix == ".json"):  # descriptions last
                    if path.is_file():
                        target = folder / path.relative_to(made)
                        target.parent.mkdir(exist_ok=True)
                        path.replace(target)
        except OSError as error:
            raise ModelUnavailable(f"nothing can be written to {folder}: {error.strerror}") from error

    def _known(self, file: ModelFile) -> ModelFile:
        """The file with its hash. One that lies there for the first time is read, and its hash written down."""
        known = self._files.with_known_hash(file)
        return known if known.sha256 or self._files.path(file) is None else self._files.with_hash(file)

    def _described(self, name: str) -> Pack:
        return self._pack(name, self._read_description(name))

    def _read_description(self, name: str) -> PackDescription:
        path = self._description(name)
        try:
            return PackDescription.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise ModelUnavailable(f"{path} does not describe a model pack: {where}: {first['msg']}") from error

    def _pack(self, name: str, said: PackDescription) -> Pack:
        for own in (said.detector, said.embedder):
            if isinstance(own, FileDescription) and not own.file.startswith(f"{name}+"):
                raise ModelUnavailable(f"model pack {name} names the file {own.file}; expected one called {name}+...")
        detector = self._detector_of(name, said.detector) if isinstance(said.detector, str) else said.detector.model()
        embedder = said.embedder.model()
        for file, kinds, what in ((detector, DETECTORS, "detector"), (embedder, EMBEDDERS, "embedder")):
            if file.network not in kinds:
                raise ModelUnavailable(f"{file.name} is a {file.network}; expected a {what}: {', '.join(kinds)}")
        return Pack(
            name=name,
            detector=detector,
            embedder=embedder,
            dim=said.dim,
            mean=said.mean,
            scale=said.scale,
            mirror=said.mirror,
            same_threshold=UNMEASURED_THRESHOLD if said.same_threshold is None else said.same_threshold,
            tail=said.tail or UNMEASURED_TAIL,
            measured=said.same_threshold is not None and said.tail is not None,
            summary=said.summary or f"{detector.network} and {embedder.network}, {said.dim}-d, added here",
            terms=said.terms,
        )

    def _detector_of(self, name: str, other: str) -> ModelFile:
        """The detector that pack `name` takes from another one."""
        if NAME.fullmatch(other) and self._description(other).is_file():
            described = self._read_description(other).detector
            if isinstance(described, str):
                raise ModelUnavailable(
                    f"model pack {name} takes the detector of {other}, which has none of its own; expected one that has"
                )
        return self.find(other).detector

    def _description(self, name: str) -> Path:
        return self._files.folder / "packs" / f"{name}.json"


class _Aside(Catalogue):
    def write(self, name: str, data: bytes) -> None:
        """A file of that name. Raises OSError."""
        write_atomically(self._files.folder / name, [data], shared=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
