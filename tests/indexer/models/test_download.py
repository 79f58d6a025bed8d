"""Pulling a pack's files: whatever the network and the disk do, what gets its name is the right file."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from indexer.errors import ModelUnavailable
from indexer.files import try_lock
from indexer.models import download
from indexer.models.download import Patience, Progress, Pulled, pull
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE, ModelFile, Network, Pack
from indexer.types import sha256
from tests.indexer.models.site import Site, chunked, open_proxy, open_site
from tests.indexer.vectors.disks import limited_file_size

CONTENT = random.Random(0).randbytes(600_000)
HALF = len(CONTENT) // 2
OTHER = random.Random(1).randbytes(len(CONTENT))
SMALL = b"the other file of the pack"

WAIT_SECONDS = 20.0
PATIENCE = Patience(silence_seconds=WAIT_SECONDS, pauses_seconds=(0.0, 0.0, 0.0))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with open_site() as here:
        yield here


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    """A models folder that has the pack's second file already."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "small.onnx").write_bytes(SMALL)
    return ModelFiles(folder)


def model(url: str = "", content: bytes = CONTENT, *, known: bool = True, name: str = "some.onnx") -> ModelFile:
    file = ModelFile(name, Network.YUNET, "MIT", "this test", url=url)
    return replace(file, sha256=sha256(content), size=len(content)) if known else file


def pack(file: ModelFile, second: ModelFile | None = None) -> Pack:
    return replace(SFACE, name="some", detector=file, embedder=second or model(content=SMALL, name="small.onnx"))


def brought(file: ModelFile, files: ModelFiles, source: str | None = None) -> Pulled:
    """The file after a pull that went well."""
    first, second = pull(pack(file), files, source, patience=PATIENCE)
    assert second == Pulled(second.file, files.folder / "small.onnx", sha256(SMALL), "")
    assert first.path == files.folder / file.name
    assert first.sha256 == sha256(first.path.read_bytes())
    assert listed(files) == [file.name, *([] if file.sha256 else [f"{file.name}.sha256"])]
    return first


def refused(file: ModelFile, files: ModelFiles, source: str | None = None, left: Iterable[str] = ()) -> str:
    """What a pull that failed says; `left` is what lies in the models folder after it."""
    with pytest.raises(ModelUnavailable) as caught:
        pull(pack(file), files, source, patience=PATIENCE)
    assert caught.value.code == "model_unavailable"
    assert file.name in caught.value.message
    assert listed(files) == sorted(left)
    return caught.value.message


def listed(files: ModelFiles) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir() if path.name != "small.onnx")


def part(files: ModelFiles, name: str = "some.onnx") -> Path:
    return files.folder / f"{name}.part"


PART = ("some.onnx.part", "some.onnx.part.state")


