from __future__ import annotations

import json
import unicodedata
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from indexer.gallery.schema import IdentityRow
from indexer.gallery.validation import MAX_METADATA_DEPTH
from tests import photos
from tests.search_service.api.serving import Running, image, ok, refused

ODD_IDS = [
    "ana maria",
    "Ünï-çødé 山田",
    "e:1042@example.com",
    "50%",
    "50%25",
    "a%2Fb",
    "a/b",
    "a/b/faces",
    "/",
    "faces",
    "?#&=+;",
    "'\"<>\\",
    "x" * 200,
    "😀",
]


def test_identity_is_created_shown_replaced_and_deleted(client: httpx.Client, gallery: str) -> None:
    properties = {
        "external_id": "e-1042",
        "name": "Ana Kovač",
        "metadata": {"door": ["A", 7], "ward": {"floor": 3, "half": 1.5, "none": None}, "ok": True},
        "valid_from": "2026-01-01T00:00:00+01:00",
        "valid_until": "2027-01-01T12:00:00",
    }
    made = ok(client.post(f"{gallery}/identities", json=properties), 201)
    assert {key: made[key] for key in properties} == {
        **properties,
        "valid_from": "2025-12-31T23:00:00Z",
        "valid_until": "2027-01-01T12:00:00Z",
    }
    assert made["faces"] == 0
    assert made["created_at"] == made["updated_at"]
    assert ok(client.get(f"{gallery}/identities/e-1042")) == made
    replaced = ok(client.put(f"{gallery}/identities/e-1042", json={"metadata": {"door": "B"}}))
    assert replaced["id"] == made["id"]
    assert replaced["created_at"] == made["created_at"]
    assert replaced["updated_at"] > made["updated_at"]
    assert (replaced["name"], replaced["metadata"], replaced["valid_from"], replaced["valid_until"]) == (
        None,
        {"door": "B"},
        None,
        None,
    )
    assert ok(client.get(f"{gallery}/identities/e-1042")) == replaced
    assert ok(client.delete(f"{gallery}/identities/e-1042")) == {"deleted": "e-1042", "faces": 0}
    for answer in (
        client.get(f"{gallery}/identities/e-1042"),
        client.delete(f"{gallery}/identities/e-1042"),
        client.get(f"{gallery}/identities/e-1042/faces"),
    ):
        assert "'e-1042'" in refused(answer, 404, "identity_not_found")["message"]


def test_creating_an_existing_identity_changes_nothing(client: httpx.Client, gallery: str) -> None:
    made = ok(client.post(f"{gallery}/identities", json={"external_id": "ana", "name": "Ana"}), 201)
    answer = client.post(f"{gallery}/identities", json={"external_id": "ana", "name": "Another"})
    assert "'ana'" in refused(answer, 409, "identity_exists")["message"]
    assert ok(client.get(f"{gallery}/identities/ana")) == made


def test_put_creates_and_repeating_it_changes_nothing(client: httpx.Client, gallery: str) -> None:
    made = ok(client.put(f"{gallery}/identities/ana", json={"name": "Ana"}), 201)
    assert ok(client.put(f"{gallery}/identities/ana", json={"name": "Ana"})) == made


def test_put_keeps_the_faces(client: httpx.Client, gallery: str) -> None:
    face = image(photos.astronaut())
    ok(client.post(f"{gallery}/identities/collins/faces", files=face), 201)
    assert ok(client.put(f"{gallery}/identities/collins", json={"name": "Eileen"}))["faces"] == 1
    (found,) = ok(client.post(f"{gallery}/search", files=face))["faces"]
    assert [(c["external_id"], c["name"]) for c in found["candidates"]] == [("collins", "Eileen")]


