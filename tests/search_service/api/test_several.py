"""Several images in one request: an independent answer for each, or one answer from all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from search_service.api.bodies import MAX_IMAGES
from tests import photos as sources
from tests.nearly_equal import assert_nearly_equal
from tests.search_service.api.serving import base64_of, image, ok, refused

Files = list[tuple[str, tuple[str, bytes]]]


def several(*images: bytes, field: str = "image") -> Files:
    return [(field, (f"{number}.jpg", data)) for number, data in enumerate(images)]


def copies(count: int) -> list[bytes]:
    """The same photo in files of their own."""
    return [sources.astronaut() + bytes(number) for number in range(1, count + 1)]


def hanks(photos: Path) -> bytes:
    """Of another person than the astronaut."""
    return (photos / "photos" / "hanks" / "1.jpg").read_bytes()


@pytest.mark.parametrize("field", ["image", "images"])
@pytest.mark.numeric
def test_each_image_has_its_own_answer(client: httpx.Client, people: str, field: str) -> None:
    good, empty, broken = sources.astronaut(), sources.no_faces()[0], b"no image"
    files = several(good, empty, broken, good, field=field)
    reported = ok(client.post(f"{people}/search", files=files, data={"top_k": "2"}))
    assert set(reported) == {"answers"}
    alone = ok(client.post(f"{people}/search", files=image(good, "0.jpg"), data={"top_k": "2"}))
    first, second, third, last = reported["answers"]
    assert_nearly_equal(first, alone)
    assert_nearly_equal(last, {**alone, "image": "3.jpg"})
    for answer, name, code in ((second, "1.jpg", "no_face"), (third, "2.jpg", "unreadable_image")):
        assert (answer["image"], answer["faces"], answer["error"]["code"]) == (name, [], code)
        assert (answer["gallery"], answer["model"]) == (alone["gallery"], alone["model"])


def test_list_of_one_image_gets_a_list_of_one_answer(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    (answer,) = ok(client.post(f"{people}/search", json={"images": [base64_of(data)]}))["answers"]
    assert answer == ok(client.post(f"{people}/search", json={"image": base64_of(data)}))
    (answer,) = ok(client.post(f"{people}/search", files=image(data, field="images")))["answers"]
    assert answer["faces"][0]["candidates"][0]["external_id"] == "collins"
    both = {"image": base64_of(data), "images": [base64_of(b"no image")]}
    answers = ok(client.post(f"{people}/search", json=both))["answers"]
    assert [answer["error"] and answer["error"]["code"] for answer in answers] == [None, "unreadable_image"]


def test_all_faces_are_searched_in_each_image(client: httpx.Client, people: str) -> None:
    files = several(sources.six_people(), sources.astronaut())
    answers = ok(client.post(f"{people}/search", files=files, data={"all_faces": "true"}))["answers"]
    assert [len(answer["faces"]) for answer in answers] == [6, 1]


@pytest.mark.numeric
def test_frames_of_one_person_get_one_answer(client: httpx.Client, people: str) -> None:
    frames = several(*copies(2), sources.no_faces()[0], b"no image")
    reported = ok(client.post(f"{people}/search", files=frames, data={"same_person": "true"}))
    (face,) = reported["faces"]
    assert (reported["image"], reported["error"]) == ("0.jpg, 1.jpg, 2.jpg, 3.jpg", None)
    assert (face["decision"], face["candidates"][0]["external_id"]) == ("match", "collins")
    assert [frame["image"] for frame in reported["frames"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [frame["error"] and frame["error"]["code"] for frame in reported["frames"]] == [
        None,
        None,
        "no_face",
        "unreadable_image",
    ]
    assert sum(frame["shown"] for frame in reported["frames"][:2]) == 1
    assert not any(frame["disagrees"] for frame in reported["frames"])
    one = {"image": base64_of(sources.astronaut()), "same_person": True}
    (alone,) = ok(client.post(f"{people}/search", json=one))["faces"]
    assert alone["candidates"][0]["score"] == pytest.approx(face["candidates"][0]["score"], abs=2e-3)


def test_frames_of_different_people_do_not_match(client: httpx.Client, people: str, photos: Path) -> None:
    frames = several(sources.astronaut(), hanks(photos))
    reported = ok(client.post(f"{people}/search", files=frames, data={"same_person": "true"}))
    (face,) = reported["faces"]
    assert [frame["disagrees"] for frame in reported["frames"]] == [True, True]
    assert face["decision"] != "match"
    assert "frames_disagree" in face["reasons"]


def test_frames_without_any_face_are_rejected(client: httpx.Client, people: str) -> None:
    frames = several(sources.no_faces()[0], b"no image")
    refused(client.post(f"{people}/search", files=frames, data={"same_person": "true"}), 422, "no_face")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"images": []}, f"the request has 0 images; expected 1 to {MAX_IMAGES}"),
        ({"images": ["AAAA"] * (MAX_IMAGES + 1)}, f"{MAX_IMAGES + 1} images; expected 1 to {MAX_IMAGES}"),
        ({"images": "AAAA"}, "images must be a list of base64 strings"),
        ({"images": ["AAAA", 5]}, "images[1] must be a base64 string"),
        ({"images": ["AAAA", "*"]}, "images[1] is not base64"),
        ({"images": ["AAAA"], "embedding": [1.0]}, "image or embedding, not both"),
        ({"embedding": [1.0], "same_person": True}, "same_person is for images"),
        ({"images": ["AAAA"], "same_person": "maybe"}, "same_person is 'maybe'; expected true or false"),
        ({"images": ["AAAA"], "same_person": True, "all_faces": True}, "same_person or all_faces, not both"),
    ],
)
def test_wrong_list_of_images_is_rejected(
    client: httpx.Client, people: str, fields: dict[str, Any], named: str
) -> None:
    assert named in refused(client.post(f"{people}/search", json=fields), 400, "invalid_request")["message"]


def test_wrong_form_of_images_is_rejected(client: httpx.Client, people: str, gallery: str) -> None:
    data = sources.astronaut()
    too_many = several(*[b"no image"] * (MAX_IMAGES + 1))
    forms: list[tuple[Any, str]] = [
        (too_many, f"expected 1 to {MAX_IMAGES}"),
        ([("images", (None, "@photo.jpg"))], "images must be a list of base64 strings in JSON, or files"),
        ([("image", (None, "@photo.jpg")), ("images", ("a.jpg", data))], "image was sent"),
    ]
    for path in (f"{people}/search", f"{gallery}/identities/ana/faces"):
        for files, named in forms:
            answer = client.post(path, files=files)
            assert named in refused(answer, 400, "invalid_request")["message"]
    for path in ("/v1/detect", "/v1/embed"):
        assert "sent twice" in refused(client.post(path, files=several(data, data)), 400, "invalid_request")["message"]
    assert ok(client.get(gallery))["identities"] == 0


def test_photos_of_one_person_are_enrolled_together(client: httpx.Client, gallery: str) -> None:
    path = f"{gallery}/identities/collins/faces"
    first, second = copies(2)
    files = several(first, sources.no_faces()[0], second, first, b"no image")
    results = ok(client.post(path, files=files))["results"]
    assert [(r["image"], r["external_id"], r["outcome"], r["reason"]) for r in results] == [
        ("0.jpg", "collins", "enrolled", None),
        ("1.jpg", "collins", "rejected", "no_face"),
        ("2.jpg", "collins", "enrolled", None),
        ("3.jpg", "collins", "unchanged", None),
        ("4.jpg", "collins", "rejected", "unreadable_image"),
    ]
    ids = [result["face_id"] for result in results]
    assert ids[1] is ids[4] is None
    assert ids[0] == ids[3] != ids[2]
    assert results[1]["message"]
    listed = ok(client.get(path))["faces"]
    assert [face["face_id"] for face in listed] == [ids[0], ids[2]]
    shown = ok(client.get(gallery))
    assert (shown["identities"], shown["faces"], shown["index"]["faces"]) == (1, 2, 2)
    again = ok(client.post(path, json={"images": [base64_of(second), base64_of(first)]}))["results"]
    assert [(r["image"], r["outcome"], r["face_id"]) for r in again] == [
        (None, "unchanged", ids[2]),
        (None, "unchanged", ids[0]),
    ]


def test_lookalike_photos_are_rejected_individually(client: httpx.Client, gallery: str, photos: Path) -> None:
    first, second = copies(2)
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(first)), 201)
    files = several(second, first, hanks(photos))
    results = ok(client.post(f"{gallery}/identities/hanks/faces", files=files))["results"]
    assert [(r["outcome"], r["reason"]) for r in results] == [
        ("rejected", "looks_like_another_identity"),
        ("rejected", "looks_like_another_identity"),
        ("enrolled", None),
    ]
    assert results[0]["details"]["external_id"] == results[1]["details"]["external_id"] == "collins"
    assert results[0]["details"]["score"] > 0.9
    assert ok(client.get(gallery))["faces"] == 2


def test_unusable_photos_create_no_identity(client: httpx.Client, gallery: str) -> None:
    files = several(sources.no_faces()[0], b"no image")
    results = ok(client.post(f"{gallery}/identities/ana/faces", files=files))["results"]
    assert [result["outcome"] for result in results] == ["rejected"] * 2
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")