def zipped(members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_whole_file(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", CONTENT)
    told: list[Progress] = []
    first, _ = pull(pack(model(url)), files, progress=told.append)
    assert first == Pulled(model(url), files.folder / "some.onnx", sha256(CONTENT), url)
    assert first.path.read_bytes() == CONTENT
    assert listed(files) == ["some.onnx"]
    assert told[-1] == Progress("some.onnx", len(CONTENT), len(CONTENT))
    assert [word.done for word in told] == sorted(word.done for word in told)
    assert site.headers[0]["Range"] is None


def test_progress_is_told_a_few_times_a_second(files: ModelFiles, site: Site) -> None:
    pieces = [CONTENT[at : at + 1000] for at in range(0, len(CONTENT), 1000)]
    told: list[Progress] = []
    started = time.monotonic()
    pull(pack(model(site.serve_raw("/some.onnx", chunked(*pieces)))), files, progress=told.append)
    assert 1 <= len(told) <= 3 + (time.monotonic() - started) / download.TELL_SECONDS


def test_the_folder_is_made(tmp_path: Path, site: Site) -> None:
    files = ModelFiles(tmp_path / "deep" / "models")
    second = model(site.keep("/small.onnx", SMALL), SMALL, name="small.onnx")
    pulled = pull(pack(model(site.keep("/some.onnx", CONTENT)), second), files)
    assert [each.path.read_bytes() for each in pulled] == [CONTENT, SMALL]
    assert sorted(path.name for path in files.folder.iterdir()) == ["small.onnx", "some.onnx"]


def test_what_is_there_is_left_alone(files: ModelFiles) -> None:
    path = files.folder / "some.onnx"
    path.write_bytes(CONTENT)
    before = path.stat()
    assert brought(model("http://127.0.0.1:1/some.onnx"), files).source == ""
    assert path.stat() == before


def test_a_file_that_is_there_is_read_once(files: ModelFiles, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    hash_of = download._hash

    def noted(path: Path) -> str:
        read.append(path.name)
        return hash_of(path)

    monkeypatch.setattr(download, "_hash", noted)
    brought(model(site.keep("/some.onnx", CONTENT)), files)
    assert read == ["small.onnx", "some.onnx.part"]


def test_what_a_package_ships_is_there(tmp_path: Path) -> None:
    pulled = pull(SFACE, ModelFiles(tmp_path / "models"))
    assert [each.source for each in pulled] == ["", ""]
    assert [each.sha256 for each in pulled] == [file.sha256 for file in SFACE.files]
    assert not (tmp_path / "models").exists()


def test_what_is_damaged_is_replaced(files: ModelFiles, site: Site) -> None:
    (files.folder / "some.onnx").write_bytes(CONTENT[:-1])
    url = site.keep("/some.onnx", CONTENT)
    assert brought(model(url), files).source == url
    (files.folder / "some.onnx").write_bytes(CONTENT[:-1])
    site.answers.clear()
    refused(model(url), files, left=["some.onnx"])
    assert (files.folder / "some.onnx").read_bytes() == CONTENT[:-1]  # not worse than it was


@pytest.mark.parametrize("head", ['ETag: "1"\r\n', "Last-Modified: Tue, 24 Nov 2026 10:00:00 GMT\r\n", ""])
def test_a_cut_is_resumed_within_one_pull(files: ModelFiles, site: Site, head: str) -> None:
    url = site.keep("/some.onnx", CONTENT, head, cuts=[HALF, 1000, 0, 0, 5000, 0, 0])
    brought(model(url), files)
    starts = [0, HALF, HALF + 1000, HALF + 1000, HALF + 1000, HALF + 6000, HALF + 6000, HALF + 6000]
    assert [asked["Range"] for asked in site.headers] == [None, *(f"bytes={start}-" for start in starts[1:])]
    assert {asked["If-Range"] for asked in site.headers[1:]} == {head.partition(": ")[2].strip() or None}


def test_a_cut_is_resumed_by_the_next_pull(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0])
    message = refused(model(url), files, left=PART)
    assert url in message
    assert f"{HALF} bytes are there, and pulling again goes on" in message
    assert part(files).read_bytes() == CONTENT[:HALF]
    assert len(site.asked) == 4
    brought(model(url), files)
    assert site.headers[4]["Range"] == f"bytes={HALF}-"
    assert site.headers[4]["If-Range"] == '"1"'
    assert len(site.asked) == 5


def test_a_part_that_only_lacks_its_name_is_not_fetched_again(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0])
    refused(model(url), files, left=PART)
    part(files).write_bytes(CONTENT)
    brought(model(url), files)
    assert len(site.asked) == 4


def test_silence_is_a_cut_and_a_trickle_is_none(files: ModelFiles, site: Site) -> None:
    def silent(_: Message) -> Iterator[bytes]:
        yield f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[:HALF]
        site.closing.wait(WAIT_SECONDS)

    impatient = Patience(silence_seconds=0.4, pauses_seconds=())
    with pytest.raises(ModelUnavailable, match=f"timed out; {HALF} bytes are there"):
        pull(pack(model(site.serve_raw("/some.onnx", silent))), files, patience=impatient)

    def trickle(_: Message) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n"
        for byte in SMALL:
            time.sleep(0.02)
            yield bytes([byte])

    (files.folder / "small.onnx").unlink()
    part(files).unlink()
    (files.folder / "some.onnx").write_bytes(CONTENT)
    second = model(site.serve_raw("/small.onnx", trickle), SMALL, name="small.onnx")
    pulled = pull(pack(model(), second), files, patience=impatient)
    assert pulled[1].path.read_bytes() == SMALL  # in all it took longer than the patience with silence


def test_a_server_without_ranges(files: ModelFiles, site: Site) -> None:
    answers = iter([CONTENT[:HALF], CONTENT])

    def answer(_: Message) -> Iterator[bytes]:
        yield f'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: {len(CONTENT)}\r\n\r\n'.encode() + next(answers)

    brought(model(site.serve_raw("/some.onnx", answer)), files)
    assert [asked["Range"] for asked in site.headers] == [None, f"bytes={HALF}-"]


def test_a_server_that_always_cuts_at_the_same_place(files: ModelFiles, site: Site) -> None:
    url = site.serve("/some.onnx", CONTENT[:HALF], length=len(CONTENT))
    assert f"ended after {HALF} of {len(CONTENT)} bytes" in refused(model(url), files, left=PART)
    assert len(site.asked) == 4


@pytest.mark.parametrize("known", [True, False])
def test_a_file_that_changed_between_is_fetched_anew(files: ModelFiles, site: Site, known: bool) -> None:
    old = model(site.keep("/some.onnx", OTHER, cuts=[HALF, 0, 0, 0]), known=known)
    refused(old, files, left=PART)
    brought(replace(old, url=site.keep("/some.onnx", CONTENT, 'ETag: "2"\r\n')), files)
    assert (files.folder / "some.onnx").read_bytes() == CONTENT
    assert site.headers[-1]["If-Range"] == '"1"'


def test_a_part_of_another_url_is_not_gone_on_with(files: ModelFiles, site: Site) -> None:
    refused(model(site.keep("/old/some.onnx", OTHER, cuts=[HALF, 0, 0, 0])), files, left=PART)
    brought(model(site.keep("/new/some.onnx", CONTENT)), files)
    assert site.headers[-1]["Range"] is None


@pytest.mark.parametrize("head", ["", 'ETag: W/"1"\r\n'])
def test_nothing_is_glued_when_neither_hash_nor_version_are_known(files: ModelFiles, site: Site, head: str) -> None:
    file = model(site.keep("/some.onnx", CONTENT, head, cuts=[HALF, HALF, HALF, HALF]), known=False)
    assert "bytes are there" not in refused(file, files)
    assert [asked["Range"] for asked in site.headers] == [None] * 4
    brought(file, files)


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
def test_a_wrong_range_is_not_written(files: ModelFiles, site: Site, head: str) -> None:
    url = site.keep("/some.onnx", CONTENT, cuts=[HALF, 0, 0, 0])
    refused(model(url, known=False), files, left=PART)
    wrong = f"HTTP/1.1 206 Partial Content\r\n{head}Content-Length: {HALF}\r\n\r\n".encode() + OTHER[HALF:]
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n" + CONTENT
    site.serve_raw("/some.onnx", lambda asked: [wrong if asked["Range"] else whole])
    brought(model(url, known=False), files)
    assert (files.folder / "some.onnx").read_bytes() == CONTENT
    assert [asked["Range"] for asked in site.headers[4:]] == [f"bytes={HALF}-", None]
    site.serve_raw("/some.onnx", wrong)
    (files.folder / "some.onnx").unlink()
    (files.folder / "some.onnx.sha256").unlink()
    assert "does not answer with all of it" in refused(model(url, known=False), files)


@pytest.mark.parametrize("known", [True, False])
def test_the_rest_comes_in_slices(files: ModelFiles, site: Site, known: bool) -> None:
    def answer(asked: Message) -> Iterator[bytes]:
        start = int((asked["Range"] or "bytes=0-")[6:-1])
        piece = CONTENT[start : start + 100_000]
        head = 'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 600000\r\n\r\n'
        if start:
            where = f"bytes {start}-{start + len(piece) - 1}/600000"
            head = f"HTTP/1.1 206 Some\r\nContent-Range: {where}\r\nContent-Length: {len(piece)}\r\n\r\n"
        yield head.encode() + piece

    brought(model(site.serve_raw("/some.onnx", answer), known=known), files)
    assert (files.folder / "some.onnx").read_bytes() == CONTENT
    assert len(site.asked) == 6


def test_a_range_that_is_not_there_starts_anew(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", CONTENT + b"more", cuts=[HALF + 4, 0, 0, 0])
    refused(model(url, known=False), files, left=PART)
    site.keep("/some.onnx", CONTENT[:HALF])
    brought(model(url, known=False), files)
    assert (files.folder / "some.onnx").read_bytes() == CONTENT[:HALF]
    assert [asked["Range"] for asked in site.headers[-2:]] == [f"bytes={HALF + 4}-", None]


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[]",
        '{"key": "KEY"}',
        '{"key": "KEY", "validator": "", "total": "x"}',
        '{"key": "KEY", "validator": 0, "total": 600000}',
        '{"key": "KEY", "validator": "", "total": 600000, "more": 1}',
        '{"key": "KEY", "validator": "", "total": 299999}',
        '{"key": "KEY", "validator": "", "total": 600000, "whole": true}',
    ],
)
def test_a_state_that_does_not_fit(files: ModelFiles, site: Site, state: str) -> None:
    url = site.keep("/some.onnx", CONTENT)
    part(files).write_bytes(OTHER[:HALF])
    part(files).with_suffix(".part.state").write_text(state.replace("KEY", download._key(url)))
    brought(model(url), files)
    assert site.headers[0]["Range"] is None


