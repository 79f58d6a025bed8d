from __future__ import annotations

import hashlib

import httpx
import numpy as np
import pytest

from tests import photos
from tests.search_service.api.conftest import MAX_IMAGE_BYTES
from tests.search_service.api.serving import base64_of, image, ok, refused


def noise(side: int) -> bytes:
    """A PNG that does not get smaller."""
    return photos.encode(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8), "PNG")


def dark() -> bytes:
    return photos.encode(np.asarray(photos.pixels(photos.astronaut()) * 0.1, np.uint8), "PNG")


def test_photo_is_enrolled_once(client: httpx.Client, gallery: str) -> None:
    data = photos.astronaut()
    enrolled = ok(client.post(f"{gallery}/identities/collins/faces", files=image(data, "a.png")), 201)
    face_id = enrolled["face_id"]
    assert enrolled == {
        "image": "a.png",
        "external_id": "collins",
        "outcome": "enrolled",
        "reason": None,
        "face_id": face_id,
        "message": None,
        "details": {},
    }
    again = ok(client.post(f"{gallery}/identities/collins/faces", json={"image": base64_of(data)}), 200)
    assert again == {**enrolled, "image": None, "outcome": "unchanged"}
    shown = ok(client.get(gallery))
    assert (shown["identities"], shown["faces"], shown["index"]["faces"]) == (1, 1, 1)


def test_photo_of_another_identity_is_rejected_and_creates_nobody(client: httpx.Client, gallery: str) -> None:
    data = photos.astronaut()
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(data)), 201)
    answer = client.post(f"{gallery}/identities/another/faces", files=image(data))
    assert "collins" in refused(answer, 422, "looks_like_another_identity")["message"]
    refused(client.get(f"{gallery}/identities/another"), 404, "identity_not_found")


def test_person_can_be_in_two_galleries(client: httpx.Client, gallery: str, people: str) -> None:
    (face,) = ok(client.get(f"{people}/identities/collins/faces"))["faces"]
    data = photos.astronaut()
    ok(client.post(f"{gallery}/identities/eileen/faces", files=image(data)), 201)
    assert (
        ok(client.post(f"{people}/search", files=image(data)))["faces"][0]["candidates"][0]["face_id"]
        == face["face_id"]
    )


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 422, "unreadable_image"),
        (b"GIF89a no", 422, "unreadable_image"),
        (photos.astronaut()[:5000], 422, "unreadable_image"),
        (photos.no_faces()[0], 422, "no_face"),
        (photos.six_people(), 422, "several_faces"),
        (dark(), 422, "face_badly_lit"),
        (noise(900), 413, "image_too_large"),
    ],
    ids=["empty", "no image", "cut off", "no face", "six faces", "dark", "too large"],
)
def test_unusable_photo_is_rejected_with_its_reason(
    client: httpx.Client, gallery: str, data: bytes, status: int, reason: str
) -> None:
    error = refused(client.post(f"{gallery}/identities/ana/faces", files=image(data)), status, reason)
    if reason == "face_badly_lit":
        assert error["details"] == {"reasons": ["face_badly_lit"]}
    if reason == "several_faces":
        assert error["details"]["faces"] > 1
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")
    shown = ok(client.get(gallery))
    assert (shown["identities"], shown["faces"]) == (0, 0)


def test_pick_selects_the_enrolled_face(client: httpx.Client, gallery: str) -> None:
    data = photos.six_people()
    boxes = {}
    for pick in ("largest", "center"):
        files, path = image(data), f"{gallery}/identities/{pick}"
        face_id = ok(client.post(f"{path}/faces", files=files, data={"pick": pick}), 201)["face_id"]
        (face,) = ok(client.get(f"{path}/faces"))["faces"]
        assert face["face_id"] == face_id
        boxes[pick] = face["box"]
        ok(client.delete(path))  # the next one is of the same image
    everybody = [face["box"] for face in ok(client.post("/v1/detect", files=image(data)))["faces"]]
    areas = [w * h for _, _, w, h in everybody]
    assert areas[0] == max(areas)
    assert boxes["largest"][2] * boxes["largest"][3] > 0.9 * areas[0]
    centers = [abs(x + w / 2 - 640) ** 2 + abs(y + h / 2 - 443) ** 2 for x, y, w, h in everybody]
    assert boxes["center"] == pytest.approx(everybody[int(np.argmin(centers))], abs=3)
    assert boxes["center"] != boxes["largest"]
    answer = client.post(f"{gallery}/identities/ana/faces", files=image(data), data={"pick": "only"})
    refused(answer, 422, "several_faces")


