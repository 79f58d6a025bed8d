"""Stores the descriptions of photos in the home folder, so that they are not computed again.

The key of a description is the image's SHA-256, which face was wanted, and everything else that it depends on: see
`kind_of`. Descriptions hold embeddings, which are personal data, so only the owner of the home folder may read them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from indexer import models, vision
from indexer.app_context import AppContext
from indexer.errors import RejectedImage
from indexer.files import remove_leftovers, write_atomically
from indexer.models.packs import Pack
from indexer.types import Box, Detection, Face, Pick, Quality, Reason, Vectors, sha256
from indexer.vision.decode import Limits
from indexer.vision.liveness.base import LivenessCheck
from indexer.vision.pipeline import FacePipeline, ImageResult, Options
from indexer.vision.runtime import Threads

MOST_BYTES = 2 * 2**30
"""Limit of all files together: two million photos of `sface`. The least recently used files are deleted."""

AT_ONCE = 256
"""Descriptions in one file, and the most that an interrupted run loses."""

OPEN = 8
"""Files held in memory: one for each worker, as photos are read in the order in which they were stored."""

ENDING = ".faces"


@dataclass(frozen=True, eq=False)
class _File:
    """The descriptions of one file: the JSON part of each, and where its embeddings begin."""

    entries: Sequence[dict[str, Any]]
    starts: Sequence[int]
    vectors: Vectors


class Cache:
    """The descriptions of one kind, below `folder`. Thread-safe.

    Unreadable files are ignored. After a failure to write, as on a full disk, nothing more is stored.
    """

    def __init__(self, folder: Path, kind: str, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._own = folder / kind
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._new: dict[str, ImageResult] = {}
        self._open: OrderedDict[Path, _File | None] = OrderedDict()
        self._places: dict[str, tuple[Path, int]] = {}
        self.added = 0
        """Descriptions that were added."""
        self.found = 0
        """Descriptions that were found."""
        self.failure: OSError | None = None
        """Why nothing more is stored."""
        remove_leftovers(self._own / "photos")
        for path in sorted(self._own.glob(f"photos-*{ENDING}")):
            self._places |= {key: (path, row) for row, key in enumerate(_keys(path))}

    def find(self, key: str) -> ImageResult | None:
        with self._lock:
            result = self._find(key)
            self.found += result is not None
            return result

    def put(self, key: str, result: ImageResult) -> None:
        with self._lock:
            self.added += 1
            if self.failure is not None:
                return
            self._new[key] = result
            if len(self._new) >= AT_ONCE:
                self._write()

    def flush(self) -> None:
        """Writes pending descriptions, and deletes old files."""
        with self._lock:
            self._write()
            self._delete_old_files()

    def _find(self, key: str) -> ImageResult | None:
        if key in self._new:
            return self._new[key]
        if key not in self._places:
            return None
        path, row = self._places[key]
        if path not in self._open:
            self._open[path] = _read(path)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        file = self._open[path]
        return None if file is None else _result(file.entries[row], file.vectors[file.starts[row] :])

    def _write(self) -> None:
        if not self._new:
            return
        path = self._own / f"photos-{secrets.token_hex(8)}{ENDING}"
        try:
            write_atomically(path, _serialize(self._new))
            self._places |= {key: (path, row) for row, key in enumerate(self._new)}
        except OSError as error:
            self.failure = error
        self._new = {}

    def _delete_old_files(self) -> None:
        """Deletes the least recently used files until the limit is met."""
        found = []
        for path in self._folder.glob(f"*/*{ENDING}"):
            with suppress(OSError):  # another process may delete files as well
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self._most_bytes:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
                held -= size


class CachedPipeline(FacePipeline):
    """Takes descriptions from a cache; the networks are loaded for the first image that is not in it."""

    def __init__(self, context: AppContext, pack: Pack, cache: Cache) -> None:
        settings = context.settings
        limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
        options = Options(limits, Threads(context.cores, 1), settings.device, settings.precision, settings.thorough)
        super().__init__(pack, context.files, options)
        self._cache = cache

    def load(self) -> None:
        """Nothing is loaded in advance."""

    def describe(
        self, images: Sequence[bytes], pick: Pick | None, gate: bool = False, liveness: LivenessCheck | None = None
    ) -> list[ImageResult]:
        """Does the same as every pipeline, but without the aligned crops and liveness."""
        keys = [f"{sha256(image)}-{pick or 'all'}" for image in images]
        results = [self._cache.find(key) for key in keys]
        missing = [i for i, one in enumerate(results) if one is None]
        if missing:
            for i, one in zip(missing, super().describe([images[i] for i in missing], pick), strict=True):
                results[i] = _without_crops(one)
                self._cache.put(keys[i], _without_crops(one))
        return [_gated(one) if gate else one for one in results if one is not None]


def kind_of(context: AppContext, pack: Pack) -> str:
    """Returns a hash of everything that a description depends on besides the image and `pick`: the pack, the settings
    that affect decoding, detection or embedding, and the code that does it."""
    settings = context.settings
    computed_by = (settings.device, settings.precision, settings.thorough)
    limits = (settings.max_image_bytes, settings.max_image_pixels)
    code = hashlib.sha256()
    for part in (*_code(resources.files(vision)), *_code(resources.files(models))):
        code.update(part)
    key = json.dumps([pack.name, pack.fingerprint, *map(str, computed_by), *limits, code.hexdigest()])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _code(package: Any) -> list[bytes]:
    """Returns the source files of a package, in the order of their names."""
    parts: list[bytes] = []
    for item in sorted(package.iterdir(), key=lambda item: str(item.name)):
        if item.is_dir() and item.name != "__pycache__":
            parts += _code(item)
        elif item.name.endswith(".py"):
            parts.append(item.read_bytes())
    return parts


def _without_crops(result: ImageResult) -> ImageResult:
    faces = tuple(Face(face.detection, face.quality, face.embedding) for face in result.faces)
    return ImageResult(faces, result.rejection, result.width, result.height)


def _gated(result: ImageResult) -> ImageResult:
    """Returns the result of `describe` with `gate`: an image whose first face is too poor is rejected."""
    if not result.faces or not (reasons := result.faces[0].quality.reasons):
        return result
    message = f"the face is too poor to be enrolled: {', '.join(reasons)}"
    rejection = RejectedImage(message, code=reasons[0])
    return ImageResult((), rejection, result.width, result.height)


# A file is one line of JSON with the SHA-256 of all that follows and the keys, one of descriptions, and the embeddings.


def _serialize(results: dict[str, ImageResult]) -> list[bytes]:
    entries = json.dumps([_entry(one) for one in results.values()]).encode() + b"\n"
    vectors = b"".join(face.embedding.astype("<f4").tobytes() for one in results.values() for face in one.faces)
    head = {"sha256": sha256(entries + vectors), "keys": list(results)}
    return [json.dumps(head).encode() + b"\n", entries, vectors]


def _keys(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return [str(key) for key in json.loads(file.readline())["keys"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _read(path: Path) -> _File | None:
    """Returns None if the file is deleted or damaged."""
    try:
        head, _, rest = path.read_bytes().partition(b"\n")
        if json.loads(head)["sha256"] != sha256(rest):
            return None
        path.touch()  # it was used
        lines, _, numbers = rest.partition(b"\n")
        entries = json.loads(lines)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    counts = [len(entry["faces"]) for entry in entries]
    total = sum(counts)
    vectors = np.frombuffer(numbers, dtype="<f4").astype(np.float32).reshape(total, -1 if total else 0)
    return _File(entries, [0, *np.cumsum(counts).tolist()], vectors)


def _entry(result: ImageResult) -> dict[str, Any]:
    rejection = result.rejection
    return {
        "size": [result.width, result.height],
        "rejection": rejection and [rejection.code, rejection.message, rejection.details],
        "faces": [
            {
                "box": list(asdict(face.detection.box).values()),
                "landmarks": face.detection.landmarks.tolist(),
                "score": face.detection.score,
                "quality": asdict(face.quality),
            }
            for face in result.faces
        ],
    }


def _result(entry: dict[str, Any], vectors: Vectors) -> ImageResult:
    rejection = entry["rejection"]
    return ImageResult(
        tuple(_face(face, vector) for face, vector in zip(entry["faces"], vectors, strict=False)),
        rejection and RejectedImage(rejection[1], code=rejection[0], details=rejection[2]),
        *entry["size"],
    )


def _face(entry: dict[str, Any], vector: Vectors) -> Face:
    reasons = tuple(map(Reason, entry["quality"]["reasons"]))
    landmarks = np.array(entry["landmarks"], np.float32)
    detection = Detection(Box(*entry["box"]), landmarks, entry["score"])
    return Face(detection, Quality(**{**entry["quality"], "reasons": reasons}), vector)
