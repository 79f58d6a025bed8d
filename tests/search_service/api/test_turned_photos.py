"""Photos that are not upright, over HTTP."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

from tests import photos
from tests.search_service.api.serving import image, ok


@pytest.fixture(scope="module")
def turned() -> bytes:
    """A photo that has to be turned clockwise by 90 degrees."""
    return photos.encode(np.ascontiguousarray(np.rot90(photos.pixels(photos.astronaut()))), "PNG")


def test_every_answer_reports_the_turn(client: httpx.Client, people: str, turned: bytes) -> None:
    (found,) = ok(client.post(f"{people}/search", files=image(turned)))["faces"]
    assert (found["turn"], found["decision"]) == (90, "match")
    assert found["candidates"][0]["external_id"] == "collins"
    for path in ("/v1/detect", "/v1/embed"):
        assert [face["turn"] for face in ok(client.post(path, files=image(turned)))["faces"]] == [90]
    both = image(turned, field="image_a") | image(photos.astronaut(), field="image_b")
    compared = ok(client.post("/v1/compare", files=both))
    assert compared["same"] is True
    assert [face["turn"] for face in compared["faces"]] == [90, 0]


def test_enrolling_a_turned_photo_reports_the_turn(client: httpx.Client, gallery: str, turned: bytes) -> None:
    enrolled = ok(client.post(f"{gallery}/identities/collins/faces", files=image(turned)), 201)
    assert (enrolled["outcome"], enrolled["details"]) == ("enrolled", {"turn": 90})
    assert enrolled["message"] == "the photo is not upright; it was turned clockwise by 90 degrees"
    (stored,) = ok(client.get(f"{gallery}/identities/collins/faces"))["faces"]
    assert stored["turn"] is None


def test_searched_embedding_has_no_turn(client: httpx.Client, people: str) -> None:
    (face,) = ok(client.post("/v1/embed", files=image(photos.astronaut())))["faces"]
    (found,) = ok(client.post(f"{people}/search", json={"embedding": face["embedding"]}))["faces"]
    assert (face["turn"], found["turn"]) == (0, None)