@pytest.mark.parametrize("external_id", ODD_IDS)
def test_ids_with_special_characters_work_on_every_route(client: httpx.Client, gallery: str, external_id: str) -> None:
    path = f"{gallery}/identities/{quote(external_id, safe='')}"
    made = ok(client.post(f"{gallery}/identities", json={"external_id": external_id}), 201)
    assert made["external_id"] == external_id
    assert ok(client.get(path)) == made
    assert ok(client.put(path, json={"name": "Somebody"}))["external_id"] == external_id
    assert ok(client.get(f"{path}/faces")) == {"faces": [], "cursor": None}
    bad = client.post(f"{path}/faces", files=image(b"no image"))
    refused(bad, 422, "unreadable_image")
    assert ok(client.delete(path)) == {"deleted": external_id, "faces": 0}
    assert repr(external_id) in refused(client.get(path), 404, "identity_not_found")["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"] == []
    assert ok(client.put(path, json={}), 201)["external_id"] == external_id


def test_id_is_found_in_every_unicode_normalization_form(client: httpx.Client, gallery: str) -> None:
    face = image(photos.astronaut())
    composed, decomposed = (quote(unicodedata.normalize(form, "Zoë")) for form in ("NFC", "NFD"))
    enrolled = ok(client.post(f"{gallery}/identities/{decomposed}/faces", files=face), 201)
    again = ok(client.post(f"{gallery}/identities/{composed}/faces", files=face))
    assert (again["outcome"], again["face_id"]) == ("unchanged", enrolled["face_id"])
    assert ok(client.get(f"{gallery}/identities/{decomposed}")) == ok(client.get(f"{gallery}/identities/{composed}"))
    assert len(ok(client.get(f"{gallery}/identities"))["identities"]) == 1


def test_id_with_a_slash_is_enrolled_and_found(client: httpx.Client, gallery: str) -> None:
    face = image(photos.astronaut())
    enrolled = ok(client.post(f"{gallery}/identities/team%2fcollins/faces", files=face), 201)
    assert enrolled["external_id"] == "team/collins"
    (found,) = ok(client.post(f"{gallery}/search", files=face))["faces"]
    assert [c["external_id"] for c in found["candidates"]] == ["team/collins"]
    refused(client.get(f"{gallery}/identities/team/collins"), 404, "not_found")


@pytest.mark.parametrize("external_id", ["", " ana", "ana ", "a\nb", "a\0b", "\x1f", "x" * 201])
def test_invalid_id_is_rejected(client: httpx.Client, gallery: str, external_id: str) -> None:
    answer = client.post(f"{gallery}/identities", json={"external_id": external_id})
    assert "an external_id must" in refused(answer, 400, "invalid_request")["message"]
    if external_id and external_id not in ("\x1f", "a\0b"):  # no NUL comes as far as that in a path
        answer = client.put(f"{gallery}/identities/{quote(external_id, safe='')}", json={})
        assert "an external_id must" in refused(answer, 400, "invalid_request")["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"] == []


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ("2026-12-24", "2026-12-24T00:00:00Z"),
        ("2026-12-24T08:30:00", "2026-12-24T08:30:00Z"),
        ("2026-12-24T08:30:00Z", "2026-12-24T08:30:00Z"),
        ("2026-12-24T08:30:00-05:30", "2026-12-24T14:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        (None, None),
    ],
)
def test_dates_without_a_zone_are_utc(
    client: httpx.Client, gallery: str, properties: str | None, expected: str | None
) -> None:
    ok(client.put(f"{gallery}/identities/ana", json={"valid_until": properties}), 201)
    assert ok(client.get(f"{gallery}/identities/ana"))["valid_until"] == expected


@pytest.mark.parametrize(
    "date",
    ["soon", "", "2026-13-01", "2026-02-30", "9999-12-31T23:59:59-05:00", "0001-01-01T00:00:00+05:00", [], 1e300],
)
@pytest.mark.parametrize("field", ["valid_from", "valid_until"])
def test_invalid_date_is_rejected_with_its_field(client: httpx.Client, gallery: str, field: str, date: object) -> None:
    error = refused(client.put(f"{gallery}/identities/ana", json={field: date}), 400, "invalid_request")
    assert [found["field"] for found in error["details"]["fields"]] == [f"body.{field}"]
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")


