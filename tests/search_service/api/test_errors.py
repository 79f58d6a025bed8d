"""Every invalid request is answered in one shape, and the service goes on."""

from __future__ import annotations

import json
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from search_service.api.bodies import MOST_VALUES
from search_service.api.middleware.input_limits import MAX_JSON_BYTES
from tests import photos
from tests.search_service.api.conftest import MAX_BODY_BYTES
from tests.search_service.api.serving import Running, base64_of, image, ok, refused
from tests.waiting import DEADLINE

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=xyz"}


def part(name: str, data: bytes, filename: str | None = "f") -> bytes:
    file = f'; filename="{filename}"' if filename is not None else ""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n--xyz--\r\n"


NONSENSE: list[tuple[dict[str, str], bytes]] = [
    ({}, b""),
    ({}, b"\0\xff" * 100),
    (JSON, b""),
    (JSON, b"null"),
    (JSON, b"[]"),
    (JSON, b"5"),
    (JSON, b'"text"'),
    (JSON, b"{"),
    (JSON, b'{"\xff": 1}'),
    (JSON, b'{"\\ud800": "\\udfff"}'),
    (JSON, b'{"name": {}, "external_id": [], "image": 1, "embedding": "x", "metadata": [[]], "image_a": 0}'),
    (JSON, b'{"name": "\\u0000", "external_id": "\\u0000", "image": "", "image_a": "", "image_b": ""}'),
    (JSON, b'{"image": "", "top_k": 1e999, "fpir": -1e999, "threshold": NaN, "pick": {}, "all_faces": []}'),
    (JSON, b'{"embedding": [[[[[]]]]]}'),
    (JSON, b'{"embedding": [1e999]}'),
    (JSON, b'{"a":' * 50_000),
    (JSON, b"[" * 50_000),
    (JSON, b'{"image": ' + b"9" * 5000 + b"}"),
    (JSON | {"Content-Encoding": "gzip"}, b"\x1f\x8b nonsense"),
    (JSON | {"Content-Type": "application/json; charset=utf-7"}, b"+AHs-"),
    ({"Content-Type": "text/plain"}, b"text"),
    ({"Content-Type": "///;;;==="}, b"text"),
    ({"Content-Type": "application/x-www-form-urlencoded"}, b"name=staff&image=photo"),
    ({"Content-Type": "multipart/form-data"}, b"no boundary"),
    (FORM, b""),
    (FORM, b"--xyz"),
    (FORM, b"garbage"),
    (FORM, part("image", b"")),
    (FORM, part("image", b"\x89PNG\r\n\x1a\n" + bytes(200))),
    (FORM, part("image", b"\xff\xd8\xff\xe0" + bytes(200))),
    (FORM, part("image", b"text", filename=None)),
    (FORM, part("\xff\0", b"x")),
    (FORM, part("x" * 10_000, b"x")),
    (FORM, b"--xyz\r\nContent-Disposition: nonsense\r\n\r\nx\r\n--xyz--\r\n"),
    (FORM, b"--xyz\r\n" + b"X-Header: y\r\n" * 5000 + b"\r\nx\r\n--xyz--\r\n"),
    (FORM, b"".join(part(f"f{n}", b"x")[: -len(b"--xyz--\r\n")] for n in range(300)) + b"--xyz--\r\n"),
]


def check_shape(answer: httpx.Response) -> None:
    """Checks that the answer is no server error and that errors have the one shape."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        refused(answer, answer.status_code, answer.json()["error"]["code"])


def filled(path: str, gallery: str, external_id: str, other: str) -> str:
    """Returns a route's path with values for its parameters."""
    places = {"gallery": gallery, "external_id": external_id}
    return re.sub(r"\{(\w+)\}", lambda place: places.get(place[1], other), path)


def routes(service: Running) -> list[tuple[str, str]]:
    return [(method, path) for path, methods in service.app.openapi()["paths"].items() for method in methods]


