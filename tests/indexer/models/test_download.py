"""Downloads of model files: resumed after interruptions, and refused when the server sends anything else."""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from indexer.models import partial_file
from indexer.models.download import RetryPolicy
from indexer.models.partial_file import Progress
from indexer.models.pull import PulledFile
from indexer.types import sha256
from tests.indexer.models.pulling import CONTENT, HALF, KNOWN_OR_NOT, NOWHERE, OTHER, PART, Models, model, pack
from tests.indexer.models.virtual_time import VirtualTime
from tests.indexer.models.web_server import WebServer, chunked, http_response, run_web_server
from tests.waiting import DEADLINE

OK = f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n"


def test_download_verifies_and_reports_progress(models: Models, server: WebServer) -> None:
    url = server.serve_file("/some.onnx", CONTENT)
    assert models.pull(model(url)) == PulledFile(model(url), models.path, sha256(CONTENT), url)
    assert models.path.read_bytes() == CONTENT
    assert models.reports[-1] == Progress("some.onnx", len(CONTENT), len(CONTENT))
    assert [report.done for report in models.reports] == sorted(report.done for report in models.reports)
    assert server.ranges == [None]


@pytest.mark.parametrize("head", ['ETag: "1"\r\n', "Last-Modified: Tue, 24 Nov 2026 10:00:00 GMT\r\n", ""])
def test_interrupted_download_is_resumed_within_one_pull(models: Models, server: WebServer, head: str) -> None:
    url = server.serve_file("/some.onnx", CONTENT, head, cuts=[HALF, 1000, 0, 0, 5000, 0, 0])
    models.pull(model(url))
    starts = [HALF, HALF + 1000, HALF + 1000, HALF + 1000, HALF + 6000, HALF + 6000, HALF + 6000]
    assert server.ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert {headers["If-Range"] for headers in server.headers[1:]} == {head.partition(": ")[2].strip() or None}


def test_interrupted_download_is_resumed_by_the_next_pull(models: Models, server: WebServer) -> None:
    url = server.serve_file("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0])
    message = models.fail(model(url), left=PART)
    assert url in message
    assert "received 0 bytes, expected 300000" in message
    assert f"{HALF} bytes are stored, and pulling again resumes from them" in message
    assert models.part.read_bytes() == CONTENT[:HALF]
    assert len(server.paths) == 4
    models.pull(model(url))
    assert (server.ranges[4:], server.headers[4]["If-Range"]) == ([f"bytes={HALF}-"], '"1"')


def test_complete_partial_file_is_not_fetched_again(models: Models, server: WebServer) -> None:
    url = server.respond("/some.onnx", CONTENT[:HALF], length=len(CONTENT))  # always cut at the same place
    models.fail(model(url), left=PART)
    models.part.write_bytes(CONTENT)
    models.pull(model(url))
    assert len(server.paths) == 4


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> VirtualTime:
    return VirtualTime(monkeypatch)


PATIENT = RetryPolicy(timeout_seconds=DEADLINE, pauses_seconds=())
"""Fails at the first timeout, which in real time no passing test reaches."""


def test_silent_server_times_out(models: Models, server: WebServer, virtual_time: VirtualTime) -> None:
    def response(_: Message) -> Iterator[bytes]:
        sent = f"{OK}\r\n".encode() + CONTENT[:HALF]
        yield sent
        virtual_time.wait_for_received(len(sent))
        while not ended.wait(0.01):  # until the client, which may not be waiting yet, gives up
            virtual_time.advance(DEADLINE)

    ended = threading.Event()
    url = server.respond_raw("/some.onnx", response)
    try:
        message = models.fail_pack(pack(model(url)), left=PART, retry=PATIENT)
    finally:
        ended.set()
    assert f"timed out; {HALF} bytes are stored" in message


PIECE = len(CONTENT) // 25


def test_slow_server_does_not_time_out(models: Models, server: WebServer, virtual_time: VirtualTime) -> None:
    """Each piece arrives within the timeout, but all of them take much longer."""

    def response(_: Message) -> Iterator[bytes]:
        head = f"{OK}\r\n".encode()
        yield head
        for start in range(0, len(CONTENT), PIECE):
            virtual_time.wait_for_received(len(head) + start)
            virtual_time.advance(0.9 * DEADLINE)
            yield CONTENT[start : start + PIECE]

    pulled = models.pull_pack(pack(model(server.respond_raw("/some.onnx", response))), retry=PATIENT)
    assert pulled[0].path.read_bytes() == CONTENT
    assert virtual_time.seconds > 20 * DEADLINE


def test_server_without_ranges_sends_the_whole_file_again(models: Models, server: WebServer) -> None:
    bodies = iter([CONTENT[:HALF], CONTENT])
    response = lambda _: [f'{OK}ETag: "1"\r\n\r\n'.encode() + next(bodies)]  # noqa: E731
    models.pull(model(server.respond_raw("/some.onnx", response)))
    assert server.ranges == [None, f"bytes={HALF}-"]


@KNOWN_OR_NOT
def test_file_that_changed_meanwhile_is_fetched_from_the_start(models: Models, server: WebServer, known: bool) -> None:
    old = model(server.serve_file("/some.onnx", OTHER, cuts=[HALF, 0, 0, 0]), known=known)
    models.fail(old, left=PART)
    models.pull(replace(old, url=server.serve_file("/some.onnx", CONTENT, 'ETag: "2"\r\n')))
    assert models.path.read_bytes() == CONTENT
    assert server.headers[-1]["If-Range"] == '"1"'


@pytest.mark.parametrize("head", ["", 'ETag: W/"1"\r\n', 'ETag: "\xe9"\r\n'])
def test_nothing_is_resumed_without_hash_and_validator(models: Models, server: WebServer, head: str) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT, head, cuts=[HALF, HALF, HALF, HALF]), known=False)
    assert "bytes are stored" not in models.fail(file)
    assert server.ranges == [None] * 4
    models.pull(file)


