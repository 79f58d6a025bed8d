"""Videos for Chromium's fake camera."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

WIDTH, HEIGHT = 640, 480
FRAMES_EACH = 10


def write_video(path: Path, photos: Sequence[Path | None], face_height: int = 400) -> Path:
    """Writes a Y4M file that shows one photo after the other, or grey for None, and returns its path.

    Chromium reads BT.601 and repeats the file from its beginning.
    """
    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F10:1 Ip A1:1 C420jpeg\n".encode())
        for photo in photos:
            frame = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
            if photo is not None:
                with Image.open(photo) as image:
                    size = round(image.width * face_height / image.height), face_height
                    frame.paste(image.resize(size, Image.Resampling.BICUBIC), ((WIDTH - size[0]) // 2, 40))
            planes = cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2YUV_I420)
            for _ in range(FRAMES_EACH):
                file.write(b"FRAME\n" + planes.tobytes())
    return path
