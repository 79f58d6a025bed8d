"""The photos of the demo, cut from pictures of real faces that packages ship, and altered copies as probes."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance

from indexer.errors import InvalidRequest
from indexer.files import write_atomically

GROUP = ("insightface", "data/images/t1.jpg")
PORTRAIT = ("insightface", "data/images/Tom_Hanks_54745.png")
ASTRONAUT = ("skimage", "data/astronaut.png")

PEOPLE = {
    "left-1": (20, 225, 215, 445),
    "left-2": (225, 110, 425, 330),
    "left-3": (420, 225, 620, 455),
    "left-4": (700, 300, 890, 520),
    "left-6": (1080, 230, 1275, 450),
}
"""The people in the group photo, with left, top, right and bottom in pixels. The fifth is not enrolled."""

STRANGER = (840, 0, 1090, 260)


@dataclass(frozen=True)
class Probe:
    file: str
    how: str
    """How the photo was altered."""
    expected: str | None
    """The identity in the photo; None for a person who is not enrolled."""


PROBES = (
    Probe("left-1-small.jpg", "half the size", "left-1"),
    Probe("left-2-large.png", "three times the size", "left-2"),
    Probe("left-3-turned.jpg", "turned by 20 degrees", "left-3"),
    Probe("left-4-dark.jpg", "a third of the light", "left-4"),
    Probe("left-6-poor.jpg", "JPEG at quality 12", "left-6"),
    Probe("hanks-wide.webp", "squeezed by 10 %, mirrored", "hanks"),
    Probe("collins-close.jpg", "closer crop, grey", "collins"),
    Probe("stranger.jpg", "somebody not enrolled", None),
)


def make_photos(folder: Path) -> tuple[Path, Path]:
    """Writes `photos/` (a folder for each person to enroll) and `probes/` below `folder`.

    Raises InvalidRequest if the packages that ship the pictures are not installed.
    """
    group, portrait, astronaut = (_open(*place) for place in (GROUP, PORTRAIT, ASTRONAUT))
    people = {name: group.crop(box) for name, box in PEOPLE.items()}
    people |= {"hanks": portrait, "collins": astronaut.crop((100, 0, 340, 240))}
    photos, probes = folder / "photos", folder / "probes"
    for name, photo in people.items():
        _write(photos / name / "1.jpg", photo, quality=95)
    for file, (photo, quality) in _probes(people, astronaut, group.crop(STRANGER)).items():
        _write(probes / file, photo, quality)
    return photos, probes


def _probes(
    people: Mapping[str, Image.Image], astronaut: Image.Image, stranger: Image.Image
) -> dict[str, tuple[Image.Image, int]]:
    """Returns the picture of each probe, and its JPEG quality."""
    dark = ImageEnhance.Brightness(people["left-4"]).enhance(0.33)
    wide = people["hanks"].transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((224, 202))
    close = astronaut.crop((160, 30, 290, 200)).convert("L")
    return {
        "left-1-small.jpg": (_scaled(people["left-1"], 0.5), 90),
        "left-2-large.png": (_scaled(people["left-2"], 3), 90),
        "left-3-turned.jpg": (people["left-3"].rotate(20, Image.Resampling.BICUBIC), 90),
        "left-4-dark.jpg": (dark, 90),
        "left-6-poor.jpg": (people["left-6"], 12),
        "hanks-wide.webp": (wide, 90),
        "collins-close.jpg": (close, 85),
        "stranger.jpg": (stranger, 90),
    }


def _scaled(photo: Image.Image, factor: float) -> Image.Image:
    return photo.resize((round(photo.width * factor), round(photo.height * factor)), Image.Resampling.BICUBIC)


def _open(package: str, path: str) -> Image.Image:
    spec = importlib.util.find_spec(package)
    roots = spec.submodule_search_locations if spec else None
    file = Path(next(iter(roots))) / path if roots else None
    if file is None or not file.is_file():
        raise InvalidRequest(
            "the demo's photos are not installed; `make demo` installs them, or: "
            "pip install --no-deps insightface==2.1 scikit-image==0.26.0"
        )
    return Image.open(file).convert("RGB")


def _write(path: Path, photo: Image.Image, quality: int) -> None:
    """Writes the same bytes each time, and only if they differ, so that a second demo enrolls nothing again."""
    data = io.BytesIO()
    photo.save(data, format={".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix], quality=quality)
    if not path.is_file() or path.read_bytes() != data.getvalue():
        write_atomically(path, [data.getvalue()])
