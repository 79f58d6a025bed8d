"""What can go wrong with a request, as one tree.

    WhosthereError
    ├── ServiceUnreachable      no answer came, however often it was tried
    ├── UnexpectedAnswer        what answered is not this service, or says what nobody can read
    ├── NotDone                 a job had not ended when the wait for it did (a TimeoutError too)
    └── ApiError                the service says no: `code`, `message`, `details`, `request_id`, `status`
        ├── InvalidRequest      400, 405: what was asked for makes no sense as it stands
        │   └── TooLarge        413: more bytes than the service takes
        ├── Rejected            422: an image, or the face in it, that cannot be used; `code` is the reason
        ├── Unauthorized        401: no key that is valid there
        ├── Forbidden           403: a key that does not open this
        ├── NotFound            404: no such gallery, identity, face, job
        ├── Conflict            409: it exists already, or is in the way
        │   └── PreconditionFailed  412: in another state than `if_match` expects
        └── Unavailable         503, and whatever else from 500 on that may pass
            └── Overloaded      429: too much is waiting there already
                └── RateLimited     429: the key was used too often

Those under Unavailable have been tried again already, for as long as the client's `Retries` say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONGEST_SHOWN = 200
"""Characters of an unreadable answer that an error repeats."""


class WhosthereError(Exception):
    """The root of the tree."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        """As the service logs the request."""


class ServiceUnreachable(WhosthereError):
    def __init__(self, message: str, *, request_id: str | None = None, maybe_done: bool = False) -> None:
        super().__init__(message, request_id=request_id)
        self.maybe_done = maybe_done
        """Whether the service may have done what was asked for, and only its answer was lost."""


class UnexpectedAnswer(WhosthereError):
    pass


class NotDone(WhosthereError, TimeoutError):
    pass


class ApiError(WhosthereError):
    def __init__(
        self, status: int, code: str, message: str, details: Mapping[str, Any], request_id: str | None
    ) -> None:
        super().__init__(message, request_id=request_id)
        self.status = status
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.message} (status {self.status}, request {self.request_id})"


class InvalidRequest(ApiError):
    pass


class TooLarge(InvalidRequest):
    pass


class Rejected(ApiError):
    pass


class Unauthorized(ApiError):
    pass


class Forbidden(ApiError):
    pass


class NotFound(ApiError):
    pass


class Conflict(ApiError):
    pass


class PreconditionFailed(Conflict):
    pass


class Unavailable(ApiError):
    pass


class Overloaded(Unavailable):
    pass


class RateLimited(Overloaded):
    pass


BY_CODE: Mapping[str, type[ApiError]] = {
    "image_too_large": Rejected,
    "idempotency_key_reused": Conflict,
    "rate_limited": RateLimited,
}
"""Codes that say more than their status."""

BY_STATUS: Mapping[int, type[ApiError]] = {
    400: InvalidRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: InvalidRequest,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    422: Rejected,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""Other statuses are an ApiError as it is."""


def error_of(status: int, body: bytes, request_id: str | None) -> WhosthereError:
    """The error that an answer tells of. One that is not in the service's form comes from a proxy before it."""
    try:
        told = json.loads(body)
        error = told["error"]
        code, message, details = str(error["code"]), str(error["message"]), dict(error.get("details") or {})
    except (ValueError, TypeError, KeyError, AttributeError):
        if status not in (429, 502, 503, 504):
            text = body[:LONGEST_SHOWN].decode("utf-8", "replace")
            message = f"expected an answer of whosthere; got status {status}: {text!r}"
            return UnexpectedAnswer(message, request_id=request_id)
        code, message, details = "unavailable", f"something before the service answered with status {status}", {}
        told = {}
    kind = BY_CODE.get(code) or BY_STATUS.get(status, ApiError)
    return kind(status, code, message, details, told.get("request_id") or request_id)
