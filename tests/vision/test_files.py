"""Where model files come from, and that no wrong byte is ever run."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from indexer.disk import write_atomically
from indexer.errors import ModelUnavailable
from indexer.vision import prepare
from indexer.vision.files import ModelFiles
from indexer.vision.packs import SFACE, ModelFile
from indexer.vision.pipeline import FacePipeline

CONTENT = b"a model of no size to speak of" * 100


def model(content: bytes = CONTENT, url: str = "http://127.0.0.1:1/nothing", package: str = "") -> ModelFile:
    return ModelFile(
        name="some.onnx",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        package=package,
        package_path="models/some.onnx",
        url=url,
        licence="MIT",
        origin="this test",
        free_sides=False,
        prepared_sha256="",
        engines=("openvino", "onnxruntime"),
    )


@dataclass
class Site:
    """A web server on this machine; `answers` maps a path to the raw bytes that are sent."""

    url: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def serve(self, path: str, body: bytes, status: str = "200 OK", length: int | None = None) -> str:
        size = len(body) if length is None else length
        head = f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
        return self.serve_raw(path, head.encode() + body)

    def serve_raw(self, path: str, answer: bytes) -> str:
        self.answers[path] = answer
        return self.url + path


@pytest.fixture
def site() -> Iterator[Site]:
    here = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append(self.path)
            self.wfile.write(here.answers[self.path])
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that ships the model as its data."""
    name = "ships_a_model"
    folder = tmp_path / "site-packages" / name
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it must not be imported')")
    (folder / "models" / "some.onnx").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(folder.parent)
    return name


def test_the_folder_comes_first_then_the_package_then_the_url(tmp_path: Path, package: str, site: Site) -> None:
    folder = tmp_path / "models"
    files = ModelFiles(folder)
    file = model(url=site.serve("/some.onnx", CONTENT), package=package)
    assert files.read(file) == CONTENT
    assert files.state(file) == str(tmp_path / "site-packages" / package / "models" / "some.onnx")
    assert site.asked == []
    assert not folder.exists()

    write_atomically(folder / "some.onnx", [CONTENT])
    assert files.state(file) == str(folder / "some.onnx")
    (folder / "some.onnx").write_bytes(b"other")
    with pytest.raises(ModelUnavailable):  # what the owner put there is not passed over silently
        files.read(file)
    assert site.asked == []


def test_fetches_what_no_folder_has_once(tmp_path: Path, site: Site) -> None:
    file = model(url=site.serve("/some.onnx", CONTENT), package="no_such_package_here")
    files = ModelFiles(tmp_path / "deep" / "models")
    with pytest.raises(ModelUnavailable, match=r"fetched from http.*at first use"):
        files.state(file)
    assert files.read(file) == CONTENT
    assert files.read(file) == CONTENT
    assert site.asked == ["/some.onnx"]
    assert [p.name for p in files.folder.iterdir()] == ["some.onnx"]
    assert (files.folder / "some.onnx").read_bytes() == CONTENT
    assert files.state(file) == str(files.folder / "some.onnx")


@pytest.mark.parametrize("place", ["folder", "package", "url"])
def test_a_wrong_hash_is_refused_with_both_hashes(tmp_path: Path, package: str, site: Site, place: str) -> None:
    expected, wrong = b"what the pack asks for", CONTENT
    url = site.serve("/some.onnx", wrong)
    file = model(expected, url=url, package=package if place == "package" else "")
    if place == "folder":
        write_atomically(tmp_path / "models" / "some.onnx", [wrong])
    files = ModelFiles(tmp_path / "models")
    with pytest.raises(ModelUnavailable) as caught:
        files.read(file)
    assert caught.value.code == "model_unavailable"
    assert hashlib.sha256(expected).hexdigest() in caught.value.message
    if place != "url":
        assert hashlib.sha256(wrong).hexdigest() in caught.value.message
        with pytest.raises(ModelUnavailable, match="expected 22 bytes"):
            files.state(file)
    else:
        assert url in caught.value.message
        assert not (tmp_path / "models").exists()


def failing_fetch(file: ModelFile, folder: Path) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        ModelFiles(folder).read(file)
    assert not folder.exists() or list(folder.iterdir()) == []
    assert file.url in caught.value.message
    return caught.value.message