@pytest.mark.parametrize("known", [True, False])
def test_chunks(files: ModelFiles, site: Site, known: bool) -> None:
    url = site.serve_raw("/some.onnx", chunked(CONTENT[:10], CONTENT[10:]))
    brought(model(url, known=known), files)
    assert (files.folder / "some.onnx").read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False])
def test_chunks_that_are_cut(files: ModelFiles, site: Site, known: bool) -> None:
    url = site.serve_raw("/some.onnx", chunked(CONTENT[:10], CONTENT[10:])[:-5])
    refused(model(url, known=known), files, left=PART if known else ())
    url = site.serve_raw("/some.onnx", chunked(CONTENT)[:-HALF])
    refused(model(url, known=known), files, left=PART if known else ())


def test_an_answer_that_does_not_say_how_long_it_is(files: ModelFiles, site: Site) -> None:
    url = site.serve_raw("/some.onnx", b"HTTP/1.1 200 OK\r\n\r\n" + CONTENT)
    assert "does not say how long" in refused(model(url, known=False), files)
    brought(model(url), files)


def test_an_answer_that_does_not_end(files: ModelFiles, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.serve_raw("/some.onnx", chunked(CONTENT, b"and more"))
    assert "does not end after 600000 bytes" in refused(model(url), files)
    monkeypatch.setattr(download, "MAX_BYTES", HALF)
    assert f"does not end after {HALF} bytes" in refused(model(url, known=False), files)
    url = site.keep("/some.onnx", CONTENT)
    assert f"expected at most {HALF}" in refused(model(url, known=False), files)


def test_wrong_bytes(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", OTHER)
    message = refused(model(url), files)
    for word in (url, "expected 600000 bytes", sha256(CONTENT), sha256(OTHER)):
        assert word in message
    url = site.keep("/longer", CONTENT + b"more")
    assert "expected 600000 bytes, found 600004" in refused(model(url), files)
    refused(model(site.keep("/empty", b"")), files)


def test_a_page_instead_of_a_model(files: ModelFiles, site: Site) -> None:
    page, head = b"<html>Please log in</html>", "Content-Type: text/html; charset=utf-8\r\n"
    url = site.serve("/some.onnx", page, head=head)
    assert "a web page" in refused(model(url, known=False), files)
    assert "expected 600000 bytes, found 26" in refused(model(url), files)
    assert "a web page" in refused(replace(model(url), member="some.onnx"), files)
    squeezed = site.serve("/squeezed", CONTENT, head="Content-Encoding: gzip\r\n")
    assert "encoded as gzip" in refused(model(squeezed), files)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "500 Oh No", "503 Later"])
