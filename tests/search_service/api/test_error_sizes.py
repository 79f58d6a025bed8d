"""No error repeats more than a little of what was sent, however long that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from search_service.api import uploads
from search_service.api.middleware.input_limits import MAX_JSON_VALUES
from search_service.api.models.base import ErrorBody
from tests.search_service.api.serving import refused

MOST_BYTES = 4000

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}
LETTERS, CONTROLS, EMOJIS = "a" * 100_000, "\x01" * 100_000, "\N{GRINNING FACE}" * 50_000
HEADER = "a" * 20_000
STAFF = "/v1/galleries/staff"
RECORDED = {"image": "", "record": True, "device": "door"}


def form(name: str, filename: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\nx\r\n'.encode()


Case = tuple[str, str, Mapping[str, str], Any]

REQUESTS: dict[str, Case] = {
    "path": ("GET", "/v1/" + "%01" * 6000, {}, None),
    "gallery in the path": ("GET", f"/v1/galleries/{HEADER}", {}, None),
    "job in the path": ("GET", f"/v1/jobs/{HEADER}", {}, None),
    "query": ("GET", "/v1/galleries?limit=" + "%01" * 6000, {}, None),
    "name in the query": ("GET", "/v1/galleries?" + "%01" * 6000 + "=1", {}, None),
    "query that is not UTF-8": ("GET", f"/v1/galleries?{HEADER}=%FF", {}, None),
    "many names in the query": ("GET", "/v1/galleries?" + "&".join(f"{n:050}=1" for n in range(300)), {}, None),
    "cursor": ("GET", f"/v1/galleries?cursor={HEADER}", {}, None),
    "gallery in the query": ("GET", f"/v1/events?gallery={HEADER}", {}, None),
    "content type": ("POST", "/v1/galleries", {"Content-Type": HEADER}, b"{}"),
    "content type of a search": ("POST", f"{STAFF}/search", {"Content-Type": HEADER}, b"{}"),
    "content type of an archive": ("POST", f"{STAFF}/enrollments", {"Content-Type": HEADER}, b"{}"),
    "host": ("GET", "/v1/galleries", {"Host": HEADER}, None),
    "origin": ("GET", "/v1/galleries", {"Origin": f"https://{HEADER}"}, None),
    "idempotency key": ("POST", "/v1/galleries", JSON | {"Idempotency-Key": HEADER}, b"{}"),
    "if-match": ("PUT", f"{STAFF}/identities/ana", JSON | {"If-Match": HEADER}, b"{}"),
    "prefix": ("GET", "/v1/galleries", {"X-Forwarded-Prefix": HEADER}, None),
    "name of a field": ("POST", "/v1/galleries", JSON, {LETTERS: 1}),
    "name of a field of a search": ("POST", f"{STAFF}/search", JSON, {CONTROLS: 1}),
    "many fields": ("POST", "/v1/galleries", JSON, {f"{n:060}": 1 for n in range(1000)}),
    "many wrong items": ("POST", "/v1/keys", JSON, {"name": "a", "scopes": ["x" * 100] * 1000}),
    "name": ("POST", "/v1/galleries", JSON, {"name": LETTERS}),
    "name of control characters": ("POST", "/v1/galleries", JSON, {"name": CONTROLS}),
    "name of emojis": ("POST", "/v1/galleries", JSON, {"name": EMOJIS}),
    "model": ("POST", "/v1/galleries", JSON, {"name": "a", "model": CONTROLS}),
    "model of a search": ("POST", "/v1/embed", JSON, {"image": "", "model": LETTERS}),
    "external id": ("POST", f"{STAFF}/identities", JSON, {"external_id": EMOJIS}),
    "time": ("POST", f"{STAFF}/identities", JSON, {"external_id": "a", "valid_from": CONTROLS}),
    "device": ("POST", f"{STAFF}/search", JSON, {**RECORDED, "device": CONTROLS}),
    "direction": (
        "POST",
        f"{STAFF}/search",
        JSON,
        {**RECORDED, "direction": [LETTERS]},
    ),
    "choice": ("POST", f"{STAFF}/search", JSON, {"image": "", "pick": LETTERS}),
    "number": ("POST", f"{STAFF}/search", JSON, {"image": "", "top_k": [[LETTERS]] * 10}),
    "embedding": ("POST", f"{STAFF}/search", JSON, {"embedding": LETTERS}),
    "address of a webhook": ("POST", "/v1/webhooks", JSON, {"url": LETTERS}),
    "file field": ("POST", f"{STAFF}/search", FORM, form("\x7f" * 3900, "f") + b"--xyz--\r\n"),
    "field sent twice": ("POST", f"{STAFF}/search", FORM, form("\x7f" * 3900) * 2 + b"--xyz--\r\n"),
    "file name sent twice": ("POST", f"{STAFF}/enrollments", FORM, form("images", "\x7f" * 3900) * 2 + b"--xyz--\r\n"),
    "body where none is taken": ("DELETE", f"{STAFF}/identities/ana", JSON, {LETTERS: 1}),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_errors_are_short_however_long_the_request_is(client: httpx.Client, what: str) -> None:
    method, path, headers, body = REQUESTS[what]
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.request(method, path, headers=headers, content=content)
    error = refused(answer, answer.status_code, answer.json()["error"]["code"])
    assert 400 <= answer.status_code < 500
    assert len(answer.content) < MOST_BYTES
    assert len(error["message"]) > 20


@pytest.mark.parametrize("text", [LETTERS, CONTROLS, EMOJIS, "\ud800" * 5000, '"\\' * 5000])
def test_shortened_errors_keep_beginning_end_and_small_details(text: str) -> None:
    details: dict[str, Any] = {"fields": [{"field": text, "problem": text}] * 100, text: text, "seconds": 5}
    body = ErrorBody(code="failed", message=f"start {text} end", details=details)
    assert len(body.model_dump_json().encode()) < MOST_BYTES - 200
    assert body.message.startswith("start")
    assert body.message.endswith("end")
    assert body.details.get("seconds", 5) == 5
    small = {"fields": [{"field": "body.name", "problem": "is unknown"}], "seconds": 5}
    assert ErrorBody(code="failed", message="short", details=small).details == small


def test_json_of_many_values_is_refused_before_it_is_parsed(client: httpx.Client) -> None:
    for content in (b'{"a": [' + b"1," * (MAX_JSON_VALUES + 1) + b"1]}", b"," * (MAX_JSON_VALUES + 1)):
        answer = client.post("/v1/galleries", content=content, headers=JSON)
        assert "more than the 20,000 values" in refused(answer, 400, "invalid_request")["message"]
    fewer = client.post("/v1/galleries", content=b'{"a": [' + b"1," * MAX_JSON_VALUES + b"1]}", headers=JSON)
    assert "body.a" in refused(fewer, 400, "invalid_request")["message"]


def test_names_of_files_of_a_bulk_enrollment_are_bounded(
    client: httpx.Client, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_DIRECTORY_BYTES", 100)
    files = [("images", (f"{number:060}.jpg", b"x")) for number in range(2)]
    answer = client.post(f"{gallery}/enrollments", files=files)
    assert "more than the 100 bytes" in refused(answer, 400, "invalid_request")["message"]


def test_names_of_files_are_shortened_in_answers(client: httpx.Client, people: str) -> None:
    files = [("images", ("a" * 3900, b"x"))] * 16
    answer = client.post(f"{people}/search", files=files)
    assert answer.status_code == 200
    assert len(answer.content) < 16 * 1000
