from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from indexer.models.packs import SFACE
from tests import photos
from tests.search_service.api.serving import image, ok, refused


def test_gallery_is_created_listed_shown_and_deleted(client: httpx.Client) -> None:
    name = f"Ünïcode staff {uuid.uuid4().hex}"
    made = ok(client.post("/v1/galleries", json={"name": name}), 201)
    assert datetime.now(UTC) - datetime.fromisoformat(made.pop("created_at")) < timedelta(minutes=5)
    assert made == {"name": name, "model": "sface", "dim": SFACE.dim, "identities": 0, "faces": 0}
    shown = ok(client.get(f"/v1/galleries/{name}"))
    assert shown.pop("index") == {"kind": "exact", "faces": 0, "seq": 0, "snapshot_seq": None, "checked": None}
    assert {key: shown[key] for key in made} == made
    listed = ok(client.get("/v1/galleries", params={"limit": 1000}))
    assert [shown] == [gallery for gallery in listed["galleries"] if gallery["name"] == name]
    assert ok(client.delete(f"/v1/galleries/{name}")) == {"deleted": name, "faces": 0}
    refused(client.get(f"/v1/galleries/{name}"), 404, "gallery_not_found")
    refused(client.delete(f"/v1/galleries/{name}"), 404, "gallery_not_found")


def test_second_gallery_of_a_name_is_rejected(client: httpx.Client, gallery: str) -> None:
    name = gallery.rpartition("/")[2]
    assert name in refused(client.post("/v1/galleries", json={"name": name}), 409, "gallery_exists")["message"]


@pytest.mark.parametrize("name", ["", " staff", "staff\n", "a\tb", "a/b", ".", "..", "x" * 201, "\u200b", "\ud800"])
def test_invalid_name_is_rejected(client: httpx.Client, name: str) -> None:
    body = b'{"name": "\\ud800"}' if name == "\ud800" else httpx.Request("POST", "/", json={"name": name}).content
    answer = client.post("/v1/galleries", content=body, headers={"Content-Type": "application/json"})
    assert "a gallery's name must" in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.name"),
        ({"nmae": "staff"}, "body.nmae"),
        ({"name": 5}, "body.name"),
        ({"name": None}, "body.name"),
        ({"name": "staff", "model": ["sface"]}, "body.model"),
        (["staff"], "body"),
    ],
)
def test_wrong_body_is_rejected_with_its_field(client: httpx.Client, body: object, field: str) -> None:
    error = refused(client.post("/v1/galleries", json=body), 400, "invalid_request")
    assert field in [found["field"] for found in error["details"]["fields"]]
    assert f"{field}: " in error["message"]


def test_unknown_model_is_rejected_with_the_known_ones(client: httpx.Client) -> None:
    answer = client.post("/v1/galleries", json={"name": "of-no-model", "model": "arcface"})
    message = refused(answer, 404, "model_not_found")["message"]
    assert "'arcface'" in message
    assert "sface" in message
    refused(client.get("/v1/galleries/of-no-model"), 404, "gallery_not_found")


def test_pages_list_every_gallery_once_in_order_of_creation(client: httpx.Client) -> None:
    made = [f"paged-{n}-{uuid.uuid4().hex}" for n in range(5)]
    for name in made:
        ok(client.post("/v1/galleries", json={"name": name}), 201)
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = ok(client.get("/v1/galleries", params={"limit": 2} | ({"cursor": cursor} if cursor else {})))
        found += [gallery["name"] for gallery in page["galleries"]]
        cursor = page["cursor"]
        if cursor is None:
            break
        assert len(page["galleries"]) == 2
    assert [name for name in found if name in made] == made
    assert len(set(found)) == len(found)
    everything = ok(client.get("/v1/galleries", params={"limit": 1000}))
    assert found == [gallery["name"] for gallery in everything["galleries"]]
    assert everything["cursor"] is None


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "1.5", ""])
def test_invalid_limit_is_rejected(client: httpx.Client, limit: str) -> None:
    error = refused(client.get("/v1/galleries", params={"limit": limit}), 400, "invalid_request")
    assert error["details"]["fields"][0]["field"] == "query.limit"


FORGED = [b"after:", b"before:1", b"after:-1", b"\xff", b"after:" + b"9" * 30]


@pytest.mark.parametrize(
    "cursor", ["", "5", "é", "!!!", *(base64.urlsafe_b64encode(forged).decode() for forged in FORGED)]
)
def test_unknown_cursor_is_rejected(client: httpx.Client, gallery: str, cursor: str) -> None:
    for path in ("/v1/galleries", f"{gallery}/identities"):
        error = refused(client.get(path, params={"cursor": cursor}), 400, "invalid_request")
        assert "cursor" in error["message"]


def test_name_of_a_deleted_gallery_can_be_reused(client: httpx.Client, gallery: str) -> None:
    face = image(photos.astronaut())
    ok(client.post(f"{gallery}/identities/collins/faces", files=face), 201)
    assert len(ok(client.post(f"{gallery}/search", files=face))["faces"][0]["candidates"]) == 1
    assert ok(client.delete(gallery)) == {"deleted": gallery.rpartition("/")[2], "faces": 1}
    refused(client.post(f"{gallery}/search", files=face), 404, "gallery_not_found")
    ok(client.post("/v1/galleries", json={"name": gallery.rpartition("/")[2]}), 201)
    (found,) = ok(client.post(f"{gallery}/search", files=face))["faces"]
    assert (found["candidates"], found["decision"]) == ([], "no_match")


def test_every_route_reports_a_missing_gallery(client: httpx.Client) -> None:
    nowhere, face = "/v1/galleries/nowhere", image(photos.astronaut())
    for answer in (
        client.get(nowhere),
        client.delete(nowhere),
        client.get(f"{nowhere}/identities"),
        client.post(f"{nowhere}/identities", json={"external_id": "ana"}),
        client.get(f"{nowhere}/identities/ana"),
        client.put(f"{nowhere}/identities/ana", json={}),
        client.delete(f"{nowhere}/identities/ana"),
        client.get(f"{nowhere}/identities/ana/faces"),
        client.post(f"{nowhere}/identities/ana/faces", files=face),
        client.get(f"{nowhere}/faces/1"),
        client.delete(f"{nowhere}/faces/1"),
        client.post(f"{nowhere}/search", files=face),
        client.post(f"{nowhere}/search", json={"embedding": [1.0] + [0.0] * 127}),
    ):
        assert "'nowhere'" in refused(answer, 404, "gallery_not_found")["message"]