def test_what_the_server_refuses(files: ModelFiles, site: Site, status: str) -> None:
    url = site.serve("/some.onnx", b"", status)
    message = refused(model(url), files)
    assert status in message
    assert url in message
    assert len(site.asked) == 1


def test_nobody_answers(files: ModelFiles, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/some.onnx"
        assert url in refused(model(url), files)
    refused(model(site.serve_raw("/no-http", b"SMTP here, hello\r\n\r\n")), files)
    refused(model(site.serve_raw("/nothing", b"")), files)


@pytest.mark.parametrize(
    "url", ["http://[not an address/some.onnx", "file:///etc/hostname", "ftp://127.0.0.1/some.onnx", "http:///x", "x"]
)
def test_no_place_to_fetch_from(files: ModelFiles, url: str) -> None:
    assert "expected a URL with http or https" in refused(model(url), files)
    if "://" in url:
        assert "expected a URL with http or https" in refused(model(), files, url)


def test_a_file_without_a_url(files: ModelFiles) -> None:
    assert "names no place" in refused(model(), files)


def test_redirects(files: ModelFiles, site: Site) -> None:
    there = site.keep("/there", CONTENT, cuts=[HALF])
    url = site.serve("/some.onnx", b"", "302 Found", head=f"Location: {there}\r\n")
    brought(model(url), files)
    assert site.asked == ["/some.onnx", "/there"] * 2
    assert site.headers[3]["Range"] == f"bytes={HALF}-"
    (files.folder / "some.onnx").unlink()
    for to in ("file:///etc/hostname", "ftp://127.0.0.1/some.onnx", "data:,x"):
        site.serve("/some.onnx", b"", "302 Found", head=f"Location: {to}\r\n")
        assert "302" in refused(model(url), files)
    site.serve("/some.onnx", b"", "302 Found", head=f"Location: {url}\r\n")
    assert "302" in refused(model(url), files)


def test_no_redirect_leads_out_of_encryption(
    files: ModelFiles, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(own), "-out", str(tmp_path / "cert.pem"), "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate here: {error}")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", own)
    with open_site(tls) as safe:
        assert "CERTIFICATE_VERIFY_FAILED" in refused(model(safe.keep("/some.onnx", CONTENT)), files)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        out = safe.serve("/out", b"", "302 Found", head=f"Location: {site.keep('/some.onnx', CONTENT)}\r\n")
        assert f"{site.url}/some.onnx, where it is not followed" in refused(model(out), files)
        assert site.asked == []
        up = site.serve("/up", b"", "302 Found", head=f"Location: {safe.url}/some.onnx\r\n")
        brought(model(up), files)


def test_a_password_stays_with_its_server(files: ModelFiles, site: Site) -> None:
    with open_site() as elsewhere:
        there = elsewhere.keep("/some.onnx", CONTENT)
        site.serve("/some.onnx", b"", "302 Found", head=f"Location: {there}\r\n")
        url = site.url.replace("://", "://me:s%40cret@") + "/some.onnx?token=t0ken"
        site.answers["/some.onnx?token=t0ken"] = site.answers["/some.onnx"]
        assert brought(model(url), files).source == f"{site.url}/some.onnx"
        expected = base64.b64encode(b"me:s@cret").decode()
        assert site.headers[0]["Authorization"] == f"Basic {expected}"
        assert elsewhere.headers[0]["Authorization"] is None
    (files.folder / "some.onnx").unlink()
    site.serve("/some.onnx?token=t0ken", CONTENT[:HALF], length=len(CONTENT))
    said = refused(model(url), files, left=PART) + part(files).with_suffix(".part.state").read_text()
    assert "cret" not in said
    assert "t0ken" not in said


def test_through_a_proxy(files: ModelFiles, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    url = site.keep("/some.onnx", CONTENT)
    with open_proxy() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        brought(model(url), files)
        assert proxy.asked == [url]
        assert site.asked == ["/some.onnx"]
        (files.folder / "some.onnx").unlink()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        brought(model(url), files)
        assert len(proxy.asked) == 1


def test_an_unknown_hash_is_recorded_and_holds(files: ModelFiles, site: Site) -> None:
    file = model(site.keep("/some.onnx", CONTENT), known=False)
    brought(file, files)
    assert files.known(file).sha256 == sha256(CONTENT)
    (files.folder / "some.onnx").unlink()
    site.keep("/some.onnx", OTHER)
    message = refused(file, files, left=["some.onnx.sha256"])
    for word in (sha256(CONTENT), sha256(OTHER), "recorded in some.onnx.sha256"):
        assert word in message
    site.keep("/some.onnx", CONTENT)
    brought(file, files)


def test_a_file_of_unknown_hash_that_lies_there_is_recorded(files: ModelFiles) -> None:
    (files.folder / "some.onnx").write_bytes(CONTENT)
    brought(model(known=False), files)
    assert files.known(model(known=False)).sha256 == sha256(CONTENT)


def test_a_known_size_is_held_without_a_hash(files: ModelFiles, site: Site) -> None:
    file = replace(model(site.keep("/some.onnx", CONTENT + b"?"), known=False), size=len(CONTENT))
    assert "expected 600000 bytes" in refused(file, files)
    (files.folder / "some.onnx").write_bytes(CONTENT[:-1])
    url = site.keep("/some.onnx", CONTENT)
    assert brought(replace(file, url=url), files).source == url


def test_there_is_no_room(files: ModelFiles, site: Site) -> None:
    size = 10**16
    file = replace(model(site.serve("/some.onnx", CONTENT, length=size), known=False), size=size)
    message = refused(file, files)
    assert f"needs {size} bytes in {files.folder}" in message
    assert "are free" in message


@pytest.mark.parametrize("way", ["url", "folder", "zip"])
def test_a_disk_that_fills_up(files: ModelFiles, site: Site, tmp_path: Path, way: str) -> None:
    file = model(site.keep("/some.onnx", CONTENT))
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    (tmp_path / "some.zip").write_bytes(zipped({"some.onnx": CONTENT}))
    source = {"url": None, "folder": str(tmp_path), "zip": str(tmp_path / "some.zip")}[way]
    with limited_file_size(100_000):
        message = refused(file, files, source)
    assert f"some.onnx cannot be written to {files.folder}: File too large" in message
    brought(file, files, source)


def test_a_disk_that_fills_up_with_a_zip(files: ModelFiles, site: Site) -> None:
    wanted = two_of_a_zip(site.keep("/some.zip", zipped(MEMBERS)))
    with limited_file_size(100_000), pytest.raises(ModelUnavailable, match=r"some\.zip cannot be written"):
        pull(wanted, files, patience=PATIENCE)
    assert listed(files) == []
    pull(wanted, files)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelUnavailable, match=r"cannot be written to .*models"):
        pull(pack(model()), ModelFiles(tmp_path / "file" / "models"))


def test_a_folder_in_the_place_of_the_file(files: ModelFiles, site: Site) -> None:
    (files.folder / "some.onnx").mkdir()
    assert "cannot be written" in refused(model(site.keep("/x", CONTENT)), files, left=["some.onnx"])


MEMBERS = {"some/det.onnx": CONTENT, "some/rec.onnx": OTHER, "some/genderage.onnx": SMALL}


def two_of_a_zip(url: str, *, known: bool = True) -> Pack:
    detector = replace(model(url, CONTENT, known=known, name="det.onnx"), member="det.onnx")
    return pack(detector, replace(model(url, OTHER, known=known, name="rec.onnx"), member="rec.onnx"))


@pytest.mark.parametrize("known", [True, False])
def test_a_zip_is_fetched_once_and_goes(files: ModelFiles, site: Site, known: bool) -> None:
    url = site.keep("/v1/some.zip", zipped(MEMBERS), cuts=[HALF])
    told: list[Progress] = []
    pulled = pull(two_of_a_zip(url, known=known), files, progress=told.append, patience=PATIENCE)
    assert [each.path.read_bytes() for each in pulled] == [CONTENT, OTHER]
    assert [each.source for each in pulled] == [url, url]
    assert len(site.asked) == 2
    assert {name for name in listed(files) if not name.endswith(".sha256")} == {"det.onnx", "rec.onnx"}
    assert [word.name for word in told if word.done == word.total] == ["some.zip", "det.onnx", "rec.onnx"]


def test_two_zips_that_only_their_query_tells_apart(files: ModelFiles, site: Site) -> None:
    first = two_of_a_zip(site.keep("/zips?name=a", zipped({"det.onnx": CONTENT})))
    second = replace(first.embedder, url=site.keep("/zips?name=b", zipped({"rec.onnx": OTHER})))
    pulled = pull(replace(first, embedder=second), files)
    assert [each.path.read_bytes() for each in pulled] == [CONTENT, OTHER]


def test_a_zip_without_version_or_length(files: ModelFiles, site: Site) -> None:
    url = site.serve_raw("/some.zip", chunked(zipped(MEMBERS)))
    pull(two_of_a_zip(url), files)
    assert len(site.asked) == 1
    assert listed(files) == ["det.onnx", "rec.onnx"]


def test_a_zip_that_is_cut_is_gone_on_with(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.zip", zipped(MEMBERS), cuts=[HALF, 0, 0, 0])
    with pytest.raises(ModelUnavailable, match=rf"some\.zip cannot be fetched .*; {HALF} bytes are there"):
        pull(two_of_a_zip(url), files, patience=PATIENCE)
    assert listed(files) == ["some.zip.part", "some.zip.part.state"]
    pull(two_of_a_zip(url), files)
    assert site.headers[-1]["Range"] == f"bytes={HALF}-"
    assert listed(files) == ["det.onnx", "rec.onnx"]


def test_a_wrong_place_costs_nothing_of_what_came(files: ModelFiles, site: Site, tmp_path: Path) -> None:
    wanted = two_of_a_zip(site.keep("/some.zip", zipped(MEMBERS), cuts=[HALF, 0, 0, 0]))
    (tmp_path / "bad.zip").write_bytes(b"no ZIP")
    for source in (None, f"{site.url}/elsewhere", str(tmp_path), str(tmp_path / "bad.zip")):
        with pytest.raises(ModelUnavailable):
            pull(wanted, files, source, patience=PATIENCE)
        assert part(files, "some.zip").stat().st_size == HALF


def test_a_zip_is_unpacked_later_when_there_was_no_room(
    files: ModelFiles, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = site.keep("/some.zip", zipped({"det.onnx": CONTENT, "rec.onnx": OTHER}))
    room = download._Pull._make_room

    def no_room_for_members(self: download._Pull, part: download._Part, needed: int) -> None:
        room(self, part, needed if part.name.endswith(".zip") else 10**18)

    with monkeypatch.context() as small:
        small.setattr(download._Pull, "_make_room", no_room_for_members)
        with pytest.raises(ModelUnavailable, match=r"det\.onnx needs"):
            pull(two_of_a_zip(url), files)
    pull(two_of_a_zip(url), files)
    assert len(site.asked) == 1
    assert listed(files) == ["det.onnx", "rec.onnx"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "page", "empty", "no member"])
def test_a_zip_that_is_none(files: ModelFiles, site: Site, damage: str) -> None:
    good = zipped({"some/rec.onnx": OTHER, "some/det.onnx": CONTENT}, zipfile.ZIP_STORED)
    flipped = bytearray(good)
    flipped[len(good) // 2 + HALF] ^= 1
    bad, said = {
        "cut": (good[:-HALF], "damaged or no ZIP"),
        "flipped": (bytes(flipped), "Bad CRC-32"),
        "page": (b"<html>", "damaged or no ZIP"),
        "empty": (b"", "damaged or no ZIP"),
        "no member": (zipped({"a/b.onnx": CONTENT}), "holds no det.onnx, but a/b.onnx"),
    }[damage]
    url = site.keep("/some.zip", bad)
    with pytest.raises(ModelUnavailable, match=said) as caught:
        pull(two_of_a_zip(url), files)
    assert url in caught.value.message
    assert listed(files) == []


def test_the_wrong_file_in_a_zip(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.zip", zipped({"det.onnx": CONTENT, "rec.onnx": CONTENT}))
    with pytest.raises(ModelUnavailable, match=sha256(OTHER)):
        pull(two_of_a_zip(url), files)
    assert listed(files) == ["det.onnx"]
    assert (files.folder / "det.onnx").read_bytes() == CONTENT


def test_several_of_one_name_in_a_zip(files: ModelFiles, tmp_path: Path) -> None:
    source = tmp_path / "some.zip"
    source.write_bytes(zipped({"a/some.onnx": OTHER, "b/some.onnx": CONTENT}))
    assert "holds several some.onnx: a/some.onnx, b/some.onnx" in refused(model(), files, str(source))
    source.write_bytes(zipped({"a/some.onnx": OTHER, "some.onnx": CONTENT}))
    brought(replace(model(), member="some.onnx"), files, str(source))


def test_zip_bombs(files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "some.zip"
    bomb = zipped({"some.onnx": bytes(10**8)})
    source.write_bytes(bomb)
    assert "expected 600000 bytes, found 100000000" in refused(model(), files, str(source))
    lying = bomb.replace((10**8).to_bytes(4, "little"), (600_000).to_bytes(4, "little"))
    assert lying != bomb
    source.write_bytes(lying)
    assert "Bad CRC-32" in refused(model(), files, str(source))
    monkeypatch.setattr(download, "MAX_BYTES", 10**6)
    source.write_bytes(bomb)
    assert "expected at most 1000000" in refused(model(known=False), files, str(source))


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_that_could_unpack_to_anything(files: ModelFiles, tmp_path: Path, how: int) -> None:
    (tmp_path / "some.zip").write_bytes(zipped({"some.onnx": CONTENT}, how))
    assert "expected deflate" in refused(model(), files, str(tmp_path / "some.zip"))


def test_a_mirror_of_files(files: ModelFiles, site: Site) -> None:
    site.keep("/mirror/det.onnx", CONTENT)
    site.keep("/mirror/rec.onnx", OTHER)
    pull(two_of_a_zip("http://127.0.0.1:1/some.zip"), files, f"{site.url}/mirror/")
    assert site.asked == ["/mirror/det.onnx", "/mirror/rec.onnx"]
    assert listed(files) == ["det.onnx", "rec.onnx"]


def test_a_mirror_of_zips(files: ModelFiles, site: Site) -> None:
    site.keep("/mirror/some%20v1.zip", zipped(MEMBERS))
    pull(two_of_a_zip("http://127.0.0.1:1/x/some%20v1.zip?download=1"), files, f"{site.url}/mirror")
    assert site.asked == ["/mirror/det.onnx", "/mirror/some%20v1.zip", "/mirror/rec.onnx"]
    assert listed(files) == ["det.onnx", "rec.onnx"]


def test_a_mirror_that_needs_its_query(files: ModelFiles, site: Site) -> None:
    site.keep("/mirror/some.onnx?sig=1", CONTENT)
    brought(model(), files, f"{site.url}/mirror?sig=1")


def test_a_zip_elsewhere(files: ModelFiles, site: Site, tmp_path: Path) -> None:
    pull(two_of_a_zip("http://127.0.0.1:1/x.zip"), files, site.keep("/any/name.zip", zipped(MEMBERS)))
    assert site.asked == ["/any/name.zip"]
    for file in ("det.onnx", "rec.onnx"):
        (files.folder / file).unlink()
    source = tmp_path / "other.zip"
    source.write_bytes(zipped(MEMBERS))
    pulled = pull(two_of_a_zip("http://127.0.0.1:1/x.zip"), files, str(source))
    assert [each.source for each in pulled] == [str(source)] * 2
    assert source.exists()


def test_a_folder(files: ModelFiles, tmp_path: Path) -> None:
    folder = tmp_path / "insightface" / "models" / "buffalo_l"
    folder.mkdir(parents=True)
    for name, content in MEMBERS.items():
        (folder / Path(name).name).write_bytes(content)
    pulled = pull(two_of_a_zip("http://127.0.0.1:1/x.zip"), files, str(folder))
    assert [each.source for each in pulled] == [str(folder / "det.onnx"), str(folder / "rec.onnx")]
    assert not (files.folder / "det.onnx").is_symlink()
    assert (files.folder / "det.onnx").stat().st_nlink == 1
    assert (folder / "det.onnx").read_bytes() == CONTENT


def test_a_folder_with_the_zip(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped(MEMBERS))
    pull(two_of_a_zip("http://127.0.0.1:1/a/x.zip"), files, str(tmp_path))
    assert listed(files) == ["det.onnx", "rec.onnx"]
    assert (tmp_path / "x.zip").exists()


def test_wrong_files_in_a_folder(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "some.onnx").write_bytes(OTHER)
    assert sha256(OTHER) in refused(model(), files, str(tmp_path))
    assert (tmp_path / "some.onnx").read_bytes() == OTHER
    (tmp_path / "some.onnx").write_bytes(CONTENT[:HALF])
    assert f"expected 600000 bytes, found {HALF}" in refused(model(), files, str(tmp_path))
    (tmp_path / "some.zip").write_bytes(b"no ZIP")
    assert "damaged or no ZIP" in refused(model(), files, str(tmp_path / "some.zip"))


def test_it_says_where_it_looked(files: ModelFiles, site: Site, tmp_path: Path) -> None:
    file = replace(model("http://127.0.0.1:1/a/x.zip"), member="some.onnx")
    message = refused(file, files, f"{site.url}/m")
    assert f"{site.url}/m/some.onnx answers 404 Not Found; {site.url}/m/x.zip answers 404 Not Found" in message
    message = refused(file, files, str(tmp_path))
    assert f"there is no {tmp_path / 'some.onnx'}; there is no {tmp_path / 'x.zip'}" in message
    assert "expected a URL, a folder or a ZIP" in refused(file, files, str(tmp_path / "nothing"))
    assert "x.zip" not in refused(replace(file, member=""), files, str(tmp_path))


def test_interrupted(files: ModelFiles, site: Site) -> None:
    url = site.keep("/some.onnx", CONTENT)

    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(pack(model(url)), files, progress=interrupt)
    assert listed(files) == sorted(PART)
    brought(model(url), files)
    assert site.headers[1]["Range"] is not None


def test_a_part_of_another_way_goes(files: ModelFiles, site: Site, tmp_path: Path) -> None:
    refused(model(site.keep("/some.onnx", OTHER, cuts=[HALF, 0, 0, 0])), files, left=PART)
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    brought(model(), files, str(tmp_path))


def waiting_halfway(site: Site, go: threading.Event) -> str:
    """The URL of a file whose second half comes when `go` is set."""

    def answer(_: Message) -> Iterator[bytes]:
        yield b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 600000\r\n\r\n' + CONTENT[:HALF]
        go.wait(WAIT_SECONDS)
        yield CONTENT[HALF:]

    return site.serve_raw("/some.onnx", answer)


def test_two_at_once(files: ModelFiles, site: Site) -> None:
    go, waits = threading.Event(), threading.Event()
    wanted = pack(model(waiting_halfway(site, go)))

    def told(progress: Progress) -> None:
        if progress == Progress("some", 0, None, waiting=True):
            waits.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pull, wanted, files)
        wait_for(lambda: part(files).exists() and part(files).stat().st_size == HALF)
        second = pool.submit(pull, wanted, files, None, told)
        assert waits.wait(WAIT_SECONDS)
        go.set()
        assert [each.source for each in first.result()] == [wanted.detector.url, ""]
        assert [each.source for each in second.result()] == ["", ""]
    assert (files.folder / "some.onnx").read_bytes() == CONTENT
    assert site.asked == ["/some.onnx"]
    assert listed(files) == ["some.onnx"]


def test_many_at_once(files: ModelFiles, site: Site) -> None:
    wanted = pack(model(site.keep("/some.onnx", CONTENT)))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: pull(wanted, files)[0].sha256, range(6)))
    assert answers == [sha256(CONTENT)] * 6
    assert listed(files) == ["some.onnx"]


def test_a_lock_that_its_holder_removed_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / download.LOCK_NAME

    def removed_meanwhile(lock: int, how: int) -> None:
        path.unlink()

    with monkeypatch.context() as late:
        late.setattr(fcntl, "flock", removed_meanwhile)
        assert try_lock(path) is None
    lock = try_lock(path)
    assert lock is not None
    assert try_lock(path) is None
    os.close(lock)


PULLING = """
import sys
from dataclasses import replace
from pathlib import Path
from indexer.vision.download import pull
from indexer.vision.files import ModelFiles
from indexer.vision.packs import SFACE, ModelFile, Network
url, folder, sha256 = sys.argv[1:]
file = ModelFile("some.onnx", Network.YUNET, "MIT", "this test", sha256=sha256, size=600000, url=url)
pull(replace(SFACE, detector=file), ModelFiles(Path(folder)))
"""


def test_killed_in_the_middle(files: ModelFiles, site: Site) -> None:
    url = waiting_halfway(site, site.closing)
    process = subprocess.Popen([sys.executable, "-c", PULLING, url, str(files.folder), sha256(CONTENT)])
    wait_for(lambda: process.poll() is not None or (part(files).exists() and part(files).stat().st_size == HALF))
    assert process.poll() is None
    process.kill()
    assert process.wait(WAIT_SECONDS) == -signal.SIGKILL
    assert listed(files) == sorted([download.LOCK_NAME, *PART])
    site.keep("/some.onnx", CONTENT)
    brought(model(url), files)  # the lock of the dead holds nobody
    assert site.headers[-1]["Range"] == f"bytes={HALF}-"
