"""What the names of files and folders say: which are photos, which belong to the system, and which are equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    ]
)
"""Folders and files of operating systems and network storage that hold no photos to enroll: bins, thumbnails and
snapshots. In lower case; the file systems that have them ignore it. Other such names start with a dot."""


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
