"""The project's exceptions. They do not depend on HTTP; the API maps them to responses.

    WhosthereError
    ├── InvalidRequest          the request is not valid
    │   ├── InvalidSetting      a setting is unknown or has a bad value
    │   ├── InvalidVector       an embedding has the wrong shape, type or values
    │   └── RejectedImage       an image or a face cannot be used; `code` is the reason
    ├── NotFound                there is no such gallery, identity, face or model
    ├── Conflict                it exists already, or belongs to another model pack
    ├── ModelUnavailable        a model file is missing, damaged or cannot be downloaded
    ├── StorageUnavailable      the database or the disk cannot be used
    │   └── IndexBuilding       the index of a gallery is being built; try again soon
    └── Overloaded              too many requests are waiting; try again later

Each error has a stable `code`, a message for people that names the bad input and what was expected, and `details` for
programs:

    try:
        gallery = store.galleries.get("staff")
    except NotFound as error:
        print(error.code, error.message)  # gallery_not_found there is no gallery 'staff'
"""

from __future__ import annotations

from collections.abc import Mapping

LONGEST_QUOTED = 200
"""Characters of a wrong value that a message quotes: longer than any valid name."""


class WhosthereError(Exception):
    """The base class of all errors that the project raises on purpose."""

    code = "failed"

    def __init__(self, message: str, *, code: str | None = None, details: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.details = dict(details or {})


def quoted(text: str) -> str:
    """Returns the beginning of a text that may be very long, in quotes, for an error message."""
    return repr(text) if len(text) <= LONGEST_QUOTED else f"{text[:LONGEST_QUOTED]!r}..."


class InvalidRequest(WhosthereError):
    code = "invalid_request"


class InvalidSetting(InvalidRequest):
    code = "invalid_setting"


class InvalidVector(InvalidRequest):
    code = "invalid_embedding"


class RejectedImage(InvalidRequest):
    """An image, or the face in it, cannot be used; `code` is one of `types.Reason`."""

    def without_traceback(self) -> RejectedImage:
        """Removes traceback and cause, whose frames refer to the decoded image, and returns this error to be kept."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class NotFound(WhosthereError):
    code = "not_found"


class Conflict(WhosthereError):
    code = "conflict"


class ModelUnavailable(WhosthereError):
    code = "model_unavailable"


PYTORCH_MISSING = "pytorch_missing"
"""Code of a ModelUnavailable error for a valid file that needs PyTorch, which is not installed."""


class StorageUnavailable(WhosthereError):
    code = "storage_unavailable"


class IndexBuilding(StorageUnavailable):
    """There is no index of the gallery yet; `details` has the seconds to wait as `retry_after_seconds`."""

    code = "index_building"


class Overloaded(WhosthereError):
    code = "overloaded"
