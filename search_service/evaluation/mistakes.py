"""The worst mistakes of an evaluation, with small pictures of whom they are about."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from indexer.types import Face
from indexer.vision.decode import Limits, decode

SIDE = 132
"""Pixels of a picture: with 200 of them a report has 1 MB."""

AROUND = 1.9
"""Sides of the face's box that the picture shows: the head with its hair."""

DECODED_SIDE = 1000
"""As the pipeline looks at photos first."""

QUALITY = 80


@dataclass(frozen=True)
class Shot:
    """One photo. `picture` is a JPEG, None where the photo cannot be shown."""

    image: str
    external_id: str
    picture: bytes | None


@dataclass(frozen=True)
class Mistake:
    """A probe, the enrolled photo of somebody else that it is most like, and that of its own person, where they are
    enrolled; with their scores, `own_score` None where the person is not among the candidates."""

    probe: Shot
    other: Shot | None
    other_score: float | None
    own: Shot | None
    own_score: float | None


@dataclass(frozen=True)
class Mistakes:
    """The worst first."""

    threshold: float
    """The service's own for FPIR 1 %."""
    strangers_let_in: Sequence[Mistake]
    """Those that score highest with somebody, above a threshold or not."""
    confused: Sequence[Mistake]
    """Mated probes whose top candidate is somebody else."""
    missed: Sequence[Mistake]
    """Mated probes whose top candidate is right and below the threshold."""
    not_enrolled: Sequence[tuple[Shot, str]]
    not_searched: Sequence[tuple[Shot, str]]


def portrait(image: bytes, max_pixels: int, face: Face | None) -> bytes:
    """A JPEG of SIDE pixels a side. Raises RejectedImage for what cannot be decoded."""
    photo = decode(image, Limits(len(image), max_pixels), DECODED_SIDE)
    picture = Image.fromarray(photo.pixels)
    if face is None:
        picture.thumbnail((SIDE, SIDE))
    else:
        (sx, sy), box = photo.scale, face.detection.box
        half = max(box.w, box.h) * AROUND / 2
        x, y = box.center
        around = (x - half) / sx, (y - half) / sy, (x + half) / sx, (y + half) / sy
        # What lies outside of the photo is black.
        picture = picture.crop(around).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
