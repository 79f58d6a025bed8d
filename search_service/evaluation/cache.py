"""What a pipeline saw in photos, kept in the home folder, so that they need not be looked at twice.

A description is found again by the image's SHA-256, which face was wanted, and everything else it hangs on: see
`kind_of`. Descriptions hold embeddings, which are personal data: only the owner of the home folder may read them.
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

from indexer import vision
from indexer.app_context import AppContext
from indexer.errors import RejectedImage
from indexer.files import remove_leftovers, write_atomically
from indexer.models.packs import Pack
from indexer.types import Box, Detection, Face, Pick, Quality, Reason, Vectors, sha256
from indexer.vision.decode import Limits
from indexer.vision.pipeline import FacePipeline, Options, Seen
from indexer.vision.runtime import Threads

MOST_BYTES = 2 * 2**30
"""Kept at most, of everything together: two million photos of `sface`. What was not used for longest goes."""

AT_ONCE = 256
"""Descriptions in one file, and the most that a run that ends early has to make again."""

OPEN = 8
"""Files held in memory: each worker's, as they take photos in the order in which they were kept."""

ENDING = ".faces"


@dataclass(frozen=True, eq=False)
class _File:
    """The descriptions of one file: of each the part that is JSON, and where its embeddings begin."""

    told: Sequence[dict[str, Any]]
    starts: Sequence[int]
    vectors: Vectors


class Cache:
    """The descriptions of one kind, below `folder`. Thread-safe. What cannot be read is not there; once something could
    not be written, nothing more is kept: no photo is to blame for a full disk."""

    def __init__(self, folder: Path, kind: str, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._own = folder / kind
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._new: dict[str, Seen] = {}
        self._open: OrderedDict[Path, _File | None] = OrderedDict()
        self._places: dict[str, tuple[Path, int]] = {}
        self.made = 0
        """Descriptions that were put in."""
        self.found = 0
        """Those that were there."""
        self.failure: OSError | None = None
        """Why nothing more is kept."""
        remove_leftovers(self._own / "photos")
        for path in sorted(self._own.glob(f"photos-*{ENDING}")):
            self._places |= {key: (path, row) for row, key in enumerate(_keys(path))}

    def find(self, key: str) -> Seen | None:
        with self._lock:
            seen = self._find(key)
            self.found += seen is not None
            return seen

    def put(self, key: str, seen: Seen) -> None:
        with self._lock:
            self.made += 1
            if self.failure is not None:
                return
            self._new[key] = seen
            if len(self._new) >= AT_ONCE:
                self._write()

    def flush(self) -> None:
        """Writes what is not written yet, and makes room."""
        with self._lock:
            self._write()
            self._make_room()

    def _find(self, key: str) -> Seen | None:
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
        return None if file is None else _seen(file.told[row], file.vectors[file.starts[row] :])

    def _write(self) -> None:
        if not self._new:
            return
        path = self._own / f"photos-{secrets.token_hex(8)}{ENDING}"
        try:
            write_atomically(path, _written(self._new))
            self._places |= {key: (path, row) for row, key in enumerate(self._new)}
        except OSError as error:
            self.failure = error
        self._new = {}

    def _make_room(self) -> None:
        """Deletes the files that were not used for longest, while there are more than MOST_BYTES."""
        found = []
        for path in self._folder.glob(f"*/*{ENDING}"):
            with suppress(OSError):  # another process makes room as well
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        held = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if held <= self._most_bytes:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
                held -= size


class CachedPipeline(FacePipeline):
    """Takes from a cache what was described before; the networks are loaded when an image comes that was not."""

    def __init__(self, context: AppContext, pack: Pack, cache: Cache) -> None:
        settings = context.settings
        limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
        options = Options(limits, Threads(context.cores, 1), settings.device, settings.precision, settings.thorough)
        super().__init__(pack, context.files, options)
        self._cache = cache

    def load(self) -> None:
        """Nothing is loaded in advance."""

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]:
        """As every pipeline, but the aligned crops are not kept."""
        keys = [f"{sha256(image)}-{pick or 'all'}" for image in images]
        seen = [self._cache.find(key) for key in keys]
        missing = [i for i, one in enumerate(seen) if one is None]
        if missing:
            for i, one in zip(missing, super().describe([images[i] for i in missing], pick), strict=True):
                seen[i] = _without_crops(one)
                self._cache.put(keys[i], _without_crops(one))
        return [_gated(one) if gate else one for one in seen if one is not None]


