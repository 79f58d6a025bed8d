"""One service for all the tests of a worker; each test has galleries of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from PIL import Image

from indexer.enrollment.sources import rows_of
from indexer.models.catalogue import FileDescription, PackDescription
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Network
from indexer.settings import read_settings
from indexer.types import Outcome, Pick
from search_service.demo import make_photos
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.conftest import link_int8_forms
from tests.search_service.api.bulk import packed
from tests.search_service.api.serving import Running, image, ok, running
from tests.variants import SETTINGS

MAX_IMAGE_BYTES = 2 * 2**20
MAX_BODY_BYTES = 4 * 2**20


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/` (one person a folder) and `probes/`, as the demo makes them."""
    folder = tmp_path_factory.mktemp("demo")
    make_photos(folder)
    return folder


@pytest.fixture(scope="session")
def stranger(photos: Path) -> bytes:
    """A photo of a person who is in no gallery."""
    return (photos / "probes" / "stranger.jpg").read_bytes()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Running]:
    """A service with small limits, over real networks and SQLite."""
    place = new_home(tmp_path_factory.mktemp("home"), models_folder)
    settings = read_settings(SETTINGS, home=place, max_image_bytes=MAX_IMAGE_BYTES, max_body_bytes=MAX_BODY_BYTES)
    with running(ServiceContext(settings)) as service:
        yield service.ready()


@pytest.fixture(scope="session")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def gallery(client: httpx.Client) -> str:
    """The path of an empty gallery."""
    name = f"g-{uuid.uuid4().hex}"
    ok(client.post("/v1/galleries", json={"name": name}), 201)
    return f"/v1/galleries/{name}"


@pytest.fixture(scope="session")
def people(client: httpx.Client, photos: Path) -> str:
    """The path of a gallery in which the seven people of the demo are; tests only read it."""
    path = "/v1/galleries/people"
    ok(client.post("/v1/galleries", json={"name": "people"}), 201)
    for photo in sorted((photos / "photos").glob("*/*.jpg")):
        files = image(photo.read_bytes(), photo.name)
        ok(client.post(f"{path}/identities/{photo.parent.name}/faces", files=files), 201)
    return path


def new_home(folder: Path, models_folder: Path) -> Path:
    """A home of its own that shares the prepared networks."""
    models_folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").symlink_to(models_folder)
    return folder


@pytest.fixture(scope="session")
def people_zip(photos: Path) -> bytes:
    """A ZIP of the demo's seven people, a folder for each."""
    return packed({f"{path.parent.name}/{path.name}": path.read_bytes() for path in photos.glob("photos/*/*.jpg")})


@pytest.fixture(scope="session")
def many(photos: Path) -> Mapping[str, bytes]:
    """42 different files of the same people, by name."""
    files = {}
    for path in sorted(photos.glob("photos/*/*.jpg")):
        with Image.open(path) as photo:
            for quality in range(90, 96):
                files[f"{path.parent.name}/{quality}.jpg"] = sources.encode(photo, "JPEG", quality=quality)
    assert len(set(files.values())) == 42
    return files


@pytest.fixture(scope="session")
def two_packs(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, photos: Path) -> Path:
    """A home folder to copy, with the demo's people and crops in the gallery `staff` by `sface`, and a pack `other`:
    the same networks without the mirrored crop."""
    folder = tmp_path_factory.mktemp("packs")
    place = folder / "home"
    place.mkdir()
    new_home(place, folder / "models")
    (folder / "models" / "prepared").mkdir()
    for file in SFACE.files:  # prepared when first used
        name = f"prepared/{file.prepared_sha256}.onnx"
        (folder / "models" / name).symlink_to(models_folder / name)
    link_int8_forms(models_folder, folder / "models", SFACE.embedder.name, "other+sface.onnx")
    embedder = ModelFiles(folder).path(SFACE.embedder)
    assert embedder is not None
    network = FileDescription(file="other+sface.onnx", network=Network.ONNX)
    pack = PackDescription(detector="sface", embedder=network, dim=1, mean=0, scale=1, mirror=False)
    with closing(ServiceContext(read_settings(SETTINGS, home=place, keep_crops=True))) as context:
        context.packs.add("other", pack, None, embedder)
        enroller = context.enroller(context.open_gallery("staff", "sface"))
        results = enroller.enroll(rows_of([photos / "photos"]), Pick.ONLY)
        assert [result.outcome for result in results] == [Outcome.ENROLLED] * 7
    return place


@pytest.fixture
def place(two_packs: Path, tmp_path: Path) -> Path:
    """A copy of `two_packs`."""
    return Path(shutil.copytree(two_packs, tmp_path / "home", symlinks=True))