@pytest.mark.parametrize("number", range(len(NONSENSE)))
def test_nonsense_bodies_never_cause_a_server_error(
    service: Running, client: httpx.Client, gallery: str, number: int
) -> None:
    headers, body = NONSENSE[number]
    ok(client.put(f"{gallery}/identities/ana", json={}), 201)
    name = gallery.rpartition("/")[2]
    for method, path in sorted(routes(service), key=lambda route: route[0] == "delete"):
        answer = client.request(method, filled(path, name, "ana", "1"), content=body, headers=headers)
        check_shape(answer)
        if "requestBody" in service.app.openapi()["paths"][path][method]:
            assert answer.status_code in (400, 404, 422), (method, path, answer.text)
    assert ok(client.get("/healthz")) == {"status": "alive"}


@pytest.mark.parametrize(
    "odd",
    ["%00", "%FF%FE", "%2F", "..%2F..%2Fetc", "%ED%A0%80", "é", "x" * 3000, "%", "%zz", "-1", "9" * 40, "1e5", "%0a"],
)
def test_odd_paths_never_cause_a_server_error(service: Running, client: httpx.Client, gallery: str, odd: str) -> None:
    name = gallery.rpartition("/")[2]
    for method, path in routes(service):
        for place in (filled(path, odd, "ana", "1"), filled(path, name, odd, odd)):
            if "{" in path and place != gallery:
                check_shape(client.request(method, place, json={}))
    ok(client.get(gallery))


def test_odd_query_parameters_never_cause_a_server_error(service: Running, client: httpx.Client, gallery: str) -> None:
    name = gallery.rpartition("/")[2]
    ok(client.put(f"{gallery}/identities/ana", json={}), 201)
    for method, path in routes(service):
        if method == "get":
            place = filled(path, name, "ana", "1")
            for query in (
                "limit=&cursor=",
                "limit=%00",
                "cursor=%FF",
                "limit=1&limit=x",
                "&&&=;%",
                f"cursor={'A' * 999}",
            ):
                check_shape(client.get(f"{place}?{query}"))


