"""What decoding costs: memory for each pixel of the header, and formats that cost far more than photos do."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from indexer.errors import RejectedImage
from indexer.types import Reason
from indexer.vision import pillow_decoder, tiff
from tests import photos
from tests.indexer.vision.common import rejection
from tests.indexer.vision.tiff_files import Kind, write

SIDE = 1800

STRIPS_MIB = 24
"""Memory of the strips in which pixels are converted, which does not depend on the size of the image."""

BYTES_OF_PIXEL = {"webp": 17, "avif": 13}
"""As the documentation of `Limits` states."""

MEASURE_PEAKS = """
import json, pathlib, re, sys
from indexer.vision.decode import decode

def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

decode(pathlib.Path(sys.argv[1]).read_bytes())
peaks = []
for name in sys.argv[1:]:
    data = pathlib.Path(name).read_bytes()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak (proc_pid_clear_refs(5))
    before = memory("VmRSS")
    shape = decode(data).pixels.shape
    peaks.append(memory("VmHWM") - before)
print(json.dumps(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resets the peak memory by Linux' /proc")
def test_image_takes_no_more_than_its_share_of_memory(tmp_path: Path) -> None:
    gray = np.repeat((np.arange(SIDE) // 37 % 7 * 30).astype(np.uint8)[None], SIDE, 0)
    color = np.dstack([gray] * 3)
    clear = np.dstack([color, 255 - gray])
    files = {
        "rgb.png": photos.encode(color, "PNG"),
        "rgba.png": photos.encode(clear, "PNG"),
        "gray-alpha.png": photos.encode(clear[..., 2:], "PNG"),
        "palette.png": photos.encode(Image.fromarray(gray).convert("P"), "PNG", transparency=3),
        "gray16.png": photos.encode(Image.fromarray(gray.astype(np.uint16) * 200), "PNG"),
        "rgba16.png": cv2.imencode(".png", clear.astype(np.uint16) * 200)[1].tobytes(),
        "cmyk.jpg": photos.encode(Image.fromarray(np.dstack([gray] * 4), "CMYK"), "JPEG"),
        "turned.jpg": photos.encode(color, "JPEG", exif=photos.exif(6), quality=50),
        "progressive.jpg": photos.encode(color, "JPEG", progressive=True, subsampling=2, quality=50),
        "rgba.webp": photos.encode(clear, "WEBP", method=0),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURE_PEAKS, *(str(tmp_path / name) for name in files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for name, peak in zip(files, json.loads(run.stdout), strict=True):
        allowed = BYTES_OF_PIXEL.get(name.partition(".")[2], 9) * SIDE**2 / 2**20 + STRIPS_MIB
        assert peak < allowed, f"{name} takes {peak:.0f} MiB"


@pytest.mark.parametrize("method", [1, 2], ids=["RLE8", "RLE4"])
def test_run_length_coded_bmp_is_refused(method: int) -> None:
    header = struct.pack("<LllHHLLllLL", 40, 2, 1, 1, 8 // method, method, 4, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<LHHL", 62, 0, 0, 58) + header + bytes(8) + b"\2\1\0\1"
    assert "run-length coded BMPs are not supported" in rejection(data, Reason.UNREADABLE_IMAGE)


@pytest.mark.parametrize("block", [None, (16, 16)], ids=["strips", "tiles"])
@pytest.mark.parametrize("is_bigtiff", [False, True])
def test_tiff_of_too_many_parts_is_refused(
    monkeypatch: pytest.MonkeyPatch, block: tuple[int, int] | None, is_bigtiff: bool
) -> None:
    data = write(np.full((70, 16, 3), 90, np.uint8), Kind("<", 2, block=block, is_bigtiff=is_bigtiff))
    parts = 10 if block is None else 5
    monkeypatch.setattr(tiff, "MAX_PARTS", parts - 1)
    with pytest.raises(RejectedImage, match=f"it has more than {parts - 1} strips or tiles"):
        pillow_decoder.decode(data)
    monkeypatch.setattr(tiff, "MAX_PARTS", parts)
    layout = tiff.read(data)
    assert layout is not None
    assert layout.problem is None
