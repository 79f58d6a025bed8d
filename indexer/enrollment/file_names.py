"""What the names of files and folders say: which are photos, which belong to the system, and which are equal."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from indexer.gallery.spelling import normalize_text

IMAGE_NAMES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".gif",
    ]
)
"""Suffixes of the files in a folder that count as photos. Files named explicitly always do."""

SYSTEM_NAMES = frozenset(
    [
        "__macosx",  # macOS, in ZIP files
        "network trash folder",
        "temporary items",
        "$recycle.bin",  # Windows
        "recycler",
        "recycled",
        "system volume information",
        "found.000",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "lost+found",  # Linux
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@tmp",
        "@sharebin",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "@transcode",
        "network recycle bin",
        "~snapshot",  # NetApp
        "trashbox",  # Buffalo
    ]
)
"""Folders and files of operating systems and network storage that hold no photos to enroll: bins, thumbnails and
snapshots. In lower case; the file systems that have them ignore it. Other such names start with a dot."""


_CAMERA_PREFIXES = (
    *("img", "_mg", "dsc", "_dsc", "dscn", "dscf", "sam", "cimg", "imgp", "pict", "gopr", "dji", "sdim"),  # cameras
    *("mvimg", "pxl", "vid", "pano", "burst", "win", "wp"),  # phones
    *("fb_img", "received", "snapchat", "signal", "telegram"),  # apps
)
"""Followed by four digits or more, as the Design rule for Camera File system (JEITA CP-3461) has them, or by a date."""

_WORDS_FOR_PHOTOS = (
    *("whatsapp image", "screenshot", "screen shot", "fullsizerender", "image", "photo", "foto", "picture", "scan"),
    *("webcam", "capture", "selfie"),
)

_CAMERA_SUFFIX = r"(?:[\W\d_]|wa(?=\d)|[et](?=\d)|at|on|am|pm|pro|hdr|burst|cover|portrait|edited)*"
"""What follows in such names: numbers, dates, times and the words for how a photo was taken."""

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"

CAMERA_STEM = re.compile(
    rf"(?:{'|'.join(_CAMERA_PREFIXES)})[\W_e]*\d{{4}}{_CAMERA_SUFFIX}"
    rf"|(?:{'|'.join(_WORDS_FOR_PHOTOS)}){_CAMERA_SUFFIX}"
    rf"|{_YEAR}{_MONTH}{_DAY}[\W_t]+\d\d{_CAMERA_SUFFIX}"  # 20261124_101502
    rf"|{_YEAR}[-_.]{_MONTH}[-_.]{_DAY}{_CAMERA_SUFFIX}"  # 2026-11-24 10.15.02
    r"|\d{3}_\d{4}"  # 100_0001
    r"|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)
"""Stems that cameras, phones and apps give to photos: they do not name the person."""

NUMBERED_STEM = re.compile(r"(?P<name>.*[^ _-])(?:[ _-]+\d+| ?\(\d+\))")
"""A name and the number of a photo: `ana_1`, `ana-1`, `ana 1` and, as Windows writes it, `ana (1)`."""


MAX_DIGITS = 6
"""Digits of a number that counts the photos of a person: an archive has 200,000 files."""


def identity_of_stem(stem: str) -> str:
    """Returns the identity of a file's stem, in Unicode normalization form C.

    It is `ana` for `ana_1` and `ana (2)`, which is only a guess, and the whole stem where it has no number, or is a
    camera's.
    """
    whole = normalize_text(stem)
    numbered = NUMBERED_STEM.fullmatch(whole)
    if numbered is None or is_camera_stem(whole) or is_camera_stem(numbered["name"]):
        return whole
    return numbered["name"]


def is_camera_stem(stem: str) -> bool:
    return CAMERA_STEM.fullmatch(stem) is not None


def are_photos_of_one(stems: Collection[str]) -> bool:
    """Returns whether no stem names a person: all are a camera's or count from 0 or 1."""
    counted = {stem for stem in stems if stem.isdecimal() and len(stem) <= MAX_DIGITS}
    numbers = sorted({int(stem) for stem in counted})
    first = numbers[0] if numbers else 1
    is_count = first in (0, 1) and numbers == list(range(first, first + len(numbers)))
    return is_count and all(is_camera_stem(stem) for stem in stems if stem not in counted)


def is_photo_name(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_NAMES


def is_system_path(parts: Iterable[str]) -> bool:
    """Returns whether a part of a path is hidden or one of SYSTEM_NAMES."""
    return any(part.startswith(".") or part.lower() in SYSTEM_NAMES for part in parts)


def relative_name(name: str) -> str:
    """Returns a relative path with forward slashes and without `.` and empty parts; an absolute path stays absolute."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    return ("/" if plain.startswith("/") else "") + "/".join(parts)


def match_key(name: str) -> str:
    """Returns a text that is the same for all names of a file that people take for equal.

    Slashes, a leading `./`, the Unicode normalization form and the case of the suffix do not count.
    """
    plain = normalize_text(relative_name(name))
    stem = plain.removesuffix(PurePosixPath(plain).suffix)
    return stem + plain[len(stem) :].lower()


def keys_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names with each match key."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(match_key(name), []).append(name)
    return found


def common_root(names: Sequence[str]) -> str:
    """Returns the single top folder of relative names, with a slash; '' if there is none."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or not all("/" in name for name in names):
        return ""
    return f"{tops.pop()}/"
