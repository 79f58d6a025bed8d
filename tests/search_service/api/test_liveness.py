"""Presentation attacks over HTTP, found by a network that takes dark photos for attacks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageEnhance

from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.liveness_networks import CERTAIN, DARK, UNSURE, add_pack, brightness_network, linked_models
from tests.search_service.api.bulk import enroll, finished, packed
from tests.search_service.api.serving import Running, image, ok, running
from tests.variants import SETTINGS

REQUIRE = {"liveness": "require"}
DOOR = {"record": "true", "device": "door", **REQUIRE}


def photo(brightness: float) -> bytes:
    """A photo of `collins`."""
    with Image.open(io.BytesIO(sources.astronaut())) as opened:
        return sources.encode(ImageEnhance.Brightness(opened.convert("RGB")).enhance(brightness), "PNG")


LIVE, DOUBTFUL, ATTACK = photo(CERTAIN), photo(UNSURE), photo(DARK)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Running]:
    """A service with a liveness pack."""
    folder = tmp_path_factory.mktemp("liveness")
    add_pack(linked_models(folder, models_folder), brightness_network())
    with running(ServiceContext(read_settings(SETTINGS, home=folder))) as service:
        yield service.ready()


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def staff(client: httpx.Client, gallery: str) -> str:
    """The path of a gallery with one person."""
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(LIVE)), 201)
    return gallery


def search(client: httpx.Client, staff: str, data: bytes, **fields: str) -> Any:
    (face,) = ok(client.post(f"{staff}/search", files=image(data), data=fields))["faces"]
    return face


def test_liveness_is_reported_once_a_pack_is_installed(client: httpx.Client, staff: str) -> None:
    live, attack = search(client, staff, LIVE)["liveness"], search(client, staff, ATTACK)["liveness"]
    assert (live["live"], attack["live"]) == (True, False)
    assert live["score"] > 0.5 > attack["score"]
    assert live["model"] == attack["model"] == "light"
    assert search(client, staff, ATTACK)["decision"] == "match"
    assert search(client, staff, LIVE, liveness="off")["liveness"] is None
    assert [face["liveness"] for face in ok(client.post("/v1/detect", files=image(LIVE)))["faces"]] == [None]


def test_face_that_is_not_live_matches_nobody_where_live_ones_are_required(client: httpx.Client, staff: str) -> None:
    live, attack = search(client, staff, LIVE, **REQUIRE), search(client, staff, ATTACK, **REQUIRE)
    assert (live["decision"], live["candidates"][0]["external_id"]) == ("match", "collins")
    assert (attack["decision"], attack["reasons"], attack["candidates"]) == ("no_match", ["not_live"], [])
    assert attack["liveness"]["live"] is False
    assert attack["threshold"] == live["threshold"]


def test_attack_is_recorded_as_one(client: httpx.Client, staff: str, stranger: bytes) -> None:
    before = search(client, staff, stranger, record="true", device="door")["event"]
    face = search(client, staff, ATTACK, **DOOR)
    event = face["event"]
    assert (before["decision"], before["recorded"], event["recorded"]) == ("no_match", True, True)
    assert (event["decision"], event["reasons"], event["liveness"]) == ("no_match", ["not_live"], face["liveness"])
    assert [event[name] for name in ("external_id", "identity_id", "name", "score")] == [None] * 4
    assert search(client, staff, ATTACK, **DOOR)["event"] == {**event, "recorded": False}
    params = {"gallery": staff.rpartition("/")[2]}
    listed = ok(client.get("/v1/events", params=params))["events"]
    assert [one["reasons"] for one in listed] == [before["reasons"], ["not_live"]]
    assert search(client, staff, LIVE, **DOOR)["event"]["external_id"] == "collins"


@pytest.mark.parametrize(
    ("frames", "decision"),
    [
        ([LIVE, DOUBTFUL, LIVE], "match"),
        ([LIVE, DOUBTFUL, DOUBTFUL], "no_match"),
        ([LIVE, ATTACK, LIVE], "no_match"),
    ],
    ids=["median is live", "median is not live", "one is surely not live"],
)
def test_frames_decide_by_their_median_and_by_a_sure_attack(
    client: httpx.Client, staff: str, frames: list[bytes], decision: str
) -> None:
    files = [("images", (f"{place}.png", data)) for place, data in enumerate(frames)]
    answer = ok(client.post(f"{staff}/search", files=files, data={"same_person": "true", **REQUIRE}))
    (face,) = answer["faces"]
    assert face["decision"] == decision
    assert face["liveness"]["live"] == (decision == "match")
    scores = [frame["liveness"]["score"] for frame in answer["frames"]]
    assert face["liveness"]["score"] == sorted(scores)[1]


def test_faces_of_a_group_are_checked_one_by_one(client: httpx.Client, gallery: str) -> None:
    data = {"all_faces": "true", "liveness": "report"}
    faces = ok(client.post(f"{gallery}/search", files=image(sources.six_people()), data=data))["faces"]
    assert len({face["liveness"]["score"] for face in faces}) == 6


def test_compared_faces_must_be_live_where_that_is_required(client: httpx.Client) -> None:
    both = image(LIVE, field="image_a") | image(ATTACK, field="image_b")
    reported = ok(client.post("/v1/compare", files=both))
    assert (reported["same"], reported["reasons"]) == (True, [])
    assert [face["liveness"]["live"] for face in reported["faces"]] == [True, False]
    required = ok(client.post("/v1/compare", files=both, data=REQUIRE))
    assert (required["same"], required["reasons"]) == (False, ["not_live"])


def test_embedding_is_refused_where_a_live_face_is_required(client: httpx.Client, staff: str) -> None:
    embedding = ok(client.post("/v1/embed", files=image(LIVE)))["faces"][0]["embedding"]
    refused = client.post(f"{staff}/search", json={"embedding": embedding, **REQUIRE})
    assert refused.status_code == 400
    assert "an embedding cannot show one" in refused.json()["error"]["message"]
    assert ok(client.post(f"{staff}/search", json={"embedding": embedding}))["faces"][0]["liveness"] is None


def test_enrollment_rejects_photos_that_are_not_live_only_on_request(client: httpx.Client, gallery: str) -> None:
    path = f"{gallery}/identities/collins/faces"
    refused = client.post(path, files=image(ATTACK), data=REQUIRE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_live")
    files = [("images", ("1.png", LIVE)), ("images", ("2.png", ATTACK))]
    results = ok(client.post(path, files=files, data=REQUIRE))["results"]
    assert [(one["outcome"], one["reason"]) for one in results] == [("enrolled", None), ("rejected", "not_live")]
    assert results[0]["details"]["liveness"]["live"] is True
    accepted = ok(client.post(path, files=image(ATTACK)), 201)
    assert (accepted["outcome"], accepted["details"]) == ("enrolled", {})


def test_bulk_enrollment_rejects_photos_that_are_not_live(client: httpx.Client, gallery: str) -> None:
    archive = packed({"collins/1.png": LIVE, "other/1.png": ATTACK})
    results = finished(client, enroll(client, archive, gallery, params=REQUIRE))["results"]
    assert [(one["outcome"], one["reason"]) for one in results] == [("enrolled", None), ("rejected", "not_live")]


@pytest.mark.parametrize("path", ["search", "identities/ana/faces", "enrollments"])
def test_unknown_mode_is_refused(client: httpx.Client, gallery: str, path: str) -> None:
    files = image(LIVE) if path != "enrollments" else image(LIVE, field="images")
    refused = client.post(f"{gallery}/{path}", files=files, data={"liveness": "on"})
    assert refused.status_code == 400
    assert "liveness is 'on'; expected off, report, require" in refused.json()["error"]["message"]