def test_dates_in_the_wrong_order_are_rejected(client: httpx.Client, gallery: str) -> None:
    dates = {"valid_from": "2026-12-24T10:00:00+01:00", "valid_until": "2026-12-24T09:00:00Z"}
    error = refused(client.put(f"{gallery}/identities/ana", json=dates), 400, "invalid_request")
    assert "valid_until (2026-12-24T09:00:00+00:00) must be after valid_from" in error["message"]


@pytest.mark.parametrize("dates", [{"valid_until": "2020-01-01"}, {"valid_from": "2120-01-01"}])
def test_identity_is_only_found_while_valid(client: httpx.Client, gallery: str, dates: dict[str, str]) -> None:
    face = image(photos.astronaut())
    ok(client.post(f"{gallery}/identities/collins/faces", files=face), 201)
    ok(client.put(f"{gallery}/identities/collins", json=dates))
    (found,) = ok(client.post(f"{gallery}/search", files=face))["faces"]
    assert (found["decision"], found["candidates"]) == ("no_match", [])
    assert found["reasons"] == ["identity_expired" if "valid_until" in dates else "identity_not_yet_valid"]
    ok(client.put(f"{gallery}/identities/collins", json={}))
    (found,) = ok(client.post(f"{gallery}/search", files=face))["faces"]
    assert (found["decision"], len(found["candidates"])) == ("match", 1)


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ('{"a": NaN}', "nan is not a JSON number"),
        ('{"a": [1, {"b": -Infinity}]}', "-inf is not a JSON number"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
        ('{"\\udfff": 1}', "not valid Unicode"),
        (nested(300), "are nested"),
        ("[]", "valid dictionary"),
        ('"text"', "valid dictionary"),
        ("null", "valid dictionary"),
    ],
)
def test_metadata_that_is_not_json_is_rejected(client: httpx.Client, gallery: str, metadata: str, problem: str) -> None:
    """It would break every list and answer that contains the identity."""
    body = f'{{"external_id": "ana", "metadata": {metadata}}}'
    answer = client.post(f"{gallery}/identities", content=body, headers={"Content-Type": "application/json"})
    error = refused(answer, 400, "invalid_request")
    assert error["message"].startswith("body.metadata")
    assert problem in error["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"] == []


def test_metadata_size_is_limited(client: httpx.Client, gallery: str) -> None:
    path, brim = f"{gallery}/identities/ana", {"x": "é" * 8188}
    made = ok(client.put(path, json={"metadata": brim}), 201)
    assert made["metadata"] == brim
    for answer in (
        client.put(path, json={"metadata": {"x": "x" * 16_384}}),
        client.patch(path, json={"metadata": {"y": "xx"}}),
        client.post(f"{gallery}/identities", json={"external_id": "ana", "metadata": {"x": "x" * 16_384}}),
    ):
        message = refused(answer, 400, "invalid_request")["message"]
        assert "the metadata of 'ana' would be 16,39" in message
        assert message.endswith("expected 16,384 at most")
    assert ok(client.get(path)) == made
    ok(client.put(f"{gallery}/identities/ben", json={"metadata": {"z": 1}}), 201)
    joined = client.post(f"{path}/merge", json={"other": "ben"})
    assert "the metadata of 'ana' would be 16,390 bytes" in refused(joined, 400, "invalid_request")["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"][0] == made


def test_stored_metadata_above_the_limit_is_still_returned(
    service: Running, client: httpx.Client, gallery: str
) -> None:
    path = f"{gallery}/identities/ana"
    ok(client.put(path, json={}), 201)
    much = {"x": "x" * 20_000, "y": json.loads(nested(MAX_METADATA_DEPTH + 8))}
    with Session(service.context.engine) as session, session.begin():
        session.execute(update(IdentityRow).where(IdentityRow.external_id == "ana").values(details=much))
    assert ok(client.get(path))["metadata"] == much
    assert ok(client.get(f"{gallery}/identities"))["identities"][0]["metadata"] == much
    named = ok(client.patch(path, json={"name": "Ana"}))
    assert (named["name"], named["metadata"]) == ("Ana", much)
    assert ok(client.patch(path, json={"metadata": {"x": None, "y": None}}))["metadata"] == {}


