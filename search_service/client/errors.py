"""The errors of the client, as one tree.

    WhosthereError
    ├── ServiceUnreachable      no answer arrived, after all retries
    ├── UnexpectedAnswer        the answer is not one of this service or cannot be parsed
    ├── NotDone                 a job did not end within the time to wait (also a TimeoutError)
    └── ApiError                the service refused: `code`, `message`, `details`, `request_id`, `status`
        ├── InvalidRequest      400, 405: the request is malformed or contradictory
        │   └── TooLarge        413: more bytes than the service accepts
        ├── Rejected            422: the image or its face cannot be used; `code` is the reason
        ├── Unauthorized        401: no valid API key
        ├── Forbidden           403: the key does not permit this
        ├── NotFound            404: no such gallery, identity, face, job
        ├── Conflict            409: it exists already, or another state prevents it
        │   └── PreconditionFailed  412: the state is not the one that `if_match` expects
        └── Unavailable         502, 503, 504: temporarily unavailable
            └── Overloaded      429: the service has too many waiting requests
                └── RateLimited     429: the key exceeded its rate limit

Unavailable and its subclasses are raised after the retries of the client's `Retries` are exhausted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SHOWN_CHARACTERS = 200
"""Characters of an unreadable answer that the error message shows."""


class WhosthereError(Exception):
    """The root of the tree."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        """The id under which the service logs the request."""


class ServiceUnreachable(WhosthereError):
    def __init__(self, message: str, *, request_id: str | None = None, maybe_done: bool = False) -> None:
        super().__init__(message, request_id=request_id)
        self.maybe_done = maybe_done
        """Whether the service may have executed the request, and only its answer was lost."""


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
    "probe_budget_used": RateLimited,
}
"""Codes more specific than their status."""

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
"""Other statuses raise ApiError itself."""


def error_from(status: int, body: bytes, request_id: str | None) -> WhosthereError:
    """Returns the error that an answer describes. An answer in another format comes from a proxy in between."""
    try:
        answer = json.loads(body)
        error = answer["error"]
        code, message, details = str(error["code"]), str(error["message"]), dict(error.get("details") or {})
    except (ValueError, TypeError, KeyError, AttributeError):
        if status not in (429, 502, 503, 504):
            text = body[:SHOWN_CHARACTERS].decode("utf-8", "replace")
            message = f"expected an answer of whosthere; got status {status}: {text!r}"
            return UnexpectedAnswer(message, request_id=request_id)
        code, message, details = "unavailable", f"a proxy answered with status {status}", {}
        answer = {}
    kind = BY_CODE.get(code) or BY_STATUS.get(status, ApiError)
    return kind(status, code, message, details, answer.get("request_id") or request_id)
