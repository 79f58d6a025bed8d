"""ETags and conditional requests: concurrent changes of one identity do not overwrite each other."""

from __future__ import annotations

import json
from functools import partial

import httpx
import pytest

from tests import photos
from tests.indexer.gallery.together import in_threads
from tests.search_service.api.serving import Running, image, ok, refused


@pytest.fixture
def ana(client: httpx.Client, gallery: str) -> str:
    """The path of an identity."""
    properties = {"name": "Ana", "metadata": {"door": "A", "ward": {"floor": 3}}, "valid_from": "2026-01-01T00:00:00Z"}
    ok(client.put(f"{gallery}/identities/ana", json=properties), 201)
    return f"{gallery}/identities/ana"


def tag_of(answer: httpx.Response) -> str:
    assert answer.status_code in (200, 201), answer.text
    tag = answer.headers["etag"]
    assert tag.startswith('"')
    assert tag.endswith('"')
    return tag


def test_every_answer_with_one_identity_has_its_etag(client: httpx.Client, gallery: str) -> None:
    path = f"{gallery}/identities/ana"
    made = tag_of(client.post(f"{gallery}/identities", json={"external_id": "ana", "metadata": {"b": 1, "a": 2}}))
    assert tag_of(client.get(path)) == made == tag_of(client.get(path))
    put = tag_of(client.put(path, json={"name": "Ana"}))
    assert tag_of(client.get(path)) == put != made
    patched = tag_of(client.patch(path, json={"name": "Anna"}))
    assert tag_of(client.get(path)) == patched != put
    ok(client.post(f"{path}/faces", files=image(photos.astronaut())), 201)
    assert tag_of(client.get(path)) != patched


def test_known_etag_gets_not_modified(client: httpx.Client, ana: str) -> None:
    tag = tag_of(client.get(ana))
    for known in (tag, f"W/{tag}", f'"other", {tag}', f'"x" ,W/"y",{tag}', "*"):
        answer = client.get(ana, headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert answer.headers["x-request-id"]
    for other in ('"other"', f'"{tag[1:-1]}x"'):
        assert tag_of(client.get(ana, headers={"If-None-Match": other})) == tag
    refused(client.get(f"{ana}-2", headers={"If-None-Match": "*"}), 404, "identity_not_found")


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_change_with_an_outdated_etag_is_rejected(client: httpx.Client, ana: str, method: str) -> None:
    body = None if method == "DELETE" else {"name": "Anna"}
    old = tag_of(client.get(ana))
    tag = tag_of(client.patch(ana, json={"name": "Ana B."}))
    before = ok(client.get(ana))
    for expected in (old, f"W/{tag}", '"x", "y"'):
        error = refused(
            client.request(method, ana, json=body, headers={"If-Match": expected}), 412, "precondition_failed"
        )
        assert error["details"] == {"etag": tag}
    assert (
        "If-None-Match"
        in refused(client.request(method, ana, json=body, headers={"If-None-Match": tag}), 412, "precondition_failed")[
            "message"
        ]
    )
    assert ok(client.get(ana)) == before
    ok(client.request(method, ana, json=body, headers={"If-Match": f'"x", {tag}'}))


def test_asterisk_requires_an_existing_or_missing_identity(client: httpx.Client, gallery: str, ana: str) -> None:
    refused(client.put(ana, json={}, headers={"If-None-Match": "*"}), 412, "precondition_failed")
    ok(client.put(ana, json={"name": "Anna"}, headers={"If-Match": "*"}))
    missing = f"{gallery}/identities/ben"
    error = refused(client.put(missing, json={}, headers={"If-Match": "*"}), 412, "precondition_failed")
    assert error["details"] == {"etag": None}
    refused(client.patch(missing, json={}, headers={"If-Match": "*"}), 404, "identity_not_found")
    refused(client.delete(missing, headers={"If-Match": '"x"'}), 404, "identity_not_found")
    ok(client.put(missing, json={}, headers={"If-None-Match": "*"}), 201)


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("bad", ["tag", '"', '"a" "b"', '"a", *', "W/", '"a b"', "'a'"])
def test_unreadable_condition_is_rejected(client: httpx.Client, ana: str, header: str, bad: str) -> None:
    before = ok(client.get(ana))
    answer = client.put(ana, json={"name": "Anna"}, headers={header: bad})
    assert header in refused(answer, 400, "invalid_request")["message"]
    assert ok(client.get(ana)) == before


def test_one_of_several_changes_with_the_same_etag_succeeds(service: Running, ana: str) -> None:
    with service.client() as client:
        tag = tag_of(client.get(ana))

    def put(name: str) -> int:
        with service.client() as client:
            return client.put(ana, json={"name": name}, headers={"If-Match": tag}).status_code

    names = [f"Ana {number}" for number in range(6)]
    got = in_threads([partial(put, name) for name in names])
    assert sorted(got) == [200] + [412] * 5
    with service.client() as client:
        assert ok(client.get(ana))["name"] == names[got.index(200)]


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({}, {}),
        ({"name": "Anna"}, {"name": "Anna"}),
        ({"name": None}, {"name": None}),
        ({"valid_from": None}, {"valid_from": None}),
        ({"valid_until": "2027-01-01"}, {"valid_until": "2027-01-01T00:00:00Z"}),
        ({"metadata": None}, {"metadata": {}}),
        ({"metadata": {}}, {}),
        ({"metadata": {"door": None}}, {"metadata": {"ward": {"floor": 3}}}),
        (
            {"metadata": {"ward": {"floor": None, "bed": [None, 7]}, "new": {"a": {"b": None}}, "gone": None}},
            {"metadata": {"door": "A", "ward": {"bed": [None, 7]}, "new": {"a": {}}}},
        ),
        ({"metadata": {"ward": 5, "door": {"left": True}}}, {"metadata": {"door": {"left": True}, "ward": 5}}),
    ],
)
@pytest.mark.parametrize("kind", ["application/json", "application/merge-patch+json"])
def test_patch_changes_the_named_properties(
    client: httpx.Client, ana: str, patch: dict[str, object], expected: dict[str, object], kind: str
) -> None:
    before = ok(client.get(ana))
    after = ok(client.patch(ana, json=patch, headers={"Content-Type": kind}))
    assert after == ok(client.get(ana)) == {**before, **expected, "updated_at": after["updated_at"]}
    assert (after["updated_at"] != before["updated_at"]) == bool(expected)


@pytest.mark.parametrize(
    "patch",
    [
        {"external_id": "ben"},
        {"faces": 3},
        {"name": ""},
        {"name": 5},
        {"valid_until": "2025-12-31"},
        {"metadata": []},
        {"metadata": {"x": {"y": "\ud800"}}},
    ],
)
def test_invalid_patch_changes_nothing(client: httpx.Client, ana: str, patch: dict[str, object]) -> None:
    before = ok(client.get(ana))
    body = json.dumps(patch)  # httpx itself would refuse invalid Unicode
    answer = client.patch(ana, content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, "invalid_request")
    assert ok(client.get(ana)) == before
