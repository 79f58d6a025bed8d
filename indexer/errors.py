"""Everything that can go wrong, as one tree. No HTTP here: the API maps these at its edge.

    WhosthereError
    ├── InvalidRequest          what was asked for makes no sense as it stands
    │   ├── InvalidSetting      a setting is unknown or has a bad value
    │   ├── InvalidVector       an embedding has the wrong shape, type or values
    │   └── RejectedImage       an image or a face that cannot be used; `code` is the reason
    ├── NotFound                no such gallery, identity, face, model
    ├── Conflict                it exists already, or belongs to another model pack
    ├── ModelUnavailable        a model file is missing, damaged or cannot be fetched
    ├── StorageUnavailable      the database or the disk does not answer
    └── Overloaded              too much is waiting already; try again later

Each error has a `code` (a stable word, see the public contract), a message for people that names the bad
input and says what was expected, and `details` for programs.
"""

from __future__ import annotations

from collections.abc import Mapping


class WhosthereError(Exception):
    """The root of the tree."""

    code = "failed"

    def __init__(self, message: str, *, code: str | None = None, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.details = dict(details or {})


class InvalidRequest(WhosthereError):
    code = "invalid_request"


class InvalidSetting(InvalidRequest):
    code = "invalid_setting"


class InvalidVector(InvalidRequest):
    code = "invalid_embedding"


class RejectedImage(InvalidRequest):
    """An image, or the face in it, that cannot be used; `code` is one of `types.Reason`."""

    def without_traceback(self) -> RejectedImage:
        """Itself, to be kept as an answer: without traceback and cause, whose frames hold the decoded image."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class NotFound(WhosthereError):
    code = "not_found"


class Conflict(WhosthereError):
    code = "conflict"


class ModelUnavailable(WhosthereError):
    code = "model_unavailable"


PYTORCH_MISSING = "pytorch_missing"
"""Code of a ModelUnavailable error for a sound file that needs PyTorch, which is not installed."""


class StorageUnavailable(WhosthereError):
    code = "storage_unavailable"


class Overloaded(WhosthereError):
    code = "overloaded"
