"""Galleries, identities and faces as JSON objects, for the command line and HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from indexer.gallery.store import Store
from indexer.types import Gallery, Identity, StoredFace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def fields_of(record: DataclassInstance) -> dict[str, Any]:
    """Returns the fields of a dataclass as JSON values: times in ISO 8601, sets as sorted lists."""
    return {name: _json_value(value) for name, value in vars(record).items()}


def gallery_object(store: Store, gallery: Gallery) -> dict[str, Any]:
    """Returns the gallery and its size."""
    identities, faces = store.galleries.counts(gallery.id)
    return {
        "name": gallery.name,
        "model": gallery.model,
        "dim": gallery.dim,
        "identities": identities,
        "faces": faces,
        "created_at": gallery.created_at.isoformat(),
    }


def gallery_detail(store: Store, gallery: Gallery, index: DataclassInstance) -> dict[str, Any]:
    """Returns the gallery, its size and the state of its index."""
    return gallery_object(store, gallery) | {"index": asdict(index)}


def identity_object(person: Identity) -> dict[str, Any]:
    """Returns the identity and its properties."""
    return fields_of(person)


def face_object(face: StoredFace) -> dict[str, Any]:
    """Returns the enrolled face, without its embedding."""
    box = face.detection.box
    return {
        "face_id": face.id,
        "image_sha256": face.image_sha256,
        "box": [box.x, box.y, box.w, box.h],
        "landmarks": [[round(float(v), 2) for v in point] for point in face.detection.landmarks],
        "detection_score": face.detection.score,
        "quality": asdict(face.quality),
        "created_at": face.created_at.isoformat(),
        "has_crop": face.has_crop,
    }


def utc(time: datetime) -> str:
    """Formats a time with Z, as HTTP answers and webhooks do."""
    return time.isoformat().replace("+00:00", "Z")


def _json_value(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case AbstractSet():
            return sorted(value)
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
    return value