@pytest.mark.parametrize(
    "head",
    [
        "Content-Range: bytes 0-599999/600000\r\n",
        f"Content-Range: bytes 0-{HALF - 1}/600000\r\n",
        f"Content-Range: bytes {HALF}-599999/700000\r\n",
        f"Content-Range: bytes {HALF}-599998/600000\r\n",
        f"Content-Range: bytes {HALF}-599999/*\r\n",
        f"Content-Range: bytes {HALF}-599999/599999\r\n",
        f'Content-Range: bytes {HALF}-599999/600000\r\nETag: "2"\r\n',
        "Content-Range: some of them\r\n",
        "",
    ],
)
def test_wrong_range_is_not_stored(models: Models, server: WebServer, head: str) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0]), known=False)
    models.fail(file, left=PART)
    wrong = f"HTTP/1.1 206 Partial Content\r\n{head}Content-Length: {HALF}\r\n\r\n".encode() + OTHER[HALF:]
    whole = f"{OK}\r\n".encode() + CONTENT
    server.respond_raw("/some.onnx", lambda headers: [wrong if headers["Range"] else whole])
    models.pull(file)
    assert models.path.read_bytes() == CONTENT
    assert server.ranges[4:] == [f"bytes={HALF}-", None]
    server.respond_raw("/some.onnx", wrong)
    models.path.unlink()
    (models.folder / "some.onnx.sha256").unlink()
    assert "does not send the whole file" in models.fail(file)


@KNOWN_OR_NOT
def test_rest_may_arrive_in_several_ranges(models: Models, server: WebServer, known: bool) -> None:
    def response(headers: Message) -> Iterator[bytes]:
        start = int((headers["Range"] or "bytes=0-")[6:-1])
        body = CONTENT[start : start + 100_000]
        head = f'{OK}ETag: "1"\r\n\r\n'
        if start:
            content_range = f"bytes {start}-{start + len(body) - 1}/600000"
            head = f"HTTP/1.1 206 Some\r\nContent-Range: {content_range}\r\nContent-Length: {len(body)}\r\n\r\n"
        yield head.encode() + body

    models.pull(model(server.respond_raw("/some.onnx", response), known=known))
    assert models.path.read_bytes() == CONTENT
    assert len(server.paths) == 6


