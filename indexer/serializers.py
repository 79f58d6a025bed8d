"""Galleries, identities and faces as JSON objects, for the command line and HTTP."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from indexer.gallery.store import Store
from indexer.types import Gallery, Identity, StoredFace

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCORE_DECIMALS = 4
"""The fifth depends on the CPU."""


def gallery_object(store: Store, gallery: Gallery) -> dict[str, Any]:
    """The gallery and how much is in it."""
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
    """The same, and the state of its index."""
    return gallery_object(store, gallery) | {"index": asdict(index)}


def identity_object(person: Identity) -> dict[str, Any]:
    """The identity and what is said of it."""
    return {
        "id": person.id,
        "external_id": person.external_id,
        "name": person.name,
        "metadata": dict(person.metadata),
        "valid_from": person.valid_from.isoformat() if person.valid_from else None,
        "valid_until": person.valid_until.isoformat() if person.valid_until else None,
        "faces": person.faces,
        "created_at": person.created_at.isoformat(),
        "updated_at": person.updated_at.isoformat(),
    }


def face_object(face: StoredFace) -> dict[str, Any]:
    """The enrolled face, without its embedding."""
    box = face.detection.box
    return {
        "face_id": face.id,
        "image_sha256": face.image_sha256,
        "box": [box.x, box.y, box.w, box.h],
        "landmarks": [[round(float(v), 2) for v in point] for point in face.detection.landmarks],
        "detection_score": face.detection.score,
        "quality": asdict(face.quality),
        "created_at": face.created_at.isoformat(),
    }


def utc(time: datetime) -> str:
    """As HTTP writes it: what a webhook is sent is what the service answers."""
    return time.isoformat().replace("+00:00", "Z")
