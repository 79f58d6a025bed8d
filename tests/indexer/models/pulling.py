"""A small model pack to pull, and assertions about what a pull leaves behind."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from indexer.errors import ModelUnavailable
from indexer.models.download import RetryPolicy
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, ModelFile, Network, Pack
from indexer.models.partial_file import Progress, ProgressListener
from indexer.models.pull import PulledFile, pull
from indexer.types import sha256

CONTENT = random.Random(0).randbytes(600_000)
HALF = len(CONTENT) // 2
OTHER = random.Random(1).randbytes(len(CONTENT))
SMALL = b"the other file of the pack"
MEMBERS = {"some/det.onnx": CONTENT, "some/rec.onnx": OTHER, "some/genderage.onnx": SMALL}

IMPATIENT = RetryPolicy(pauses_seconds=(0.0, 0.0, 0.0))
PART = ("some.onnx.part", "some.onnx.part.state")
KNOWN_OR_NOT = pytest.mark.parametrize("known", [True, False])
"""Whether the pack names the files' hashes and sizes."""

NOWHERE = "http://127.0.0.1:1"
"""A server that does not exist."""


def model(url: str = "", content: bytes = CONTENT, *, known: bool = True, name: str = "some.onnx") -> ModelFile:
    file = ModelFile(name, Network.YUNET, "MIT", "this test", url=url)
    return replace(file, sha256=sha256(content), size=len(content)) if known else file


def pack(file: ModelFile, second: ModelFile | None = None) -> Pack:
    return replace(SFACE, name="some", detector=file, embedder=second or model(content=SMALL, name="small.onnx"))


def pack_in_zip(url: str, *, known: bool = True) -> Pack:
    detector = replace(model(url, CONTENT, known=known, name="det.onnx"), member="det.onnx")
    return pack(detector, replace(model(url, OTHER, known=known, name="rec.onnx"), member="rec.onnx"))


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


@dataclass
class Models:
    """A models folder that already has the second file of the pack, `small.onnx`."""

    folder: Path
    reports: list[Progress] = field(default_factory=list)
    """The progress reports of all pulls."""

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "small.onnx").write_bytes(SMALL)
        self.files = ModelFiles(self.folder)
        self.path = self.folder / "some.onnx"
        self.part = self.folder / "some.onnx.part"

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name != "small.onnx")

    @property
    def stored(self) -> int:
        """The size of the partial file in bytes."""
        return self.part.stat().st_size if self.part.exists() else 0

    def pull_pack(
        self,
        wanted: Pack,
        mirror: str | None = None,
        retry: RetryPolicy = IMPATIENT,
        listener: ProgressListener | None = None,
    ) -> list[PulledFile]:
        return pull(wanted, self.files, mirror, listener or self.reports.append, retry)

    def pull(self, file: ModelFile, mirror: str | None = None) -> PulledFile:
        """Pulls the file and checks that nothing but the file is left."""
        first, second = self.pull_pack(pack(file), mirror)
        assert second == PulledFile(second.file, self.folder / "small.onnx", sha256(SMALL), "")
        assert first.path == self.folder / file.name
        assert first.sha256 == sha256(first.path.read_bytes())
        assert self.names == [file.name, *([] if file.sha256 else [f"{file.name}.sha256"])]
        return first

    def fail(self, file: ModelFile, mirror: str | None = None, left: Iterable[str] = ()) -> str:
        """Pulls the file in vain and checks that only the names in `left` remain. Returns the message."""
        message = self.fail_pack(pack(file), mirror, left)
        assert file.name in message
        return message

    def fail_pack(
        self, wanted: Pack, mirror: str | None = None, left: Iterable[str] = (), retry: RetryPolicy = IMPATIENT
    ) -> str:
        with pytest.raises(ModelUnavailable) as caught:
            self.pull_pack(wanted, mirror, retry)
        assert caught.value.code == "model_unavailable"
        assert self.names == sorted(left)
        return caught.value.message