def test_an_unknown_route_is_not_found(client: httpx.Client) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v2/galleries", "/v1/galleries/a/b/c", "/healthz/x", "/%2F"):
        assert "GET /" in refused(client.get(path), 404, "not_found")["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/galleries", "GET, POST"),
        ("POST", "/v1/galleries/staff", "DELETE, GET"),
        ("POST", "/v1/galleries/staff/identities/a%2Fb", "DELETE, GET, PATCH, PUT"),
        ("GET", "/v1/galleries/staff/search", "POST"),
        ("GET", "/v1/detect", "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("POST", "/healthz", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_refused_and_allow_lists_the_right_ones(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    answer = client.request(method, path)
    assert method in refused(answer, 405, "method_not_allowed")["message"]
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/v1/galleries", "{gallery}/identities", "{gallery}/search", "/v1/compare"])
def test_a_body_that_is_not_json_is_refused_with_that_reason(client: httpx.Client, gallery: str, path: str) -> None:
    answer = client.post(path.format(gallery=gallery), content=b'{"name": ', headers=JSON)
    assert "not JSON" in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize("path", ["/v1/galleries", "{gallery}/identities", "{gallery}/search", "/v1/detect"])
@pytest.mark.parametrize(
    ("headers", "reported"),
    [
        ({"Content-Type": "text/xml; charset=utf-8"}, "the content type is text/xml; expected"),
        (
            {"Content-Type": "application/x-www-form-urlencoded"},
            "the content type is application/x-www-form-urlencoded",
        ),
        ({}, "the content type is missing; expected"),
    ],
)
def test_a_wrong_content_type_is_named_in_the_error(
    client: httpx.Client, gallery: str, path: str, headers: dict[str, str], reported: str
) -> None:
    """`curl -d` sends the second by default."""
    answer = client.post(path.format(gallery=gallery), content=b'{"name": "staff"}', headers=headers)
    message = refused(answer, 400, "invalid_request")["message"]
    assert reported in message
    assert "application/json" in message


@pytest.mark.parametrize(
    ("content_type", "body", "reported"),
    [
        ("multipart/form-data", b"x", "boundary"),
        ("multipart/form-data; boundary=xyz", b"garbage", "multipart"),
        ("multipart/form-data; boundary=xyz", b"", "the body has no image"),
        ("multipart/form-data; boundary=xyz", part("imag", b"x"), "'imag'"),
    ],
)
def test_a_malformed_form_is_refused_with_the_reason(
    client: httpx.Client, people: str, content_type: str, body: bytes, reported: str
) -> None:
    answer = client.post(f"{people}/search", content=body, headers={"Content-Type": content_type})
    assert reported in refused(answer, 400, "invalid_request")["message"]


def chunked(body: bytes) -> Iterator[bytes]:
    """Sends a body in pieces, without Content-Length."""
    for start in range(0, len(body), 2**16):
        yield body[start : start + 2**16]


TOO_MUCH = MAX_BODY_BYTES + 1
LARGE: list[tuple[str, dict[str, str], bytes]] = [
    ("/v1/galleries", JSON, b'{"name": "' + b"x" * MAX_JSON_BYTES + b'"}'),
    ("{gallery}/identities", JSON, b" " * (MAX_JSON_BYTES + 1)),
    ("{gallery}/search", JSON, b'{"image": "' + b"A" * TOO_MUCH),
    ("{gallery}/search", FORM, part("image", bytes(TOO_MUCH))),
    ("{gallery}/identities/ana/faces", FORM, part("image", bytes(TOO_MUCH))),
    ("/v1/detect", FORM, part("image", bytes(TOO_MUCH))),
    ("/v1/compare", {"Content-Type": "text/plain"}, bytes(TOO_MUCH)),
]


@pytest.mark.parametrize(("path", "headers", "body"), LARGE, ids=[path for path, _, _ in LARGE])
def test_a_too_large_body_is_refused_with_and_without_content_length(
    client: httpx.Client, gallery: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    path = path.format(gallery=gallery)
    declared = client.post(path, content=body, headers=headers)
    assert (
        f"{MAX_BODY_BYTES if len(body) >= TOO_MUCH else MAX_JSON_BYTES:,}"
        in refused(declared, 413, "body_too_large")["message"]
    )
    undeclared = client.post(path, content=chunked(body), headers=headers)
    if headers.get("Content-Type") == "text/plain":  # refused before it is read
        refused(undeclared, 400, "invalid_request")
    else:
        refused(undeclared, 413, "body_too_large")


def test_a_too_large_content_length_is_refused_before_the_body_arrives(service: Running) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(
            b"POST /v1/galleries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"X-Request-ID: early\r\nContent-Length: 99999999999\r\n\r\n"
        )
        reported = b""
        while b'"request_id":"early"' not in reported:
            more = connection.recv(4096)
            assert more, reported
            reported += more
    assert reported.startswith(b"HTTP/1.1 413 ")
    assert b'"body_too_large"' in reported


def test_bodies_up_to_the_limit_are_taken(client: httpx.Client, gallery: str) -> None:
    start, end = b'{"name": "staff", "x": "', b'"}'
    for path, most, named in (
        ("/v1/galleries", MAX_JSON_BYTES, "body.x"),
        (f"{gallery}/search", MAX_BODY_BYTES, "body.name"),
    ):
        body = start + b"x" * (most - len(start) - len(end)) + end
        assert len(body) == most
        for content in (body, chunked(body)):
            assert named in refused(client.post(path, content=content, headers=JSON), 400, "invalid_request")["message"]


@pytest.mark.parametrize("external_id", ["search", "faces", "detect", "compare", "embed", "enrollments"])
def test_names_in_the_path_do_not_raise_the_body_limit(client: httpx.Client, gallery: str, external_id: str) -> None:
    path, body = f"{gallery}/identities/{external_id}", {"name": "Ana", "metadata": {"x": "x" * MAX_JSON_BYTES}}
    for method in ("PUT", "PATCH"):
        refused(client.request(method, path, json=body), 413, "body_too_large")
    refused(client.post(f"{path}/merge", json={"other": "x" * MAX_JSON_BYTES}), 413, "body_too_large")


def test_a_photo_is_not_written_to_a_disk(
    client: httpx.Client, gallery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    sent = client.post(f"{gallery}/search", files=image(photos.astronaut() + bytes(2 * 2**20)))
    assert sent.status_code != 500, sent.text


def test_errors_quote_only_the_beginning_of_a_value(client: httpx.Client, gallery: str) -> None:
    for reported, message in (
        ('{"top_k": [' + "1," * 50_000 + "1]}", "top_k is [1, 1, 1"),
        ('{"top_k": ' + "[" * 900 + "]" * 900 + "}", "top_k is [[[["),
        ('{"embedding": [' + "1," * 50_000 + "1]}", "got 50001"),
        ('{"embedding": [' + '"x",' * 50_000 + "1]}", "got 'x'"),
        ('{"embedding": [' + "1," * MOST_VALUES + "1]}", "more than the 100,000 values"),
        ('{"image": ["' + '", ["' * MOST_VALUES, "more than the 100,000 values"),
    ):
        code = "invalid_embedding" if "got" in message else "invalid_request"
        error = refused(client.post(f"{gallery}/search", content=reported, headers=JSON), 400, code)
        assert message in error["message"]
        assert len(error["message"]) < 300


def test_a_chunked_upload_is_taken(client: httpx.Client, people: str) -> None:
    expected = ok(client.post(f"{people}/search", files=image(photos.astronaut(), "f")))
    sent = client.post(f"{people}/search", content=chunked(part("image", photos.astronaut())), headers=FORM)
    assert ok(sent) == expected


def every_kind_of_answer(client: httpx.Client, people: str, headers: dict[str, str]) -> list[httpx.Response]:
    face: Any = {"image": base64_of(photos.astronaut())}
    return [
        client.get("/healthz", headers=headers),
        client.get("/readyz", headers=headers),
        client.get(people, headers=headers),
        client.post(f"{people}/search", json=face, headers=headers),
        client.get("/openapi.json", headers=headers),
        client.get("/nothing", headers=headers),
        client.put("/v1/galleries", headers=headers),
        client.get("/v1/galleries/none", headers=headers),
        client.get(f"{people}/identities/a%2Fb", headers=headers),
        client.post("/v1/galleries", json={"name": "people"}, headers=headers),
        client.post("/v1/galleries", content=b"{", headers=headers | JSON),
        client.get("/v1/galleries?limit=x", headers=headers),
        client.post("/v1/detect", json={"image": ""}, headers=headers),
        client.post("/v1/detect", content=bytes(TOO_MUCH), headers=headers),
        client.post("/v1/galleries", content=chunked(bytes(TOO_MUCH)), headers=headers | JSON),
    ]


def test_the_callers_request_id_is_kept(client: httpx.Client, people: str) -> None:
    for given in ("caller-1", "a b:c/ü"[:5], "x" * 64):
        for answer in every_kind_of_answer(client, people, {"X-Request-ID": given}):
            assert answer.headers.get_list("x-request-id") == [given], answer.text
            if answer.status_code >= 400:
                assert answer.json()["request_id"] == given


@pytest.mark.parametrize("given", [None, b"", b"x" * 65, b"\xc3\xbc", b"tab\there"])
def test_a_request_id_is_generated_if_none_or_an_invalid_one_is_given(
    client: httpx.Client, people: str, given: bytes | None
) -> None:
    headers: Any = {b"X-Request-ID": given} if given is not None else {}
    answers = [
        client.get("/healthz", headers=headers),
        client.get("/nothing", headers=headers),
        client.get(f"{people}/identities/a%2Fb", headers=headers),
    ]
    made = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(made)) == len(made)
    for value in made:
        assert re.fullmatch("[0-9a-f]{32}", value)
    assert answers[1].json()["request_id"] == made[1]


def test_errors_reveal_no_files_and_no_code(client: httpx.Client, people: str) -> None:
    for answer in every_kind_of_answer(client, people, {}):
        if answer.status_code >= 400:
            text = json.dumps(answer.json())
            assert not re.search(r"Traceback|site-packages|\.py\b|/tmp/|sqlite", text), text
