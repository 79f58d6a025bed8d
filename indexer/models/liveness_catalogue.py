"""The available liveness packs: the built-in one and those that JSON files in `liveness/` describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, ValidationError

from indexer.errors import InvalidRequest, ModelUnavailable, NotFound, WhosthereError
from indexer.models.catalogue import NAME, FileDescription, Strict, check_name
from indexer.models.liveness_packs import BUILT_IN_LIVENESS, Border, LivenessNetwork, LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.models.packs import CHECKPOINTS, LIVENESS, describe_file
from indexer.models.staging import read_file, read_onnx, staging
from indexer.types import sha256

FOLDER = "liveness"
"""Inside the models folder."""


class NetworkDescription(FileDescription):
    """One network of a user's pack; the fields are those of `LivenessNetwork`."""

    input_size: int = Field(ge=1, le=4096)
    crop_scale: float = Field(gt=0, le=100)
    border: Border
    bgr: bool
    pixel_scale: float = Field(gt=0)
    live_class: int = Field(ge=0)
    classes: int = Field(default=0, ge=0)
    """Filled in when the network has run."""
    weight: float = Field(default=1.0, gt=0)
    has_softmax: bool = False

    def to_network(self) -> LivenessNetwork:
        return LivenessNetwork(
            replace(self.to_model_file(), input_size=self.input_size),
            self.crop_scale,
            self.border,
            self.bgr,
            self.pixel_scale,
            self.classes,
            self.live_class,
            self.weight,
            self.has_softmax,
        )


class LivenessDescription(Strict):
    """A user's pack, `liveness/NAME.json` in the models folder; the fields are those of `LivenessPack`."""

    networks: tuple[NetworkDescription, ...] = Field(min_length=1)
    threshold: float = Field(ge=0, le=1)
    measured_on: str = ""
    summary: str = ""


LivenessPackCheck = Callable[[LivenessPack, ModelFiles], LivenessPack]
"""Runs a pack's networks once and returns it with their numbers of classes: `vision.liveness.base.check_pack`."""


class LivenessCatalogue:
    """Finds and adds liveness packs. It reads the disk each time, so that new packs appear at once. Thread-safe."""

    def __init__(self, files: ModelFiles, check: LivenessPackCheck) -> None:
        self._files = files
        self._check = check

    def names(self) -> list[str]:
        """Returns the built-in packs, then the user's packs."""
        own = sorted(path.stem for path in (self._files.folder / FOLDER).glob("*.json") if NAME.fullmatch(path.stem))
        built_in = [pack.name for pack in BUILT_IN_LIVENESS]
        return built_in + [name for name in own if name not in built_in]

    def find(self, name: str) -> LivenessPack:
        """Returns the pack. Raises NotFound, or ModelUnavailable if its description cannot be read."""
        found = next((pack for pack in BUILT_IN_LIVENESS if pack.name == name), None)
        if found is not None:
            return found
        if not NAME.fullmatch(name) or not self._description_path(name).is_file():
            expected = ", ".join(self.names())
            raise NotFound(f"there is no liveness pack {name!r}; expected one of {expected}", code="model_not_found")
        return _to_pack(name, self._read_description(name))

    def problem(self, name: str) -> str | None:
        """Returns briefly why the pack cannot be used; None if it can."""
        try:
            return self._files.problem(self.find(name))
        except WhosthereError as error:
            return error.message

    def first_usable(self) -> str | None:
        """Returns the first pack that can be used; None if there is none."""
        return next((name for name in self.names() if self.problem(name) is None), None)

    def find_installed(self, name: str = "") -> LivenessPack:
        """Returns the pack of that name, or the first one that can be used.

        Raises NotFound, or ModelUnavailable if a file is missing.
        """
        pack = self.find(name or self.first_usable() or BUILT_IN_LIVENESS[0].name)
        self._files.check_present(pack, "liveness pack")
        return pack

    def describe(self, name: str) -> dict[str, object]:
        """Returns the pack as JSON; `problem` is why it cannot be used."""
        problem = self.problem(name)
        described: dict[str, object] = {"name": name, "kind": "liveness", "installed": False, "problem": problem}
        try:
            pack = self.find(name)
        except WhosthereError:
            return described
        return described | {
            "summary": pack.summary,
            "threshold": pack.threshold,
            "measured_on": pack.measured_on,
            "files": [describe_file(file) for file in pack.files],
            "installed": self._files.are_present(pack),
        }

    def add(self, name: str, description: LivenessDescription, paths: Sequence[Path]) -> LivenessPack:
        """Copies the files of the networks into the models folder as a new pack.

        `description` has the files' names in the models folder; hashes, sizes and numbers of classes are filled in.

        Raises InvalidRequest if the name is invalid or in use, and ModelUnavailable if a file is not the described
        network; nothing is kept then.
        """
        check_name(name)
        if name in self.names():
            raise InvalidRequest(f"liveness pack {name!r} exists already")
        with staging(self._files) as staged:
            networks = []
            for network, path in zip(description.networks, paths, strict=True):
                data = read_file(path) if network.network in CHECKPOINTS else read_onnx(path)
                staged.write(network.file, data)
                networks.append(network.model_copy(update={"sha256": sha256(data), "size": len(data)}))
            pack = self._check(_to_pack(name, description.model_copy(update={"networks": tuple(networks)})), staged)
            complete = [
                network.model_copy(update={"classes": checked.classes})
                for network, checked in zip(networks, pack.networks, strict=True)
            ]
            fields = description.model_copy(update={"networks": tuple(complete)}).model_dump(mode="json")
            staged.write(f"{FOLDER}/{name}.json", (json.dumps(fields, indent=2) + "\n").encode())
        return self.find(name)

    def _read_description(self, name: str) -> LivenessDescription:
        path = self._description_path(name)
        try:
            return LivenessDescription.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "content"
            raise ModelUnavailable(f"{path} does not describe a liveness pack: {place}: {first['msg']}") from error

    def _description_path(self, name: str) -> Path:
        return self._files.folder / FOLDER / f"{name}.json"


def _to_pack(name: str, description: LivenessDescription) -> LivenessPack:
    for network in description.networks:
        if not network.file.startswith(f"{name}+"):
            raise ModelUnavailable(f"liveness pack {name} has the file {network.file}; expected a name like {name}+...")
        if network.network not in LIVENESS:
            expected = ", ".join(LIVENESS)
            raise ModelUnavailable(f"{network.file} is a {network.network}; expected a liveness network: {expected}")
    count = len(description.networks)
    return LivenessPack(
        name,
        tuple(network.to_network() for network in description.networks),
        description.threshold,
        description.measured_on,
        description.summary or f"{count} liveness network{'s' if count > 1 else ''}, added here",
    )