def test_range_beyond_the_end_starts_over(models: Models, server: WebServer) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT + b"more", cuts=[HALF + 4, 0, 0, 0]), known=False)
    models.fail(file, left=PART)
    server.serve_file("/some.onnx", CONTENT[:HALF])
    models.pull(file)
    assert models.path.read_bytes() == CONTENT[:HALF]
    assert server.ranges[-2:] == [f"bytes={HALF + 4}-", None]


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[]",
        '{"key": KEY}',
        '{"key": KEY, "validator": "", "total": "x"}',
        '{"key": KEY, "validator": 0, "total": 600000}',
        '{"key": KEY, "validator": "", "total": 600000, "more": 1}',
        '{"key": KEY, "validator": "", "total": 299999}',
        '{"key": "of another URL", "validator": "", "total": 600000}',
    ],
)
def test_invalid_resume_state_is_ignored(models: Models, server: WebServer, state: str) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0]))
    models.fail(file, left=PART)
    recorded = models.part.with_suffix(".part.state")
    key = recorded.read_text().partition('"key": ')[2].partition(",")[0]
    recorded.write_text(state.replace("KEY", key))
    models.part.write_bytes(OTHER[:HALF])
    models.pull(file)
    assert server.ranges[4:] == [None]


@KNOWN_OR_NOT
def test_chunked_response_is_stored_unless_cut(models: Models, server: WebServer, known: bool) -> None:
    for cut in (chunked(CONTENT[:10], CONTENT[10:])[:-5], chunked(CONTENT)[:-HALF]):
        models.fail(model(server.respond_raw("/some.onnx", cut), known=known), left=PART if known else ())
    models.pull(model(server.respond_raw("/some.onnx", chunked(CONTENT[:10], CONTENT[10:])), known=known))
    assert models.path.read_bytes() == CONTENT
    assert models.reports[-1] == Progress("some.onnx", len(CONTENT), len(CONTENT))


def test_response_of_unspecified_length_is_verified_by_a_known_hash(models: Models, server: WebServer) -> None:
    models.pull(model(server.respond_raw("/some.onnx", b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)))


def test_unknown_size_is_limited(models: Models, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_file, "MAX_BYTES", HALF)
    url = server.respond_raw("/some.onnx", chunked(CONTENT))
    assert f"exceeds {HALF} bytes" in models.fail(model(url, known=False))
    url = server.serve_file("/some.onnx", CONTENT)
    assert f"expected at most {HALF}" in models.fail(model(url, known=False))


PAGE = http_response(b"<html>Please log in</html>", head="Content-Type: text/html; charset=utf-8\r\n")

UNUSABLE = {
    "web page": (False, PAGE, "a web page"),
    "page of wrong size": (True, PAGE, "expected 600000 bytes, found 26"),
    "encoding": (True, http_response(CONTENT, head="Content-Encoding: gzip\r\n"), "encoded as gzip"),
    "wrong content": (
        True,
        http_response(OTHER),
        f"{sha256(CONTENT)}, found 600000 bytes with {sha256(OTHER)}",
    ),
    "too long": (True, http_response(CONTENT + b"more"), "expected 600000 bytes, found 600004"),
    "empty": (True, http_response(b""), "expected 600000 bytes, found 0"),
    "endless": (True, chunked(CONTENT, b"and more"), "exceeds 600000 bytes"),
    "unspecified length": (False, b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT, "does not say how long"),
    "no HTTP": (True, b"SMTP here, hello\r\n\r\n", "some.onnx cannot be fetched from"),
    "nothing": (True, b"", "some.onnx cannot be fetched from"),
    **{
        status: (True, http_response(b"", status), f"answers {status}")
        for status in ("401 Unauthorized", "403 Forbidden", "404 Not Found", "500 Oh No", "503 Later")
    },
}
"""For each case, whether the hash is known, the response, and a part of the message."""


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_response_is_refused_and_not_repeated(models: Models, server: WebServer, case: str) -> None:
    known, response, expected = UNUSABLE[case]
    url = server.respond_raw("/some.onnx", response)
    message = models.fail(model(url, known=known))
    assert expected in message
    assert url in message
    assert server.paths == ["/some.onnx"]
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_unreachable_server_is_reported(models: Models) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/some.onnx"
        assert url in models.fail(model(url))


