"""Kept crops over HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx

from indexer.settings import read_settings
from indexer.vision import crops
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import image, ok, refused, running
from tests.variants import SETTINGS


def test_a_kept_crop_is_returned(tmp_path: Path, models_folder: Path) -> None:
    settings = read_settings(SETTINGS, home=new_home(tmp_path, models_folder), keep_crops=True)
    with running(ServiceContext(settings)) as service, service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        person = "/v1/galleries/staff/identities/ana"
        face_id = ok(client.post(f"{person}/faces", files=image(sources.astronaut())), 201)["face_id"]
        (face,) = ok(client.get(f"{person}/faces"))["faces"]
        assert face["has_crop"]
        crop = client.get(f"/v1/galleries/staff/faces/{face_id}/crop")
        assert (crop.status_code, crop.headers["content-type"]) == (200, "image/webp")
        assert crops.decode(crop.content).shape == (112, 112, 3)


def test_a_crop_that_is_not_kept_is_not_found(client: httpx.Client, gallery: str) -> None:
    person = f"{gallery}/identities/ana"
    face_id = ok(client.post(f"{person}/faces", files=image(sources.astronaut())), 201)["face_id"]
    assert not ok(client.get(f"{gallery}/faces/{face_id}"))["has_crop"]
    refused(client.get(f"{gallery}/faces/{face_id}/crop"), 404, "crop_not_kept")
    refused(client.get(f"{gallery}/faces/{face_id + 1}/crop"), 404, "face_not_found")
