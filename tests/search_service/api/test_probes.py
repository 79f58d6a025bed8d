"""Search, detect, compare, embed and models over HTTP."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.demo import PROBES, Probe
from search_service.service_context import ServiceContext
from tests import photos as sources
from tests.nearly_equal import assert_nearly_equal
from tests.search_service.api.serving import base64_of, image, ok, refused, running
from tests.variants import SETTINGS


def search(client: httpx.Client, gallery: str, data: bytes, **fields: object) -> Any:
    return ok(client.post(f"{gallery}/search", files=image(data, "probe.jpg"), data=fields))


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.file)
@pytest.mark.numeric
def test_search_finds_the_person_of_each_probe(client: httpx.Client, people: str, photos: Path, probe: Probe) -> None:
    answer = search(client, people, (photos / "probes" / probe.file).read_bytes())
    assert {key: answer[key] for key in ("image", "gallery", "model", "error")} == {
        "image": "probe.jpg",
        "gallery": "people",
        "model": "sface",
        "error": None,
    }
    (face,) = answer["faces"]
    assert face["fpir"] == 0.01
    assert [c["rank"] for c in face["candidates"]] == [1, 2, 3, 4, 5]
    scores = [c["score"] for c in face["candidates"]]
    assert scores == sorted(scores, reverse=True)
    best = face["candidates"][0]
    if probe.expected is None:
        assert face["decision"] == "no_match"
        assert best["score"] < face["threshold"]
    else:
        assert face["decision"] in ("match", "review")
        assert best["external_id"] == probe.expected
        assert best["score"] >= face["threshold"] > scores[1]
        person = ok(client.get(f"{people}/identities/{probe.expected}"))
        assert (best["identity_id"], best["metadata"], best["name"]) == (person["id"], {}, None)
        assert [f["face_id"] for f in ok(client.get(f"{people}/identities/{probe.expected}/faces"))["faces"]] == [
            best["face_id"]
        ]


@pytest.mark.numeric
def test_multipart_base64_and_data_url_get_the_same_answer(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    expected = search(client, people, data) | {"image": None}
    plain = base64_of(data)
    for sent in (plain, f"data:image/png;base64,{plain}", base64.encodebytes(data).decode(), f" {plain}\r\n"):
        assert_nearly_equal(ok(client.post(f"{people}/search", json={"image": sent})), expected)
    nulls = {"image": plain, "embedding": None, "top_k": None, "fpir": None, "pick": None}
    assert_nearly_equal(ok(client.post(f"{people}/search", json=nulls)), expected)


@pytest.mark.numeric
def test_searching_an_embedding_equals_searching_its_image(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    expected = search(client, people, data)["faces"][0]
    (face,) = ok(client.post("/v1/embed", files=image(data)))["faces"]
    answer = ok(client.post(f"{people}/search", json={"embedding": face["embedding"]}))
    assert (answer["image"], answer["error"]) == (None, None)
    (found,) = answer["faces"]
    assert (found["box"], found["landmarks"], found["detection_score"], found["quality"]) == (None,) * 4
    assert (found["decision"], found["threshold"], found["fpir"]) == ("match", expected["threshold"], 0.01)
    for one, other in zip(found["candidates"], expected["candidates"], strict=True):
        assert {**one, "score": None} == {**other, "score": None}
        assert one["score"] == pytest.approx(other["score"], abs=0.001)


@pytest.mark.parametrize(
    ("embedding", "reported"),
    [
        ("text", "got 'text'"),
        ({"a": 1}, "got {'a': 1}"),
        (True, "got True"),
        ([], "got 0"),
        ([1.0], "got 1"),
        ([1.0] * 129, "got 129"),
        ([1.0] * 127 + ["x"], "got 'x' among them"),
        ([None] * 128, "got None among them"),
        ([True] * 128, "got True among them"),
        ([10**400] + [0] * 127, "one of them is too large"),
        ([[1.0] + [0.0] * 127], "got a list of lists (a request holds one embedding)"),
        ([[1.0] + [0.0] * 127] * 2, "got a list of lists (a request holds one embedding)"),
        ([[[1.0] + [0.0] * 127]], "got a list of lists"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_malformed_embedding_is_rejected(client: httpx.Client, people: str, embedding: object, reported: str) -> None:
    answer = client.post(f"{people}/search", json={"embedding": embedding})
    message = refused(answer, 400, "invalid_embedding")["message"]
    assert message.startswith("embedding must be a list of 128 numbers; ")
    assert reported in message


@pytest.mark.parametrize("number", [0.0, 1.0])
def test_embedding_of_wrong_length_is_rejected(client: httpx.Client, people: str, number: float) -> None:
    answer = client.post(f"{people}/search", json={"embedding": [number] * 128})
    assert "must have length 1" in refused(answer, 400, "invalid_embedding")["message"]


def test_search_does_not_accept_pick_only(client: httpx.Client, people: str) -> None:
    answer = client.post(f"{people}/search", files=image(sources.six_people()), data={"pick": "only"})
    message = refused(answer, 400, "invalid_request")["message"]
    assert message == "pick is 'only'; expected largest, center"


def test_top_k_limits_the_candidates(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    everybody = search(client, people, data, top_k=100)["faces"][0]
    assert len(everybody["candidates"]) == 7
    for top_k in (1, 3, 7):
        face = search(client, people, data, top_k=top_k)["faces"][0]
        assert face["candidates"] == everybody["candidates"][:top_k]
        assert face["decision"] == everybody["decision"] == "match"


def test_lower_fpir_raises_the_threshold(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    faces = [search(client, people, data, fpir=fpir)["faces"][0] for fpir in (0.01, 0.001, 0.0001)]
    assert [face["fpir"] for face in faces] == [0.01, 0.001, 0.0001]
    assert faces[0]["threshold"] < faces[1]["threshold"] < faces[2]["threshold"]
    assert faces[0]["threshold"] == search(client, people, data)["faces"][0]["threshold"]


@pytest.mark.numeric
def test_threshold_separates_match_from_no_match(client: httpx.Client, people: str, photos: Path) -> None:
    data = (photos / "probes" / "hanks-wide.webp").read_bytes()
    score = search(client, people, data)["faces"][0]["candidates"][0]["score"]
    below = search(client, people, data, threshold=score - 0.01)["faces"][0]
    above = search(client, people, data, threshold=score + 0.01)["faces"][0]
    assert (below["threshold"], below["fpir"]) == (pytest.approx(score - 0.01), None)
    assert below["decision"] in ("match", "review")
    assert above["decision"] == "no_match"
    assert above["candidates"] == below["candidates"]


@pytest.mark.numeric
def test_all_faces_and_pick_select_faces(client: httpx.Client, people: str) -> None:
    data = sources.six_people()
    everybody = search(client, people, data, all_faces="true", top_k=1)["faces"]
    found = {face["candidates"][0]["external_id"] for face in everybody if face["decision"] != "no_match"}
    assert found == {"left-1", "left-2", "left-3", "left-4", "left-6"}
    areas = [face["box"][2] * face["box"][3] for face in everybody]
    assert len(areas) == 6
    assert areas == sorted(areas, reverse=True)
    (largest,) = search(client, people, data, pick="largest", top_k=1)["faces"]
    assert largest["box"][2] * largest["box"][3] > 0.9 * areas[0]
    assert largest["candidates"][0]["external_id"] in [
        face["candidates"][0]["external_id"]
        for face, area in zip(everybody, areas, strict=True)
        if area > 0.9 * areas[0]
    ]
    assert search(client, people, data)["faces"][0]["box"] == largest["box"]
    (center,) = search(client, people, data, pick="center", top_k=1)["faces"]
    assert center["candidates"][0]["external_id"] in ("left-3", "left-4")
    fields = {"image": base64_of(data), "all_faces": True, "top_k": 1}
    assert ok(client.post(f"{people}/search", json=fields))["faces"] == everybody


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"fpir": 0.01, "threshold": 0.4}, "fpir or threshold, not both"),
        ({"fpir": 0}, "fpir is 0"),
        ({"fpir": 5e-324}, "fpir is 5e-324; expected 1e-09 or more"),
        ({"fpir": 1e-300}, "fpir is 1e-300"),
        ({"fpir": "nan"}, "fpir is nan"),
        ({"fpir": 1}, "fpir is 1"),
        ({"fpir": "x"}, "fpir is 'x'"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": "nan"}, "threshold is nan"),
        ({"threshold": "inf"}, "threshold is inf"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 101}, "top_k is 101"),
        ({"top_k": 2.5}, "top_k is"),
        ({"top_k": "many"}, "top_k is 'many'"),
        ({"top_k": "1e999"}, "top_k is '1e999'"),
        ({"pick": "nose"}, "pick is 'nose'; expected largest, center"),
        ({"all_faces": "perhaps"}, "all_faces is 'perhaps'"),
        ({"all_faces": "true", "pick": "largest"}, "pick or all_faces, not both"),
        ({"treshold": 0.4}, "body.treshold: "),
        ({"Threshold": 0.4}, "body.Threshold: "),
    ],
)
def test_wrong_field_is_rejected_by_name(client: httpx.Client, people: str, fields: dict[str, Any], named: str) -> None:
    data = sources.astronaut()
    for answer in (
        client.post(f"{people}/search", files=image(data), data=fields),
        client.post(f"{people}/search", json={"image": base64_of(data), **fields}),
    ):
        assert named in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"top_k": True}, "top_k is True"),
        ({"top_k": [5]}, "top_k is [5]"),
        ({"top_k": 10**400}, "top_k is 1000"),
        ({"fpir": {}}, "fpir is {}"),
        ({"pick": ["largest"]}, "pick is ['largest']"),
        ({"all_faces": 1}, "all_faces is 1"),
        ({"image": 5}, "image must be a base64 string"),
        ({"image": "äöü"}, "image is not base64"),
        ({"image": "data:image/png;base64,****"}, "image is not base64"),
        ({"image": "https://example.com/photo.jpg"}, "image is not base64"),
        ({"embedding": [1.0]}, "image or embedding, not both"),
    ],
)
def test_wrong_json_field_is_rejected_by_name(
    client: httpx.Client, people: str, fields: dict[str, Any], named: str
) -> None:
    body = {"image": base64_of(sources.astronaut()), **fields}
    message = refused(client.post(f"{people}/search", json=body), 400, "invalid_request")["message"]
    assert named in message
    assert len(message) < 300


def test_malformed_form_is_rejected_with_its_problem(client: httpx.Client, people: str) -> None:
    data = sources.astronaut()
    forms: list[tuple[Any, str]] = [
        ({"photo": ("a.jpg", data)}, "'photo'"),
        ({"image": (None, "@photo.jpg")}, "image was sent as text; expected a file (with curl: -F image=@photo.jpg)"),
        ({"image": ("a.jpg", data), "threshold": ("t", b"0.9")}, "'threshold'"),
        ([("image", ("a.jpg", data)), ("top_k", (None, "1")), ("top_k", (None, "2"))], "'top_k' was sent twice"),
        ({"top_k": (None, "3")}, "the body has no image"),
    ]
    for files, named in forms:
        answer = client.post(f"{people}/search", files=files)
        assert named in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize("route", ["search", "embed", "detect", "compare"])
def test_unreadable_image_is_unprocessable(client: httpx.Client, people: str, route: str) -> None:
    path = f"{people}/search" if route == "search" else f"/v1/{route}"
    good = {"image_a": ("a", sources.astronaut())} if route == "compare" else {}
    field = "image_b" if route == "compare" else "image"
    for data, status, code, why in (
        (b"", 422, "unreadable_image", "the file is empty"),
        (b"%PDF-1.7", 422, "unreadable_image", "PDF is not supported"),
        (sources.six_people()[:20_000], 422, "unreadable_image", "the file is incomplete"),
        (sources.astronaut() + bytes(2 * 2**20), 413, "image_too_large", "bytes"),
    ):
        error = refused(client.post(path, files=good | image(data, field=field)), status, code)
        assert why in error["message"]
        if route == "compare":
            assert error["message"].startswith("image b: ")
            assert error["details"] == {"image": "b"}


@pytest.mark.parametrize("pick", [{}, {"pick": "center"}, {"all_faces": "true"}])
def test_photo_without_a_face_is_unprocessable(client: httpx.Client, people: str, pick: dict[str, str]) -> None:
    data = sources.no_faces()[0]
    for path in (f"{people}/search", "/v1/embed"):
        assert "no face" in refused(client.post(path, files=image(data), data=pick), 422, "no_face")["message"]


def test_detect_returns_every_face_or_an_empty_list(client: httpx.Client) -> None:
    answer = ok(client.post("/v1/detect", files=image(sources.six_people(), "six.jpg")))
    assert (answer["image"], answer["width"], answer["height"], len(answer["faces"])) == ("six.jpg", 1280, 886, 6)
    for face in answer["faces"]:
        x, y, w, h = face["box"]
        assert 0 <= x < x + w <= 1280
        assert 0 <= y < y + h <= 886
        right_eye, left_eye, nose, *_ = face["landmarks"]
        assert right_eye[0] < left_eye[0]
        assert right_eye[1] < nose[1]
        assert set(face["quality"]) == {"size", "sharpness", "yaw", "brightness", "contrast", "reasons"}
    nobody = ok(client.post("/v1/detect", json={"image": base64_of(sources.no_faces()[0])}))
    assert (nobody["image"], nobody["faces"]) == (None, [])
    answer = client.post("/v1/detect", files=image(sources.astronaut()), data={"pick": "largest"})
    assert "body.pick: is unknown" in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.numeric
def test_embed_returns_unit_vectors_of_the_pack(client: httpx.Client) -> None:
    answer = ok(client.post("/v1/embed", files=image(sources.six_people(), "six.jpg"), data={"all_faces": "true"}))
    assert (answer["image"], answer["model"], answer["dim"], len(answer["faces"])) == ("six.jpg", "sface", SFACE.dim, 6)
    vectors = np.array([face["embedding"] for face in answer["faces"]])
    assert vectors.shape == (6, SFACE.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.triu(vectors @ vectors.T, 1).max() < 0.4
    (largest,) = ok(client.post("/v1/embed", files=image(sources.six_people()), data={"model": "sface"}))["faces"]
    assert (vectors @ largest["embedding"]).max() > 0.95
    answer = client.post("/v1/embed", files=image(sources.astronaut()), data={"model": "arcface"})
    assert "'arcface'" in refused(answer, 404, "model_not_found")["message"]


@pytest.mark.numeric
def test_compare_distinguishes_one_person_from_two(client: httpx.Client, photos: Path) -> None:
    hanks = (photos / "photos" / "hanks" / "1.jpg").read_bytes()
    probe = (photos / "probes" / "hanks-wide.webp").read_bytes()
    same = ok(client.post("/v1/compare", files=image(hanks, field="image_a") | image(probe, field="image_b")))
    assert same["threshold"] == SFACE.same_threshold
    assert same["same"] is True
    assert same["score"] >= same["threshold"]
    other = ok(
        client.post("/v1/compare", json={"image_a": base64_of(hanks), "image_b": base64_of(sources.astronaut())})
    )
    assert other["same"] is False
    assert other["score"] < other["threshold"]
    assert other["faces"][0]["box"] == pytest.approx(same["faces"][0]["box"], abs=0.05)
    itself = ok(client.post("/v1/compare", files=image(hanks, field="image_a") | image(hanks, field="image_b")))
    assert itself["score"] == pytest.approx(1, abs=0.001)
    assert set(itself) == {"score", "threshold", "same", "reasons", "faces"}


def test_compare_names_the_missing_or_wrong_image(client: httpx.Client) -> None:
    good = sources.astronaut()
    answer = client.post("/v1/compare", files=image(good, field="image_a"))
    assert "no image_b" in refused(answer, 400, "invalid_request")["message"]
    answer = client.post(
        "/v1/compare", files=image(sources.no_faces()[0], field="image_a") | image(good, field="image_b")
    )
    error = refused(answer, 422, "no_face")
    assert error["message"].startswith("image a: ")
    assert error["details"] == {"image": "a"}
    answer = client.post("/v1/compare", files=image(good, field="image_a") | image(good, field="image_c"))
    assert "'image_c'" in refused(answer, 400, "invalid_request")["message"]


def test_models_are_listed_with_their_licences(client: httpx.Client) -> None:
    answer = ok(client.get("/v1/models"))
    assert answer["default"] == "sface"
    (sface,) = [model for model in answer["models"] if model["name"] == "sface"]
    assert (sface["dim"], sface["fingerprint"]) == (SFACE.dim, SFACE.fingerprint)
    assert all(file["licence"] for file in sface["files"])
    assert sface["installed"] is True
    assert "problem" not in sface


def test_unreadable_model_does_not_hide_the_others(tmp_path: Path, models_folder: Path) -> None:
    folder = tmp_path / "models"
    (folder / "packs").mkdir(parents=True)
    (folder / "packs" / "mine.json").write_text("{")
    (folder / "prepared").symlink_to(models_folder / "prepared")
    with running(ServiceContext(read_settings(SETTINGS, home=tmp_path))) as service, service.client() as client:
        answer = ok(client.get("/v1/models"))
    assert [model["name"] for model in answer["models"]] == ["ir50", "buffalo_l", "sface", "mine"]
    mine = answer["models"][-1]
    assert (set(mine), mine["installed"]) == ({"name", "installed", "problem"}, False)
    assert "does not describe a model pack" in mine["problem"]


def test_empty_model_means_the_default(client: httpx.Client) -> None:
    reported = ok(client.post("/v1/embed", files=image(sources.astronaut()), data={"model": ""}))
    assert reported["model"] == "sface"