@pytest.mark.parametrize(
    "url", ["http://[not an address/some.onnx", "file:///etc/hostname", "ftp://a:secret@b/some.onnx", "http:///x", "x"]
)
def test_url_must_be_http(models: Models, url: str) -> None:
    assert "expected an HTTP or HTTPS URL" in models.fail(model(url))
    if "://" in url:
        message = models.fail(model(), url)
        assert "expected an HTTP or HTTPS URL" in message
        assert "secret" not in message
    assert "names no URL" in models.fail(model())


def test_redirects_are_followed_to_web_servers_only(models: Models, server: WebServer) -> None:
    target = server.serve_file("/target", CONTENT, cuts=[HALF])
    url = server.redirect("/some.onnx", target)
    models.pull(model(url))
    assert server.paths == ["/some.onnx", "/target"] * 2
    assert server.ranges[3] == f"bytes={HALF}-"
    models.path.unlink()
    for location in ("file:///etc/hostname", "ftp://127.0.0.1/some.onnx", "data:,x", url):
        server.redirect("/some.onnx", location)
        models.fail(model(url))
    assert "302 Found, a redirect" in models.fail(model(url))
    server.redirect("/some.onnx", "/target")
    models.pull(model(url))


def test_redirect_from_https_to_http_is_refused(
    models: Models, server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl cannot create a certificate here: {error}")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with run_web_server(tls) as encrypted:
        assert "CERTIFICATE_VERIFY_FAILED" in models.fail(model(encrypted.serve_file("/some.onnx", CONTENT)))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        downgrade = encrypted.redirect("/downgrade", server.serve_file("/some.onnx", CONTENT))
        assert f"a redirect to {server.url}/some.onnx that is not followed" in models.fail(model(downgrade))
        assert server.paths == []
        models.pull(model(server.redirect("/upgrade", f"{encrypted.url}/some.onnx")))


def test_credentials_go_to_their_server_only_and_are_never_shown(
    models: Models, server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = server.url.replace("://", "://me:s%40cret@") + "/some.onnx?token=t0ken"
    with run_web_server() as elsewhere:
        server.redirect("/some.onnx?token=t0ken", elsewhere.serve_file("/some.onnx", CONTENT))
        assert models.pull(model(url)).source == f"{server.url}/some.onnx"
        expected = base64.b64encode(b"me:s@cret").decode()
        assert server.headers[0]["Authorization"] == f"Basic {expected}"
        assert elsewhere.headers[0]["Authorization"] is None
    models.path.unlink()
    server.respond("/some.onnx?token=t0ken", CONTENT[:HALF], length=len(CONTENT))
    written = models.fail(model(url), left=PART) + models.part.with_suffix(".part.state").read_text()
    assert "cret" not in written + caplog.text
    assert "t0ken" not in written


def test_proxy_of_the_environment_is_used(models: Models, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.serve_file("/some.onnx", CONTENT)
    with run_web_server() as proxy:
        proxy.responses[url] = http_response(CONTENT)
        monkeypatch.setenv("http_proxy", proxy.url)
        models.pull(model(url))
        assert (proxy.paths, server.paths) == ([url], [])
        models.path.unlink()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        models.pull(model(url))
        assert (proxy.paths, server.paths) == ([url], ["/some.onnx"])
    models.path.unlink()
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "gopher://me:secret@127.0.0.1")
    message = models.fail_pack(pack(model(url)))
    assert "proxy that the environment names" in message
    assert "secret" not in message


def test_error_names_every_source_that_was_tried(models: Models, server: WebServer, tmp_path: Path) -> None:
    file = replace(model(f"{NOWHERE}/a/x.zip"), member="some.onnx")
    message = models.fail(file, f"{server.url}/m")
    assert f"{server.url}/m/some.onnx answers 404 Not Found; {server.url}/m/x.zip answers 404 Not Found" in message
    message = models.fail(file, str(tmp_path))
    assert f"there is no {tmp_path / 'some.onnx'}; there is no {tmp_path / 'x.zip'}" in message
    assert "expected a URL, a folder or a ZIP" in models.fail(file, str(tmp_path / "nothing"))
    assert "x.zip" not in models.fail(replace(file, member=""), str(tmp_path))
