"""An example of each object in the answers and bodies, as OpenAPI shows them. A test checks each against its schema."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

BASE64 = "/9j/4AAQSkZJRgABAQAAAQABAAD..."
"""How a JPEG begins."""

AT = "2026-03-02T07:58:12.041000Z"
QUALITY = {"size": 118.4, "sharpness": 21.7, "yaw": -0.06, "brightness": 131.2, "contrast": 48.9, "reasons": []}
FACE = {
    "box": [97.1, 52.3, 90.2, 118.0],
    "landmarks": [[121.4, 98.0], [163.2, 97.1], [142.8, 121.9], [125.0, 144.3], [160.1, 143.6]],
    "detection_score": 0.9412,
    "quality": QUALITY,
}
IDENTITY_SAID = {
    "external_id": "e-1042",
    "name": "Ana Kovač",
    "metadata": {"department": "Sales"},
    "valid_from": None,
    "valid_until": "2026-12-31T23:59:59Z",
}
IDENTITY = {**IDENTITY_SAID, "id": 17, "faces": 2, "created_at": AT, "updated_at": AT}
CANDIDATE = {
    "rank": 1,
    "identity_id": 17,
    "external_id": "e-1042",
    "name": "Ana Kovač",
    "metadata": {"department": "Sales"},
    "score": 0.7213,
    "face_id": 31,
}
ANSWER = {
    "image": "probe.jpg",
    "gallery": "staff",
    "model": "sface",
    "faces": [
        {**FACE, "decision": "match", "reasons": [], "threshold": 0.4127, "fpir": 0.01, "candidates": [CANDIDATE]}
    ],
    "error": None,
    "frames": None,
}
FRAME = {"image": "door_1.jpg", "error": None, "disagrees": False, "shown": True}
NO_FACE = {"code": "no_face", "message": "no face was found", "details": {}}
GALLERY = {"name": "staff", "model": "sface", "dim": 128, "identities": 212, "faces": 431, "created_at": AT}
STORED_FACE = {**FACE, "face_id": 31, "external_id": "e-1042", "image_sha256": "9f86d081" * 8, "created_at": AT}
ENROLLED: dict[str, Any] = {
    "image": "ana.jpg",
    "external_id": "e-1042",
    "outcome": "enrolled",
    "reason": None,
    "face_id": 31,
    "message": None,
    "details": {},
}
REJECTED = {**ENROLLED, "image": "wall.jpg", "outcome": "rejected", "reason": "no_face", "face_id": None}
SIDES = (
    {"external_id": "e-1042", "name": "Ana Kovač", "face_id": 31},
    {"external_id": "7", "name": None, "face_id": 9},
)

KEY = {
    "id": "5f2c81d09a3e",
    "name": "north-door",
    "scopes": ["search"],
    "galleries": ["staff"],
    "per_minute": None,
    "created_at": AT,
    "expires_at": None,
    "revoked_at": None,
}
JOB = {
    "id": "9d1b60f2c84e4a35",
    "gallery": "staff",
    "state": "running",
    "images": 2140,
    "done": 1,
    "enrolled": 1,
    "unchanged": 0,
    "rejected": 0,
    "created_at": AT,
    "started_at": AT,
    "finished_at": None,
    "problem": None,
}
EVENT = {
    "id": 5012,
    "gallery": "staff",
    "at": AT,
    "identity_id": 17,
    "external_id": "e-1042",
    "name": "Ana Kovač",
    "device": "north-door",
    "direction": "in",
    "decision": "match",
    "score": 0.7213,
    "threshold": 0.4127,
    "request_id": "5b0e3f0c2d8a4d6f",
}
WEBHOOK = {
    "id": "3f0c9a5e7b1d4c28",
    "url": "https://payroll.example.com/doors",
    "gallery": "staff",
    "decisions": ["match"],
    "created_at": AT,
    "waiting": 0,
    "dead": 0,
}
DELIVERY = {
    "id": 771,
    "webhook_id": "3f0c9a5e7b1d4c28",
    "event_id": 5012,
    "state": "waiting",
    "attempts": 2,
    "next_at": AT,
    "problem": "the server answered 502",
}

EXAMPLES: Mapping[str, Any] = MappingProxyType(
    {
        "ErrorAnswer": {"error": NO_FACE, "request_id": "5b0e3f0c2d8a4d6f"},
        "AlivePayload": {"status": "alive"},
        "ReadyPayload": {"status": "ready"},
        "NewGallery": {"name": "staff"},
        "GalleryPayload": GALLERY,
        "GalleryDetailPayload": {
            **GALLERY,
            "index": {"kind": "exact", "faces": 431, "seq": 643, "snapshot_seq": 600, "checked": None},
        },
        "GalleryList": {"galleries": [GALLERY], "cursor": None},
        "IdentityBody": {key: value for key, value in IDENTITY_SAID.items() if key != "external_id"},
        "NewIdentity": IDENTITY_SAID,
        "IdentityPatch": {
            "name": "Ana Horvat",
            "valid_until": None,
            "metadata": {"department": "Support", "desk": None},
        },
        "IdentityPayload": IDENTITY,
        "IdentityList": {"identities": [IDENTITY], "cursor": "YWZ0ZXI6MTc="},
        "MergeBody": {"other": "7"},
        "MergedPayload": {"identity": IDENTITY, "merged": "7", "faces": 1},
        "DuplicatesPayload": {
            "gallery": "staff",
            "threshold": 0.4127,
            "faces": 431,
            "exact": True,
            "complete": True,
            "pairs": [{"score": 0.8012, "identities": SIDES}],
            "wrong_photos": [{"face": SIDES[0], "own_score": 0.0612, "score": 0.6907, "looks_like": SIDES[1]}],
        },
        "CalibrationPayload": {
            "gallery": "staff",
            "model": "sface",
            "faces": 431,
            "people": 212,
            "mated": 140,
            "supported_fpir": 0.0236,
            "summary": "212 people support an FPIR of 2.4 % or more.",
            "interval_percent": (5, 95),
            "thresholds": [
                {
                    "fpir": 0.1,
                    "threshold": 0.3514,
                    "low": 0.3402,
                    "high": 0.3655,
                    "fnir": 0.0071,
                    "scores": 21,
                    "basis": "measured",
                }
            ],
            "duplicates": [{"external_ids": ("e-1042", "7"), "score": 0.8012}],
        },
        "StoredFacePayload": STORED_FACE,
        "StoredFaceList": {"faces": [STORED_FACE], "cursor": None},
        "EnrolledPayload": ENROLLED,
        "ResultsPayload": {"results": [ENROLLED, {**REJECTED, "message": "no face was found"}]},
        "Deleted": {"deleted": "e-1042", "faces": 2},
        "AnswerPayload": ANSWER,
        "FramePayload": FRAME,
        "AnswersPayload": {"answers": [ANSWER, {**ANSWER, "image": "wall.jpg", "faces": [], "error": NO_FACE}]},
        "DetectPayload": {"image": "group.jpg", "width": 1280, "height": 960, "faces": [FACE]},
        "EmbedPayload": {
            "image": "ana.jpg",
            "model": "sface",
            "dim": 128,
            "faces": [{**FACE, "embedding": [0.0312, -0.1127, 0.0841]}],
        },
        "ComparePayload": {"score": 0.7213, "threshold": 0.3631, "same": True, "faces": [FACE, FACE]},
        "NewKey": {"name": "north-door", "scopes": ["search"], "galleries": ["staff"]},
        "KeyPayload": KEY,
        "MadeKey": {**KEY, "key": "wt_5f2c81d09a3e_..."},
        "KeyList": {"keys": [KEY], "cursor": None},
        "JobPayload": JOB,
        "JobDetailPayload": {**JOB, "results": [ENROLLED], "cursor": None},
        "JobList": {"jobs": [JOB], "cursor": None},
        "EventPayload": EVENT,
        "EventList": {"events": [EVENT], "cursor": None},
        "Forgotten": {"forgotten": 1204},
        "NewWebhook": {"url": "https://payroll.example.com/doors", "gallery": "staff", "decisions": ["match"]},
        "WebhookPayload": WEBHOOK,
        "MadeWebhook": {**WEBHOOK, "secret": "whsec_4fK1..."},
        "WebhookList": {"webhooks": [WEBHOOK]},
        "DeliveryList": {"deliveries": [DELIVERY], "cursor": None},
        "Replayed": {"replayed": 3},
        "WebhookDeleted": {"deleted": "3f0c9a5e7b1d4c28", "undelivered": 0},
        "ModelsPayload": {"models": [{"name": "sface", "installed": True, "dim": 128}], "default": "sface"},
    }
)
"""By the name of the object."""
