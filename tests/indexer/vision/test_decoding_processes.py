"""Images of rare formats are decoded in other processes, which can be ended."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from indexer.types import Reason
from indexer.vision import decoding_processes, pillow_decoder
from indexer.vision.decode import Limits, decode, end_processes
from tests import photos
from tests.indexer.vision.common import rejection
from tests.waiting import wait_for

RARE = ("BMP", "TIFF", "HEIF", "AVIF")


def processes() -> list[psutil.Process]:
    """Returns the processes that decode, of this one."""
    return [one for one in psutil.Process().children() if any("decoding_processes" in word for word in one.cmdline())]


@pytest.fixture(autouse=True)
def _no_processes() -> Iterator[None]:
    end_processes()
    assert not processes()
    yield
    end_processes()


@pytest.mark.parametrize("form", RARE)
def test_pixels_are_those_of_this_process(form: str) -> None:
    data = photos.encode(photos.pixels(photos.astronaut())[:200, :160], form, exif=photos.exif(6))
    photo, here = decode(data), pillow_decoder.decode(data)
    assert (photo.width, photo.height, photo.scale) == (here.width, here.height, 1)
    assert (photo.pixels == here.pixels).all()
    assert len(processes()) == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_usual_formats_need_no_process(form: str) -> None:
    decode(photos.encode(photos.pixels(photos.astronaut()), form))
    assert not processes()


def test_process_is_kept_for_the_next_images_and_reports_their_problems() -> None:
    image = photos.pixels(photos.astronaut())
    data = photos.encode(image, "BMP")
    decode(data)
    (first,) = processes()
    rejection(data, Reason.IMAGE_TOO_LARGE, limits=Limits(max_pixels=1000))
    rejection(data[:100], Reason.UNREADABLE_IMAGE)
    assert decode(photos.encode(image, "TIFF")).width == 512
    assert processes() == [first]


def test_image_that_takes_too_long_is_rejected_and_its_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    data = photos.encode(photos.pixels(photos.astronaut()), "BMP")
    decode(data)
    (process,) = processes()
    monkeypatch.setattr(decoding_processes, "SECONDS", 0.1)
    process.suspend()
    assert "decoding it takes more than" in rejection(data, Reason.UNREADABLE_IMAGE)
    assert not process.is_running()
    monkeypatch.undo()
    assert decode(data).width == 512


def test_process_that_ended_is_replaced() -> None:
    data = photos.encode(photos.pixels(photos.astronaut()), "BMP")
    decode(data)
    (process,) = processes()
    process.kill()
    wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE, "the process has ended")
    assert decode(data).width == 512
    assert processes() != [process]


def test_image_on_which_the_decoder_crashes_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        decoding_processes,
        "COMMAND",
        "import os, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); "
        "s.sendall(b'ready'); s.recv(1); os._exit(3)",
    )
    message = rejection(photos.encode(photos.pixels(photos.astronaut()), "BMP"), Reason.UNREADABLE_IMAGE)
    assert "the decoder ended" in message
    assert not processes()


def test_memory_of_the_process_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    code = decoding_processes.COMMAND.replace(
        "; serve(", "; import indexer.vision.decoding_processes as d; d.MEMORY = 0; serve("
    )
    monkeypatch.setattr(decoding_processes, "COMMAND", code)
    data = photos.encode(photos.pixels(photos.astronaut()), "BMP")
    rejection(data, Reason.IMAGE_TOO_LARGE, limits=Limits(max_pixels=512 * 512))
