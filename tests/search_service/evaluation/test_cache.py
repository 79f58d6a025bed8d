"""Descriptions of photos are stored once, and never read from damaged files or for other settings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import Pick, Reason
from indexer.vision.pipeline import FacePipeline, ImageResult
from search_service.evaluation.cache import AT_ONCE, Cache, CachedPipeline, kind_of
from search_service.service_context import ServiceContext
from tests import photos
from tests.variants import SETTINGS

KIND = "0123456789abcdef"


@pytest.fixture
def images() -> list[bytes]:
    small = io.BytesIO()
    Image.open(io.BytesIO(photos.astronaut())).convert("RGB").resize((100, 100)).save(small, "JPEG")
    return [photos.astronaut(), photos.six_people(), photos.no_faces()[-1], b"no image", small.getvalue()]


def same(one: ImageResult, other: ImageResult) -> None:
    assert (one.width, one.height, len(one.faces)) == (other.width, other.height, len(other.faces))
    assert (one.rejection and one.rejection.code) == (other.rejection and other.rejection.code)
    for a, b in zip(one.faces, other.faces, strict=True):
        assert a.detection.box == b.detection.box
        assert a.detection.score == b.detection.score
        assert a.quality == b.quality
        np.testing.assert_array_equal(a.detection.landmarks, b.detection.landmarks)
        np.testing.assert_array_equal(a.embedding, b.embedding)


@pytest.mark.parametrize("pick", [Pick.LARGEST, Pick.CENTER, Pick.ONLY, None])
def test_stored_descriptions_equal_computed_ones(
    context: ServiceContext, images: list[bytes], pick: Pick | None, tmp_path: Path
) -> None:
    first = Cache(tmp_path / "cache", KIND)
    seen = CachedPipeline(context, SFACE, first).describe(images, pick)
    first.flush()
    again = Cache(tmp_path / "cache", KIND)
    for one, kept in zip(seen, CachedPipeline(context, SFACE, again).describe(images, pick), strict=True):
        same(one, kept)
    assert (first.added, again.added, again.found) == (len(images), 0, len(images))


def test_stored_descriptions_need_no_network(
    context: ServiceContext, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Cache(tmp_path / "cache", KIND)
    CachedPipeline(context, SFACE, first).describe(images, Pick.CENTER)
    first.flush()
    monkeypatch.setattr(FacePipeline, "_load", lambda _: pytest.fail("a network is loaded"))
    pipeline = CachedPipeline(context, SFACE, Cache(tmp_path / "cache", KIND))
    pipeline.load()
    assert [bool(seen.faces) for seen in pipeline.describe(images, Pick.CENTER)] == [True, True, False, False, True]


def test_quality_gate_equals_the_pipeline_s(
    context: ServiceContext, images: list[bytes], tmp_path: Path, pipeline: FacePipeline
) -> None:
    cached = CachedPipeline(context, SFACE, Cache(tmp_path / "cache", KIND))
    own = [seen.rejection and seen.rejection.code for seen in pipeline.describe(images, Pick.LARGEST, gate=True)]
    stored = [seen.rejection and seen.rejection.code for seen in cached.describe(images, Pick.LARGEST, gate=True)]
    assert stored == own
    assert Reason.FACE_TOO_SMALL in own
    ungated = cached.describe(images[-1:], Pick.LARGEST)[0]
    assert ungated.rejection is None


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff" * 100, b'{"sha256": "0", "keys": ["a"]}\nno\nthing', None])
def test_damaged_files_are_ignored(
    context: ServiceContext, images: list[bytes], tmp_path: Path, damage: bytes | None
) -> None:
    """None flips a single bit."""
    first = Cache(tmp_path, KIND)
    CachedPipeline(context, SFACE, first).describe(images[:1], Pick.CENTER)
    first.flush()
    (file,) = tmp_path.glob("*/*.faces")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data) if damage is None else damage)
    again = Cache(tmp_path, KIND)
    assert CachedPipeline(context, SFACE, again).describe(images[:1], Pick.CENTER)[0].faces
    assert again.added == 1


def test_files_are_private_and_leftovers_are_deleted(
    context: ServiceContext, images: list[bytes], tmp_path: Path
) -> None:
    (tmp_path / KIND).mkdir()
    (tmp_path / KIND / "photos-0.faces.1.tmp").write_bytes(b"a killed process")
    cache = Cache(tmp_path, KIND)
    CachedPipeline(context, SFACE, cache).describe(images[:1], Pick.CENTER)
    cache.flush()
    (file,) = (tmp_path / KIND).iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_least_recently_used_files_are_deleted(tmp_path: Path) -> None:
    seen = ImageResult(width=1, height=1)
    for name in ("old", "new"):
        cache = Cache(tmp_path, name, most_bytes=400)
        for i in range(3):
            cache.put(f"{name} {i}", seen)
        cache.flush()
    assert Cache(tmp_path, "old").find("old 0") is None
    assert Cache(tmp_path, "new").find("new 0") is not None


def test_everything_that_affects_embeddings_changes_the_kind(tmp_path: Path) -> None:
    def kind(**settings: object) -> str:
        return kind_of(ServiceContext(read_settings(SETTINGS, home=tmp_path, **settings)), SFACE)

    kinds = [kind(), kind(thorough=False), kind(precision="float32"), kind(device="cpu"), kind(max_image_bytes=2048)]
    assert len({*kinds}) == len(kinds)
    assert kind() == kinds[0]
    assert kind(fpir=0.5) == kinds[0]


def test_failure_to_write_does_not_affect_results(context: ServiceContext, images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    cache = Cache(tmp_path / "cache", KIND)
    for i in range(AT_ONCE + 1):
        cache.put(str(i), ImageResult())
    cache.flush()
    assert cache.failure is not None
    assert CachedPipeline(context, SFACE, cache).describe(images[:1], Pick.CENTER)[0].faces