def test_fetching_wrong_content(tmp_path: Path, site: Site) -> None:
    same_size = CONTENT[:-1] + b"?"
    message = failing_fetch(model(url=site.serve("/same-size", same_size)), tmp_path / "models")
    assert hashlib.sha256(same_size).hexdigest() in message
    assert hashlib.sha256(CONTENT).hexdigest() in message
    failing_fetch(model(url=site.serve("/longer", CONTENT + b"more")), tmp_path / "models")
    failing_fetch(model(url=site.serve("/empty", b"")), tmp_path / "models")


def test_fetching_what_is_not_there(tmp_path: Path, site: Site) -> None:
    assert "404" in failing_fetch(model(url=site.serve("/gone", b"", "404 Not Found")), tmp_path / "models")
    assert "500" in failing_fetch(model(url=site.serve("/broken", b"", "500 Oh No")), tmp_path / "models")


def test_fetching_from_nobody(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        failing_fetch(model(url=f"http://127.0.0.1:{port}/some.onnx"), tmp_path / "models")
    failing_fetch(model(url="http://[not an address/some.onnx"), tmp_path / "models")
    failing_fetch(model(url="nonsense"), tmp_path / "models")


def test_a_cut_connection(tmp_path: Path, site: Site) -> None:
    half = CONTENT[: len(CONTENT) // 2]
    failing_fetch(model(url=site.serve("/cut", half, length=len(CONTENT))), tmp_path / "models")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = f"{len(CONTENT):x}\r\n".encode() + half
    failing_fetch(model(url=site.serve_raw("/cut-chunk", head + chunk)), tmp_path / "models")
    failing_fetch(model(url=site.serve_raw("/no-http", b"SMTP here, hello\r\n\r\n")), tmp_path / "models")
    failing_fetch(model(url=site.serve_raw("/nothing", b"")), tmp_path / "models")


def test_a_fetch_that_cannot_be_kept(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file").write_text("not a folder")
    file = model(url=site.serve("/some.onnx", CONTENT))
    with pytest.raises(ModelUnavailable, match="cannot be written"):
        ModelFiles(tmp_path / "file" / "models").read(file)


def test_prepared_is_made_once(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path / "models")
    first = files.prepared(SFACE.detector)
    assert first == prepare.prepare(files.read(SFACE.detector), True)
    (kept,) = (tmp_path / "models" / "prepared").iterdir()
    assert kept.name == f"{SFACE.detector.prepared_sha256}.onnx"
    assert kept.read_bytes() == first
    before = kept.stat().st_mtime_ns
    nowhere = replace(SFACE.detector, package="", url="http://127.0.0.1:1/nothing")
    assert files.prepared(nowhere) == first  # the original is not even read
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("file", SFACE.files, ids=lambda file: file.name)
def test_the_packs_know_what_is_prepared(file: ModelFile, tmp_path: Path) -> None:
    prepared = prepare.prepare(ModelFiles(tmp_path).read(file), file.free_sides)
    assert hashlib.sha256(prepared).hexdigest() == file.prepared_sha256


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_a_damaged_prepared_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    files = ModelFiles(tmp_path / "models")
    good = files.prepared(SFACE.detector)
    (target,) = (tmp_path / "models" / "prepared").iterdir()
    flipped = bytearray(good)
    flipped[5000] ^= 1
    match damage:
        case "flip":
            target.write_bytes(flipped)
        case "cut":
            target.write_bytes(good[:-1])
        case "empty":
            target.write_bytes(b"")
        case _:
            target.unlink()
    assert files.prepared(SFACE.detector) == good
    assert target.read_bytes() == good


def test_what_another_onnx_writes_is_used_and_not_kept(tmp_path: Path) -> None:
    other = replace(SFACE.detector, prepared_sha256="0" * 64)
    assert ModelFiles(tmp_path).prepared(other) == ModelFiles(tmp_path).prepared(SFACE.detector)
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [f"{SFACE.detector.prepared_sha256}.onnx"]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    files = ModelFiles(tmp_path / "file" / "models")
    assert files.prepared(SFACE.detector) == prepare.prepare(files.read(SFACE.detector), True)
    FacePipeline(SFACE, files).load()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    write_atomically(tmp_path / "some.onnx", [CONTENT])
    with pytest.raises(ModelUnavailable, match=r"some\.onnx"):
        ModelFiles(tmp_path).prepared(model())


def test_many_prepare_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = set(pool.map(lambda _: ModelFiles(tmp_path).prepared(SFACE.detector), range(6)))
    assert len(answers) == 1
    assert len(list((tmp_path / "prepared").iterdir())) == 1
