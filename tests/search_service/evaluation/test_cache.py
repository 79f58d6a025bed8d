"""Photos are not computed twice, and never answered from what is damaged or of another kind."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from indexer.types import Pick, Reason
from indexer.vision.pipeline import FacePipeline, Seen
from search_service.evaluation.cache import AT_ONCE, Cache, CachedPipeline, kind_of
from search_service.service_context import ServiceContext
from tests import photos
from tests.variants import SETTINGS

KIND = "0123456789abcdef"


@pytest.fixture
def home(tmp_path: Path, models_folder: Path) -> ServiceContext:
    models_folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "models").symlink_to(models_folder)
    return ServiceContext(read_settings(SETTINGS, home=tmp_path / "home"))


@pytest.fixture
def images() -> list[bytes]:
    small = io.BytesIO()
    Image.open(io.BytesIO(photos.astronaut())).convert("RGB").resize((100, 100)).save(small, "JPEG")
    return [photos.astronaut(), photos.six_people(), photos.no_faces()[-1], b"no image", small.getvalue()]


def same(one: Seen, other: Seen) -> None:
    assert (one.width, one.height, len(one.faces)) == (other.width, other.height, len(other.faces))
    assert (one.rejection and one.rejection.code) == (other.rejection and other.rejection.code)
    for a, b in zip(one.faces, other.faces, strict=True):
        assert a.detection.box == b.detection.box
        assert a.detection.score == b.detection.score
        assert a.quality == b.quality
        np.testing.assert_array_equal(a.detection.landmarks, b.detection.landmarks)
        np.testing.assert_array_equal(a.embedding, b.embedding)


@pytest.mark.parametrize("pick", [Pick.LARGEST, Pick.CENTER, Pick.ONLY, None])
def test_what_is_kept_is_what_was_seen(
    home: ServiceContext, images: list[bytes], pick: Pick | None, tmp_path: Path
) -> None:
    first = Cache(tmp_path / "cache", KIND)
    seen = CachedPipeline(home, SFACE, first).describe(images, pick)
    first.flush()
    again = Cache(tmp_path / "cache", KIND)
    for one, kept in zip(seen, CachedPipeline(home, SFACE, again).describe(images, pick), strict=True):
        same(one, kept)
    assert (first.made, again.made, again.found) == (len(images), 0, len(images))


def test_the_second_time_no_network_is_loaded(
    home: ServiceContext, images: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Cache(tmp_path / "cache", KIND)
    CachedPipeline(home, SFACE, first).describe(images, Pick.CENTER)
    first.flush()
    monkeypatch.setattr(FacePipeline, "_load", lambda _: pytest.fail("a network is loaded"))
    pipeline = CachedPipeline(home, SFACE, Cache(tmp_path / "cache", KIND))
    pipeline.load()
    assert [bool(seen.faces) for seen in pipeline.describe(images, Pick.CENTER)] == [True, True, False, False, True]


def test_the_gate_is_the_pipelines_own(
    home: ServiceContext, images: list[bytes], tmp_path: Path, pipeline: FacePipeline
) -> None:
    cached = CachedPipeline(home, SFACE, Cache(tmp_path / "cache", KIND))
    own = [seen.rejection and seen.rejection.code for seen in pipeline.describe(images, Pick.LARGEST, gate=True)]
    told = [seen.rejection and seen.rejection.code for seen in cached.describe(images, Pick.LARGEST, gate=True)]
    assert told == own
    assert Reason.FACE_TOO_SMALL in own
    ungated = cached.describe(images[-1:], Pick.LARGEST)[0]
    assert ungated.rejection is None


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"\xff" * 100, b'{"sha256": "0", "keys": ["a"]}\nno\nthing'])
def test_a_damaged_file_is_not_there(home: ServiceContext, images: list[bytes], tmp_path: Path, damage: bytes) -> None:
    first = Cache(tmp_path, KIND)
    CachedPipeline(home, SFACE, first).describe(images[:1], Pick.CENTER)
    first.flush()
    (file,) = tmp_path.glob("*/*.faces")
    file.write_bytes(damage)
    again = Cache(tmp_path, KIND)
    assert CachedPipeline(home, SFACE, again).describe(images[:1], Pick.CENTER)[0].faces
    assert again.made == 1


def test_a_flipped_bit_is_not_answered(home: ServiceContext, images: list[bytes], tmp_path: Path) -> None:
    first = Cache(tmp_path, KIND)
    CachedPipeline(home, SFACE, first).describe(images[:1], Pick.CENTER)
    first.flush()
    (file,) = tmp_path.glob("*/*.faces")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    again = Cache(tmp_path, KIND)
    CachedPipeline(home, SFACE, again).describe(images[:1], Pick.CENTER)
    assert again.made == 1


def test_only_its_owner_may_read_it_and_leftovers_go(home: ServiceContext, images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / KIND).mkdir()
    (tmp_path / KIND / "photos-0.faces.1.tmp").write_bytes(b"a killed process")
    cache = Cache(tmp_path, KIND)
    CachedPipeline(home, SFACE, cache).describe(images[:1], Pick.CENTER)
    cache.flush()
    (file,) = (tmp_path / KIND).iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_room_is_made_of_what_was_used_first(tmp_path: Path) -> None:
    seen = Seen(width=1, height=1)
    for name in ("old", "new"):
        cache = Cache(tmp_path, name, most_bytes=400)
        for i in range(3):
            cache.put(f"{name} {i}", seen)
        cache.flush()
    assert Cache(tmp_path, "old").find("old 0") is None
    assert Cache(tmp_path, "new").find("new 0") is not None


def test_everything_that_moves_an_embedding_is_another_kind(tmp_path: Path) -> None:
    def kind(**settings: object) -> str:
        return kind_of(ServiceContext(read_settings(SETTINGS, home=tmp_path, **settings)), SFACE)

    kinds = [kind(), kind(thorough=False), kind(precision="float32"), kind(device="cpu"), kind(max_image_bytes=2048)]
    assert len({*kinds}) == len(kinds)
    assert kind() == kinds[0]
    assert kind(fpir=0.5) == kinds[0]


def test_what_cannot_be_written_is_no_photos_fault(home: ServiceContext, images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    cache = Cache(tmp_path / "cache", KIND)
    for i in range(AT_ONCE + 1):
        cache.put(str(i), Seen())
    cache.flush()
    assert cache.failure is not None
    assert CachedPipeline(home, SFACE, cache).describe(images[:1], Pick.CENTER)[0].faces