def kind_of(context: AppContext, pack: Pack) -> str:
    """Stands for everything but the image and `pick` that a description hangs on: the pack, the settings that change
    what is read, found or embedded, and the code that does it."""
    settings = context.settings
    asked = (settings.device, settings.precision, settings.thorough)
    limits = (settings.max_image_bytes, settings.max_image_pixels)
    code = hashlib.sha256()
    for part in _code(resources.files(vision)):
        code.update(part)
    told = json.dumps([pack.name, pack.fingerprint, *map(str, asked), *limits, code.hexdigest()])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _code(package: Any) -> list[bytes]:
    """The source of a package, in the order of its names."""
    parts: list[bytes] = []
    for item in sorted(package.iterdir(), key=lambda item: str(item.name)):
        if item.is_dir() and item.name != "__pycache__":
            parts += _code(item)
        elif item.name.endswith(".py"):
            parts.append(item.read_bytes())
    return parts


def _without_crops(seen: Seen) -> Seen:
    faces = tuple(Face(face.detection, face.quality, face.embedding) for face in seen.faces)
    return Seen(faces, seen.rejection, seen.width, seen.height)


def _gated(seen: Seen) -> Seen:
    """What `describe` answers with `gate`: an image whose first face is too poor is rejected."""
    if not seen.faces or not (reasons := seen.faces[0].quality.reasons):
        return seen
    told = ", ".join(reasons)
    rejection = RejectedImage(f"the face is too poor to be enrolled: {told}", code=reasons[0])
    return Seen((), rejection, seen.width, seen.height)


# A file: one line of JSON with the SHA-256 of all that follows and the keys; one of descriptions; the embeddings.


def _written(seen: dict[str, Seen]) -> list[bytes]:
    told = json.dumps([_told(one) for one in seen.values()]).encode() + b"\n"
    vectors = b"".join(face.embedding.astype("<f4").tobytes() for one in seen.values() for face in one.faces)
    head = {"sha256": sha256(told + vectors), "keys": list(seen)}
    return [json.dumps(head).encode() + b"\n", told, vectors]


def _keys(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            return [str(key) for key in json.loads(file.readline())["keys"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _read(path: Path) -> _File | None:
    """None where the file is gone or damaged."""
    try:
        head, _, rest = path.read_bytes().partition(b"\n")
        if json.loads(head)["sha256"] != sha256(rest):
            return None
        path.touch()  # it was used
        told, _, numbers = rest.partition(b"\n")
        entries = json.loads(told)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    counts = [len(entry["faces"]) for entry in entries]
    total = sum(counts)
    vectors = np.frombuffer(numbers, dtype="<f4").astype(np.float32).reshape(total, -1 if total else 0)
    return _File(entries, [0, *np.cumsum(counts).tolist()], vectors)


def _told(seen: Seen) -> dict[str, Any]:
    rejection = seen.rejection
    return {
        "size": [seen.width, seen.height],
        "rejection": rejection and [rejection.code, rejection.message, rejection.details],
        "faces": [
            {
                "box": list(asdict(face.detection.box).values()),
                "landmarks": face.detection.landmarks.tolist(),
                "score": face.detection.score,
                "quality": asdict(face.quality),
            }
            for face in seen.faces
        ],
    }


def _seen(told: dict[str, Any], vectors: Vectors) -> Seen:
    rejection = told["rejection"]
    return Seen(
        tuple(_face(face, vector) for face, vector in zip(told["faces"], vectors, strict=False)),
        rejection and RejectedImage(rejection[1], code=rejection[0], details=rejection[2]),
        *told["size"],
    )


def _face(told: dict[str, Any], vector: Vectors) -> Face:
    reasons = tuple(map(Reason, told["quality"]["reasons"]))
    landmarks = np.array(told["landmarks"], np.float32)
    detection = Detection(Box(*told["box"]), landmarks, told["score"])
    return Face(detection, Quality(**{**told["quality"], "reasons": reasons}), vector)
