"""The values of the API's enumerations that this version knows."""

from __future__ import annotations

from enum import StrEnum


class Decision(StrEnum):
    MATCH = "match"
    NO_MATCH = "no_match"
    REVIEW = "review"


class DecisionReason(StrEnum):
    NO_CANDIDATES = "no_candidates"
    BELOW_THRESHOLD = "below_threshold"
    CLOSE_RUNNER_UP = "close_runner_up"
    POOR_PROBE = "poor_probe"
    FRAMES_DISAGREE = "frames_disagree"
    IDENTITY_EXPIRED = "identity_expired"
    IDENTITY_NOT_YET_VALID = "identity_not_yet_valid"
    NOT_LIVE = "not_live"


class Reason(StrEnum):
    """Why an image was rejected."""

    UNREADABLE_IMAGE = "unreadable_image"
    IMAGE_TOO_LARGE = "image_too_large"
    NO_FACE = "no_face"
    SEVERAL_FACES = "several_faces"
    FACE_TOO_SMALL = "face_too_small"
    FACE_TOO_BLURRY = "face_too_blurry"
    FACE_TURNED_AWAY = "face_turned_away"
    FACE_BADLY_LIT = "face_badly_lit"
    DETECTION_UNSURE = "detection_unsure"
    LOOKS_LIKE_ANOTHER_IDENTITY = "looks_like_another_identity"
    UNLIKE_OWN_IDENTITY = "unlike_own_identity"
    NOT_LIVE = "not_live"
    INVALID_ROW = "invalid_row"


class Outcome(StrEnum):
    ENROLLED = "enrolled"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"


class Pick(StrEnum):
    """Which face of several counts."""

    ONLY = "only"
    LARGEST = "largest"
    CENTER = "center"


class LivenessMode(StrEnum):
    """What is done about presentation attacks."""

    OFF = "off"
    REPORT = "report"
    REQUIRE = "require"


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


class JobState(StrEnum):
    RECEIVING = "receiving"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"


ENDED = frozenset({JobState.CANCELLED, JobState.DONE, JobState.FAILED})


class Scope(StrEnum):
    """What a key is for. Each contains those before it."""

    SEARCH = "search"
    INVESTIGATE = "investigate"
    ENROLL = "enroll"
    ADMIN = "admin"


class Basis(StrEnum):
    """What a threshold follows from."""

    MEASURED = "measured"
    EXTRAPOLATED = "extrapolated"
    BORROWED = "borrowed"
    PACK = "pack"


class DeliveryState(StrEnum):
    WAITING = "waiting"
    DEAD = "dead"