@pytest.mark.parametrize(
    ("data", "named"),
    [({"pick": "nose"}, "pick"), ({"pik": "largest"}, "body.pik: "), ({"all_faces": "1"}, "body.all_faces: ")],
)
def test_wrong_field_is_rejected_by_name(client: httpx.Client, gallery: str, data: dict[str, str], named: str) -> None:
    answer = client.post(f"{gallery}/identities/ana/faces", files=image(photos.astronaut()), data=data)
    assert named in refused(answer, 400, "invalid_request")["message"]


def test_faces_are_listed_in_pages_shown_and_deleted(client: httpx.Client, gallery: str) -> None:
    data = [photos.encode(photos.pixels(photos.astronaut()), "JPEG", quality=quality) for quality in (90, 93, 96)]
    path = f"{gallery}/identities/collins"
    ids = [ok(client.post(f"{path}/faces", files=image(one)), 201)["face_id"] for one in data]
    assert ids == sorted(ids)
    first = ok(client.get(f"{path}/faces", params={"limit": 2}))
    second = ok(client.get(f"{path}/faces", params={"limit": 2, "cursor": first["cursor"]}))
    faces = first["faces"] + second["faces"]
    assert [face["face_id"] for face in faces] == ids
    assert second["cursor"] is None
    assert [face["image_sha256"] for face in faces] == [hashlib.sha256(one).hexdigest() for one in data]
    for face in faces:
        assert ok(client.get(f"{gallery}/faces/{face['face_id']}")) == face
        assert face["external_id"] == "collins"
        assert len(face["box"]) == 4
        assert np.shape(face["landmarks"]) == (5, 2)
        assert 0.5 < face["detection_score"] <= 1
        assert face["quality"]["reasons"] == []
    assert ok(client.get(path))["faces"] == 3
    assert ok(client.delete(f"{gallery}/faces/{ids[1]}")) == {"deleted": str(ids[1]), "faces": 1}
    refused(client.get(f"{gallery}/faces/{ids[1]}"), 404, "face_not_found")
    refused(client.delete(f"{gallery}/faces/{ids[1]}"), 404, "face_not_found")
    assert [face["face_id"] for face in ok(client.get(f"{path}/faces"))["faces"]] == [ids[0], ids[2]]
    assert ok(client.delete(path)) == {"deleted": "collins", "faces": 2}
    assert ok(client.get(gallery))["index"]["faces"] == 0


def test_identity_without_faces_stays_but_is_not_found(client: httpx.Client, gallery: str) -> None:
    files = image(photos.astronaut())
    face_id = ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)["face_id"]
    ok(client.delete(f"{gallery}/faces/{face_id}"))
    assert ok(client.get(f"{gallery}/identities/collins"))["faces"] == 0
    (found,) = ok(client.post(f"{gallery}/search", files=files))["faces"]
    assert (found["decision"], found["candidates"]) == ("no_match", [])
    again = ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)
    assert again["face_id"] > face_id


def test_face_is_only_visible_in_its_gallery(client: httpx.Client, gallery: str, people: str) -> None:
    (face,) = ok(client.get(f"{people}/identities/hanks/faces"))["faces"]
    refused(client.get(f"{gallery}/faces/{face['face_id']}"), 404, "face_not_found")
    refused(client.delete(f"{gallery}/faces/{face['face_id']}"), 404, "face_not_found")
    assert ok(client.get(f"{people}/faces/{face['face_id']}")) == face


@pytest.mark.parametrize("face_id", ["one", "1.5", "9" * 30, "%31x", "0", "-1", f"-{'9' * 18}", f"-{'9' * 30}"])
def test_invalid_face_id_is_rejected(client: httpx.Client, gallery: str, face_id: str) -> None:
    for answer in (client.get(f"{gallery}/faces/{face_id}"), client.delete(f"{gallery}/faces/{face_id}")):
        error = refused(answer, 400, "invalid_request")
        assert error["details"]["fields"][0]["field"] == "path.face_id"


def test_image_of_exactly_the_size_limit_is_accepted(client: httpx.Client, gallery: str) -> None:
    padded = photos.astronaut()
    padded += bytes(MAX_IMAGE_BYTES - len(padded))  # PNG readers stop at the end of the picture
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(padded)), 201)
    answer = client.post(f"{gallery}/identities/other/faces", files=image(padded + b"\0"))
    assert f"{MAX_IMAGE_BYTES:,}" in refused(answer, 413, "image_too_large")["message"]
