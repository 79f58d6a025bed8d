"""Pulling a model pack: which files are fetched, from URLs, mirrors, folders and ZIPs, and what disturbs it."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from pathlib import Path
from unittest.mock import Mock

import pytest

from indexer.errors import ModelUnavailable
from indexer.models import partial_file, pull
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.models.partial_file import Progress
from indexer.types import sha256
from tests.indexer.models.pulling import (
    CONTENT,
    HALF,
    KNOWN_OR_NOT,
    MEMBERS,
    NOWHERE,
    OTHER,
    PART,
    SMALL,
    Models,
    model,
    pack,
    pack_in_zip,
    zipped,
)
from tests.indexer.models.web_server import WebServer, chunked
from tests.indexer.vectors.disks import limited_file_size
from tests.waiting import DEADLINE, wait_for


def test_models_folder_is_created(tmp_path: Path, server: WebServer) -> None:
    files = ModelFiles(tmp_path / "deep" / "models")
    second = model(server.serve_file("/small.onnx", SMALL), SMALL, name="small.onnx")
    pulled = pull.pull(pack(model(server.serve_file("/some.onnx", CONTENT)), second), files)
    assert [file.path.read_bytes() for file in pulled] == [CONTENT, SMALL]
    assert sorted(path.name for path in files.folder.iterdir()) == ["small.onnx", "some.onnx"]


def test_each_file_is_hashed_once(models: Models, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = Mock(side_effect=hashlib.file_digest)
    monkeypatch.setattr(hashlib, "file_digest", digest)
    models.pull(model(server.serve_file("/some.onnx", CONTENT)))
    assert [Path(call.args[0].name).name for call in digest.call_args_list] == ["small.onnx", "some.onnx.part"]


def test_files_of_an_installed_package_are_present(tmp_path: Path) -> None:
    pulled = pull.pull(SFACE, ModelFiles(tmp_path / "models"))
    assert [file.source for file in pulled] == ["", ""]
    assert [file.sha256 for file in pulled] == [file.sha256 for file in SFACE.files]
    assert not (tmp_path / "models").exists()


def test_intact_file_is_left_alone_and_a_damaged_one_replaced(models: Models, server: WebServer) -> None:
    models.path.write_bytes(CONTENT)
    before = models.path.stat()
    assert models.pull(model(f"{NOWHERE}/some.onnx")).source == ""
    assert models.path.stat() == before
    models.path.write_bytes(CONTENT[:-1])
    models.fail(model(f"{NOWHERE}/some.onnx"), left=["some.onnx"])
    assert models.path.read_bytes() == CONTENT[:-1]
    url = server.serve_file("/some.onnx", CONTENT)
    assert models.pull(model(url)).source == url


def test_unknown_hash_is_recorded_and_enforced(models: Models, server: WebServer) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT), known=False)
    models.pull(file)
    (models.folder / "some.onnx.sha256").unlink()
    models.pull(file)
    assert models.files.with_known_hash(file).sha256 == sha256(CONTENT)
    assert len(server.paths) == 1
    models.path.unlink()
    server.serve_file("/some.onnx", OTHER)
    message = models.fail(file, left=["some.onnx.sha256"])
    assert all(word in message for word in (sha256(CONTENT), sha256(OTHER), "recorded in some.onnx.sha256"))
    server.serve_file("/some.onnx", CONTENT)
    models.pull(file)


def test_known_size_is_enforced_without_a_hash(models: Models, server: WebServer) -> None:
    file = replace(model(server.serve_file("/some.onnx", CONTENT + b"?"), known=False), size=len(CONTENT))
    assert "expected 600000 bytes" in models.fail(file)
    models.path.write_bytes(CONTENT[:-1])
    url = server.serve_file("/some.onnx", CONTENT)
    assert models.pull(replace(file, url=url)).source == url


def test_missing_disk_space_is_reported_before_downloading(models: Models, server: WebServer) -> None:
    size = 10**16
    file = replace(model(server.respond("/some.onnx", CONTENT, length=size), known=False), size=size)
    message = models.fail(file)
    assert f"needs {size} bytes in {models.folder}" in message
    assert "are free" in message


@pytest.mark.parametrize("way", ["url", "folder", "zip", "zip url"])
def test_full_disk_is_reported_and_cleaned_up(models: Models, server: WebServer, tmp_path: Path, way: str) -> None:
    file = model(server.serve_file("/some.onnx", CONTENT))
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    (tmp_path / "x.zip").write_bytes(zipped({"some.onnx": CONTENT}))
    zip_url = server.serve_file("/x.zip", zipped({"some.onnx": CONTENT}))
    mirror = {"url": None, "folder": str(tmp_path), "zip": str(tmp_path / "x.zip"), "zip url": zip_url}[way]
    with limited_file_size(100_000):
        message = models.fail(file, mirror)
    assert f"some.onnx cannot be written to {models.folder}: File too large" in message
    models.pull(file, mirror)


def test_downloaded_zip_is_kept_when_there_is_no_space_for_its_members(
    models: Models, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = pack_in_zip(server.serve_file("/some.zip", zipped({"det.onnx": CONTENT, "rec.onnx": OTHER})))
    usage = shutil.disk_usage(models.folder)
    with monkeypatch.context() as full:
        free = iter([usage, usage._replace(free=0)])
        full.setattr(shutil, "disk_usage", lambda _: next(free))
        assert "det.onnx needs" in models.fail_pack(wanted, left=["some.zip.part", "some.zip.part.state"])
    models.pull_pack(wanted)
    assert len(server.paths) == 1
    assert models.names == ["det.onnx", "rec.onnx"]


def test_unwritable_folder_is_reported(models: Models, server: WebServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ModelUnavailable, match=r"cannot be written to .*models"):
        pull.pull(pack(model()), ModelFiles(tmp_path / "file" / "models"))
    models.path.mkdir()
    assert "cannot be written" in models.fail(model(server.serve_file("/x", CONTENT)), left=["some.onnx"])


@KNOWN_OR_NOT
def test_zip_is_downloaded_once_and_deleted(models: Models, server: WebServer, known: bool) -> None:
    url = server.serve_file("/v1/some.zip", zipped(MEMBERS), cuts=[HALF])
    pulled = models.pull_pack(pack_in_zip(url, known=known))
    assert [file.path.read_bytes() for file in pulled] == [CONTENT, OTHER]
    assert [file.source for file in pulled] == [url, url]
    assert len(server.paths) == 2
    assert {name for name in models.names if not name.endswith(".sha256")} == {"det.onnx", "rec.onnx"}
    finished = [report.name for report in models.reports if report.done == report.total]
    assert finished == ["some.zip", "det.onnx", "rec.onnx"]


def test_zips_that_differ_only_in_the_query_are_not_confused(models: Models, server: WebServer) -> None:
    first = pack_in_zip(server.serve_file("/zips?name=a", zipped({"det.onnx": CONTENT})))
    second = replace(first.embedder, url=server.serve_file("/zips?name=b", zipped({"rec.onnx": OTHER})))
    pulled = models.pull_pack(replace(first, embedder=second))
    assert [file.path.read_bytes() for file in pulled] == [CONTENT, OTHER]


def test_zip_without_validator_and_length_is_downloaded_once(models: Models, server: WebServer) -> None:
    models.pull_pack(pack_in_zip(server.respond_raw("/some.zip", chunked(zipped(MEMBERS)))))
    assert len(server.paths) == 1
    assert models.names == ["det.onnx", "rec.onnx"]


def test_interrupted_zip_survives_wrong_mirrors_and_is_resumed(
    models: Models, server: WebServer, tmp_path: Path
) -> None:
    left = ["some.zip.part", "some.zip.part.state"]
    wanted = pack_in_zip(server.serve_file("/some.zip", zipped(MEMBERS), cuts=[HALF, 0, 0, 0]))
    assert f"{HALF} bytes are stored" in models.fail_pack(wanted, left=left)
    (tmp_path / "bad.zip").write_bytes(b"not a ZIP")
    for mirror in (f"{server.url}/elsewhere", str(tmp_path), str(tmp_path / "bad.zip")):
        models.fail_pack(wanted, mirror, left=left)
        assert (models.folder / "some.zip.part").stat().st_size == HALF
    models.pull_pack(wanted)
    assert server.ranges[-1] == f"bytes={HALF}-"
    assert models.names == ["det.onnx", "rec.onnx"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "page", "text", "empty", "no member"])
def test_damaged_zip_is_refused_and_deleted(models: Models, server: WebServer, damage: str) -> None:
    good = zipped({"some/rec.onnx": OTHER, "some/det.onnx": CONTENT}, zipfile.ZIP_STORED)
    flipped = bytearray(good)
    flipped[len(good) // 2 + HALF] ^= 1
    bad, expected = {
        "cut": (good[:-HALF], "damaged or not a ZIP"),
        "flipped": (bytes(flipped), "Bad CRC-32"),
        "page": (b"<html>", "sends a web page"),
        "text": (b"Please log in", "damaged or not a ZIP"),
        "empty": (b"", "damaged or not a ZIP"),
        "no member": (zipped({"a/b.onnx": CONTENT}), "no files named det.onnx; expected one, found a/b.onnx"),
    }[damage]
    url = server.respond("/some.zip", bad, head="Content-Type: text/html\r\n" if damage == "page" else "")
    message = models.fail_pack(pack_in_zip(url))
    assert expected in message
    assert url in message


def test_ambiguous_member_of_a_zip_is_refused(models: Models, tmp_path: Path) -> None:
    mirror = tmp_path / "some.zip"
    mirror.write_bytes(zipped({"a/some.onnx": OTHER, "b/some.onnx": CONTENT}))
    assert "expected one, found a/some.onnx, b/some.onnx" in models.fail(model(), str(mirror))
    mirror.write_bytes(zipped({"a/some.onnx": OTHER, "some.onnx": CONTENT}))
    models.pull(replace(model(), member="some.onnx"), str(mirror))


def test_zip_bomb_is_stopped(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "some.zip"
    bomb = zipped({"some.onnx": bytes(10**8)})
    mirror.write_bytes(bomb)
    assert "exceeds 600000 bytes" in models.fail(model(), str(mirror))
    lying = bomb.replace((10**8).to_bytes(4, "little"), (600_000).to_bytes(4, "little"))
    assert lying != bomb
    mirror.write_bytes(lying)
    assert "Bad CRC-32" in models.fail(model(), str(mirror))
    monkeypatch.setattr(partial_file, "MAX_BYTES", 10**6)
    mirror.write_bytes(bomb)
    assert "exceeds 1000000 bytes" in models.fail(model(known=False), str(mirror))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_without_bounded_memory_is_refused(models: Models, tmp_path: Path, compression: int) -> None:
    (tmp_path / "some.zip").write_bytes(zipped({"some.onnx": CONTENT}, compression))
    assert "expected deflate" in models.fail(model(), str(tmp_path / "some.zip"))


def test_mirror_may_have_files_or_their_zip(models: Models, server: WebServer) -> None:
    wanted = pack_in_zip(f"{NOWHERE}/x/some%20v1.zip?download=1")
    server.serve_file("/mirror/some%20v1.zip", zipped(MEMBERS))
    models.pull_pack(wanted, f"{server.url}/mirror")
    assert server.paths == ["/mirror/det.onnx", "/mirror/some%20v1.zip", "/mirror/rec.onnx"]
    assert models.names == ["det.onnx", "rec.onnx"]
    server.paths.clear()
    for name, content in (("det.onnx", CONTENT), ("rec.onnx", OTHER)):
        (models.folder / name).unlink()
        server.serve_file(f"/mirror/{name}", content)
    models.pull_pack(wanted, f"{server.url}/mirror/")
    assert server.paths == ["/mirror/det.onnx", "/mirror/rec.onnx"]


def test_mirror_keeps_its_query(models: Models, server: WebServer) -> None:
    server.serve_file("/mirror/some.onnx?sig=1", CONTENT)
    models.pull(model(), f"{server.url}/mirror?sig=1")


def test_zip_may_come_from_another_url_or_path(models: Models, server: WebServer, tmp_path: Path) -> None:
    wanted, mirror = pack_in_zip(f"{NOWHERE}/x.zip"), tmp_path / "other.zip"
    models.pull_pack(wanted, server.serve_file("/any/name.zip", zipped(MEMBERS)))
    assert server.paths == ["/any/name.zip"]
    for name in ("det.onnx", "rec.onnx"):
        (models.folder / name).unlink()
    mirror.write_bytes(zipped(MEMBERS))
    assert [file.source for file in models.pull_pack(wanted, str(mirror))] == [str(mirror)] * 2
    assert mirror.exists()


def test_files_or_their_zip_are_copied_from_a_folder(models: Models, tmp_path: Path) -> None:
    folder, wanted = tmp_path / "mirror", pack_in_zip(f"{NOWHERE}/a/x.zip")
    folder.mkdir()
    (folder / "x.zip").write_bytes(zipped(MEMBERS))
    assert [file.source for file in models.pull_pack(wanted, str(folder))] == [str(folder / "x.zip")] * 2
    for name, content in MEMBERS.items():
        (folder / Path(name).name).write_bytes(content)
        (models.folder / Path(name).name).unlink(missing_ok=True)
    pulled = models.pull_pack(wanted, str(folder))
    assert [file.source for file in pulled] == [str(folder / "det.onnx"), str(folder / "rec.onnx")]
    assert models.names == ["det.onnx", "rec.onnx"]
    assert not (models.folder / "det.onnx").is_symlink()
    assert (models.folder / "det.onnx").stat().st_nlink == 1
    assert sorted(path.name for path in folder.iterdir()) == ["det.onnx", "genderage.onnx", "rec.onnx", "x.zip"]


def test_wrong_files_in_a_folder_or_zip_are_refused(models: Models, server: WebServer, tmp_path: Path) -> None:
    for content, found in ((OTHER, sha256(OTHER)), (CONTENT[:HALF], f"found {HALF} bytes")):
        (tmp_path / "some.onnx").write_bytes(content)
        message = models.fail(model(), str(tmp_path))
        assert "expected 600000 bytes" in message
        assert found in message
        assert (tmp_path / "some.onnx").read_bytes() == content
    url = server.serve_file("/some.zip", zipped({"det.onnx": CONTENT, "rec.onnx": CONTENT}))
    assert sha256(OTHER) in models.fail_pack(pack_in_zip(url), left=["det.onnx"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, BrokenPipeError])
def test_pull_resumes_after_its_listener_raised(models: Models, server: WebServer, error: type[BaseException]) -> None:
    def interrupt(_: Progress) -> None:
        raise error

    url = server.serve_file("/some.onnx", CONTENT)
    with pytest.raises((error, ModelUnavailable)):
        models.pull_pack(pack(model(url)), listener=interrupt)
    assert models.names == sorted(PART)
    models.pull(model(url))
    assert server.ranges[1] is not None


def test_partial_file_of_another_source_is_deleted(models: Models, server: WebServer, tmp_path: Path) -> None:
    models.fail(model(server.serve_file("/some.onnx", OTHER, cuts=[HALF, 0, 0, 0])), left=PART)
    (tmp_path / "some.onnx").write_bytes(CONTENT)
    models.pull(model(), str(tmp_path))


def serve_half(server: WebServer, proceed: threading.Event) -> str:
    """Returns the URL of a file whose second half is sent when `proceed` is set."""

    def response(_: Message) -> Iterator[bytes]:
        yield b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 600000\r\n\r\n' + CONTENT[:HALF]
        proceed.wait(DEADLINE)
        yield CONTENT[HALF:]

    return server.respond_raw("/some.onnx", response)


def test_second_pull_waits_for_the_first(models: Models, server: WebServer) -> None:
    proceed, waiting = threading.Event(), threading.Event()
    wanted = pack(model(serve_half(server, proceed)))

    def listen(progress: Progress) -> None:
        if progress == Progress("some", 0, None, waiting=True):
            waiting.set()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(models.pull_pack, wanted)
        wait_for(lambda: models.stored == HALF)
        second = pool.submit(models.pull_pack, wanted, listener=listen)
        assert waiting.wait(DEADLINE)
        proceed.set()
        assert [file.source for file in first.result()] == [wanted.detector.url, ""]
        assert [file.source for file in second.result()] == ["", ""]
    assert models.path.read_bytes() == CONTENT
    assert server.paths == ["/some.onnx"]
    assert models.names == ["some.onnx"]


def test_many_pulls_at_once_fetch_the_same_file(models: Models, server: WebServer) -> None:
    wanted = pack(model(server.serve_file("/some.onnx", CONTENT)))
    with ThreadPoolExecutor(6) as pool:
        hashes = list(pool.map(lambda _: models.pull_pack(wanted)[0].sha256, range(6)))
    assert hashes == [sha256(CONTENT)] * 6
    assert models.names == ["some.onnx"]


PULL = """
import sys
from pathlib import Path
from tests.indexer.models.pulling import model, pack
from indexer.models.pull import pull
from indexer.models.model_files import ModelFiles
pull(pack(model(sys.argv[1])), ModelFiles(Path(sys.argv[2])))
"""


def test_killed_pull_is_resumed(models: Models, server: WebServer) -> None:
    url = serve_half(server, server.stopping)
    process = subprocess.Popen([sys.executable, "-c", PULL, url, str(models.folder)])
    wait_for(lambda: process.poll() is not None or models.stored == HALF)
    assert process.poll() is None
    process.kill()
    assert process.wait(DEADLINE) == -signal.SIGKILL
    assert models.names == sorted([pull.LOCK_NAME, *PART])
    server.serve_file("/some.onnx", CONTENT)
    models.pull(model(url))
    assert server.ranges[-1] == f"bytes={HALF}-"