def test_metadata_is_returned_unchanged(client: httpx.Client, gallery: str) -> None:
    deep: Any = "leaf"
    for _ in range(15):
        deep = {"a": [deep]}
    properties = {
        "deep": deep,
        "big": 2**70,
        "tiny": 1e-300,
        "text": 'ä😀\0\n"',
        "": [],
        "no": {},
        "0": [None, False, 0],
    }
    ok(client.put(f"{gallery}/identities/ana", json={"metadata": properties}), 201)
    assert ok(client.get(f"{gallery}/identities/ana"))["metadata"] == properties


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.external_id"),
        ({"external_id": 7}, "body.external_id"),
        ({"external_id": "ana", "valid_to": "2027-01-01"}, "body.valid_to"),
        ({"external_id": "ana", "name": ["Ana"]}, "body.name"),
    ],
)
def test_wrong_body_is_rejected_with_its_field(client: httpx.Client, gallery: str, body: object, field: str) -> None:
    error = refused(client.post(f"{gallery}/identities", json=body), 400, "invalid_request")
    assert [found["field"] for found in error["details"]["fields"]] == [field]


def test_pages_list_every_identity_once_while_some_are_deleted(client: httpx.Client, gallery: str) -> None:
    ids = [f"person-{n}" for n in range(7)]
    for external_id in ids:
        ok(client.post(f"{gallery}/identities", json={"external_id": external_id}), 201)
    first = ok(client.get(f"{gallery}/identities", params={"limit": 3}))
    assert [person["external_id"] for person in first["identities"]] == ids[:3]
    for gone in (ids[0], ids[2], ids[4]):  # the cursor's own, one before it, one after it
        ok(client.delete(f"{gallery}/identities/{gone}"))
    second = ok(client.get(f"{gallery}/identities", params={"limit": 3, "cursor": first["cursor"]}))
    assert [person["external_id"] for person in second["identities"]] == [ids[3], ids[5], ids[6]]
    assert second["cursor"] is None


def test_list_is_searched_by_words_and_metadata(client: httpx.Client, gallery: str) -> None:
    for number, name in enumerate(("Ana Kovač", "Ben Kovač", "Ana Ruiz", "Anton Kovacs")):
        properties = {"external_id": f"e-{number}", "name": name, "metadata": {"floor": number % 2}}
        ok(client.post(f"{gallery}/identities", json=properties), 201)

    def found(**params: Any) -> list[str]:
        first = ok(client.get(f"{gallery}/identities", params={"limit": 2, **params}))
        people = first["identities"]
        if first["cursor"]:
            people += ok(client.get(f"{gallery}/identities", params={**params, "cursor": first["cursor"]}))[
                "identities"
            ]
        return [person["external_id"] for person in people]

    assert found(q="KOVAC") == ["e-0", "e-1", "e-3"]
    assert found(q="an kovac", metadata="floor=0") == ["e-0"]
    assert found(metadata=["floor=1"]) == ["e-1", "e-3"]
    refused(client.get(f"{gallery}/identities", params={"metadata": "floor"}), 400, "invalid_request")
    refused(client.get(f"{gallery}/identities", params={"q": "x" * 201}), 400, "invalid_request")


def test_full_last_page_has_no_cursor(client: httpx.Client, gallery: str) -> None:
    for n in range(4):
        ok(client.post(f"{gallery}/identities", json={"external_id": f"person-{n}"}), 201)
    first = ok(client.get(f"{gallery}/identities", params={"limit": 2}))
    second = ok(client.get(f"{gallery}/identities", params={"limit": 2, "cursor": first["cursor"]}))
    assert first["cursor"] is not None
    assert second["cursor"] is None
    assert len(second["identities"]) == 2


def test_galleries_have_separate_ids(client: httpx.Client, gallery: str, people: str) -> None:
    refused(client.get(f"{gallery}/identities/hanks"), 404, "identity_not_found")
    ok(client.put(f"{gallery}/identities/hanks", json={"name": "Another"}), 201)
    ok(client.delete(f"{gallery}/identities/hanks"))
    assert ok(client.get(f"{people}/identities/hanks"))["faces"] == 1
