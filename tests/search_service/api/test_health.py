"""/healthz, /readyz, /docs, /openapi.json"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI

from indexer.errors import ModelUnavailable, StorageUnavailable
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, Pack
from indexer.settings import read_settings
from indexer.types import Gallery
from indexer.vision.pipeline import FacePipeline
from search_service.api.routes import health
from search_service.service_context import ServiceContext
from tests.search_service.api.serving import Running, ok, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

ROUTES = {
    "/v1/galleries": {"get", "post"},
    "/v1/galleries/{gallery}": {"get", "delete"},
    "/v1/galleries/{gallery}/identities": {"get", "post"},
    "/v1/galleries/{gallery}/identities/{external_id}": {"get", "put", "delete"},
    "/v1/galleries/{gallery}/identities/{external_id}/faces": {"get", "post"},
    "/v1/galleries/{gallery}/faces/{face_id}": {"get", "delete"},
    "/v1/galleries/{gallery}/search": {"post"},
    "/v1/detect": {"post"},
    "/v1/compare": {"post"},
    "/v1/embed": {"post"},
    "/v1/models": {"get"},
    "/v1/events": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
}
"""Routes of the public contract; there may be more."""


class SlowPipeline(FacePipeline):
    """Loads when `go` is set, without networks."""

    def __init__(self, files: ModelFiles, problem: Exception | None) -> None:
        super().__init__(SFACE, files)
        self.go = threading.Event()
        self.problem = problem

    def load(self) -> None:
        assert self.go.wait(DEADLINE)
        if self.problem is not None:
            raise self.problem


class SlowHome(ServiceContext):
    def __init__(self, place: Path, problem: Exception | None = None) -> None:
        super().__init__(read_settings(SETTINGS, home=place))
        self.slow = SlowPipeline(self.files, problem)
        self.asked_for: list[str] = []

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        return self.slow

    def pipeline_of(self, gallery: Gallery) -> FacePipeline:
        self.asked_for.append(gallery.name)
        if gallery.name == "vanishing":
            self.store.galleries.delete(gallery.name)
        return self.slow


@contextmanager
def loading(home: SlowHome) -> Iterator[httpx.Client]:
    """A client of a service whose networks load when `home.slow.go` is set."""
    with running(home) as service, service.client() as client:
        try:
            yield client
        finally:
            home.slow.go.set()


def test_the_service_is_alive_at_once_and_ready_when_loaded(tmp_path: Path) -> None:
    home = SlowHome(tmp_path)
    with loading(home) as client:
        for _ in range(2):
            answer = client.get("/readyz")
            assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
            assert ok(client.get("/healthz")) == {"status": "alive"}
            assert ok(client.get("/v1/galleries")) == {"galleries": [], "cursor": None}
        home.slow.go.set()
        wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")
        assert client.get("/readyz").json() == {"status": "ready"}


def test_readyz_shows_why_the_models_do_not_load(tmp_path: Path) -> None:
    home = SlowHome(tmp_path, ModelUnavailable("yunet.onnx is damaged"))
    with loading(home) as client:
        home.slow.go.set()
        wait_for(lambda: client.get("/readyz").json()["status"] == "failed", "it fails to load")
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["problem"]) == (503, "yunet.onnx is damaged")
        assert ok(client.get("/healthz")) == {"status": "alive"}


def test_loading_is_retried_until_it_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_RETRY_SECONDS", 0.01)
    for problem in (StorageUnavailable("the database does not answer"), ValueError("a bug")):
        home = SlowHome(tmp_path, problem)
        with loading(home) as client:
            home.slow.go.set()
            wait_for(lambda client=client: client.get("/readyz").json()["status"] == "failed", "it fails to load")  # type: ignore[misc]
            assert "a bug" not in client.get("/readyz").text
            home.slow.problem = None
            wait_for(lambda client=client: client.get("/readyz").status_code == 200, "it is ready")  # type: ignore[misc]
            assert client.get("/readyz").json() == {"status": "ready"}


def test_stopping_does_not_wait_for_the_next_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "FIRST_RETRY_SECONDS", 100 * DEADLINE)
    home = SlowHome(tmp_path, ModelUnavailable("yunet.onnx is damaged"))
    with loading(home) as client:
        home.slow.go.set()
        wait_for(lambda: client.get("/readyz").json()["status"] == "failed", "it fails to load")
    # `running` gives up waiting for the service to end after DEADLINE.


def test_readyz_lists_galleries_of_missing_packs_and_serves_the_others(tmp_path: Path, models_folder: Path) -> None:
    (tmp_path / "models").symlink_to(models_folder)
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    home.store.galleries.create("old", SFACE.name, "an-older-print", SFACE.dim)
    home.store.galleries.create("strange", "arcface", "x", 512)
    home.store.galleries.create("staff", SFACE.name, SFACE.fingerprint, SFACE.dim)
    with running(home) as service, service.client() as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "it is ready")
        reported = client.get("/readyz").json()
        assert set(reported["galleries"]) == {"old", "strange"}
        assert "an-older-print" in reported["galleries"]["old"]
        assert "'arcface'" in reported["galleries"]["strange"]
        for name in reported["galleries"]:
            ok(client.delete(f"/v1/galleries/{name}"))
        assert client.get("/readyz").json() == {"status": "ready"}


def test_a_gallery_may_be_deleted_while_it_loads(tmp_path: Path) -> None:
    home = SlowHome(tmp_path)
    for name in ("first", "vanishing", "last"):
        home.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)
    with loading(home) as client:
        home.slow.go.set()
        wait_for(lambda: client.get("/readyz").json()["status"] != "loading", "it is loaded")
        assert client.get("/readyz").json() == {"status": "ready"}
    assert home.asked_for == ["first", "vanishing", "last"]


def test_health_routes_answer_head_requests(client: httpx.Client) -> None:
    for path in ("/healthz", "/readyz"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.fixture(scope="module")
def document(service: Running) -> Any:
    with service.client() as client:
        return ok(client.get("/openapi.json"))


def test_the_openapi_document_is_valid(document: Any) -> None:
    assert document["openapi"].startswith("3.")
    OpenAPI.model_validate(document)
    missing = [ref for ref in references(document) if not found(document, ref)]
    assert missing == []
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)


def test_every_route_of_the_public_contract_is_documented(document: Any) -> None:
    documented = {path: set(methods) for path, methods in document["paths"].items()}
    assert {path: methods & documented.get(path, set()) for path, methods in ROUTES.items()} == ROUTES
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        assert operation.get("summary"), where
        assert operation.get("tags"), where
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert declared == {part[1:-1] for part in path.split("/") if part.startswith("{")}, where
        assert set(operation["responses"]) & {"200", "201", "202"}, where
        says_it_all = path.endswith(("/calibration", "/cancel", "/replay"))
        if method in ("post", "put") and not says_it_all:
            assert operation["requestBody"]["content"], where
        for status, response in operation["responses"].items():
            if status.startswith("4"):
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, where


def test_bodies_with_images_are_documented_in_both_forms(document: Any) -> None:
    for path, images in (
        ("/v1/galleries/{gallery}/search", {"image"}),
        ("/v1/galleries/{gallery}/identities/{external_id}/faces", {"image"}),
        ("/v1/detect", {"image"}),
        ("/v1/embed", {"image"}),
        ("/v1/compare", {"image_a", "image_b"}),
    ):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/json"}
        assert set(content["multipart/form-data"]["schema"].get("required", images)) == images  # or `images`
        for form in content.values():
            assert images <= set(form["schema"]["properties"])
    search = document["paths"]["/v1/galleries/{gallery}/search"]["post"]["requestBody"]["content"]
    wanted = {"image", "images", "embedding", "top_k", "fpir", "threshold", "pick", "all_faces", "same_person"}
    wanted |= {"record", "device", "direction", "cooldown", "liveness"}
    assert set(search["application/json"]["schema"]["properties"]) == wanted
    assert set(search["multipart/form-data"]["schema"]["properties"]) == wanted - {"embedding"}


def test_the_plain_fields_of_image_bodies_have_types(document: Any) -> None:
    kinds = {"top_k": "integer", "fpir": "number", "threshold": "number", "pick": "string", "all_faces": "boolean"}
    for path, _, operation in operations(document):
        for form in operation.get("requestBody", {}).get("content", {}).values():
            for name, schema in form["schema"].get("properties", {}).items():
                assert schema["type"] == kinds.get(name, schema["type"]), (path, name)
    posts = {path: methods["post"] for path, methods in document["paths"].items() if "post" in methods}
    picks = {
        path: post["requestBody"]["content"]["application/json"]["schema"].get("properties", {}).get("pick", {})
        for path, post in posts.items()
        if "application/json" in post.get("requestBody", {}).get("content", {})
    }
    assert picks["/v1/galleries/{gallery}/search"]["enum"] == ["largest", "center"]
    assert picks["/v1/galleries/{gallery}/identities/{external_id}/faces"]["enum"] == ["only", "largest", "center"]


def test_the_errors_of_each_route_are_documented(document: Any) -> None:
    image = {"400", "403", "413", "422", "429", "503"}
    for path, method, expected in (
        ("/v1/galleries", "get", {"400", "403", "503"}),
        ("/v1/galleries", "post", {"400", "403", "409", "413", "503"}),
        ("/v1/galleries/{gallery}/identities", "post", {"400", "403", "404", "409", "413", "503"}),
        ("/v1/galleries/{gallery}/identities/{external_id}", "put", {"400", "404", "413", "503"}),
        ("/v1/galleries/{gallery}/identities/{external_id}/faces", "post", image | {"404", "409"}),
        ("/v1/galleries/{gallery}/search", "post", image | {"404", "409"}),
        ("/v1/detect", "post", image),
        ("/v1/embed", "post", image),
        ("/v1/compare", "post", image),
    ):
        assert expected <= set(document["paths"][path][method]["responses"]), (path, method)
        assert {"401", "429"} <= set(document["paths"][path][method]["responses"]), (path, method)  # of keys
    assert "413" not in document["paths"]["/v1/models"]["get"]["responses"]


def test_the_docs_show_the_document(client: httpx.Client) -> None:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in answer.text


def operations(document: Any) -> list[tuple[str, str, Any]]:
    return [(path, method, op) for path, methods in document["paths"].items() for method, op in methods.items()]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from references(one)


def found(document: Any, reference: str) -> bool:
    place = document
    for part in reference.removeprefix("#/").split("/"):
        if part not in place:
            return False
        place = place[part]
    return True
