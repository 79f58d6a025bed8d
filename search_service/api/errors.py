"""Answers errors over HTTP, all in one shape."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from indexer import errors
from indexer.errors import WhosthereError
from indexer.types import Reason
from search_service.api.models.base import ErrorAnswer, ErrorBody, error_body
from search_service.api.parameters import BODY, MOST_NAMES
from search_service.api.shortening import short_name

log = logging.getLogger(__name__)


class BodyTooLarge(WhosthereError):
    """The request's body has more bytes than are allowed."""

    code = "body_too_large"


class BodyTooSlow(WhosthereError):
    """The request's body arrives too slowly."""

    code = "body_too_slow"


class CallerGone(WhosthereError):
    """The connection was closed before the request was complete. The answer is only counted and logged."""

    code = "caller_gone"


class Forbidden(WhosthereError):
    """The caller may not do this, or not under this host name."""

    code = "forbidden"


class Unauthorized(WhosthereError):
    """The caller sent no API key that is valid here."""

    code = "unauthorized"


class RateLimited(errors.Overloaded):
    """The key was used too often."""

    code = "rate_limited"

    def __init__(self, message: str, wait: int) -> None:
        """Takes the seconds to wait as `wait`."""
        super().__init__(f"{message}; try again in {wait} s", details={"retry_after_seconds": wait})


class ProbeBudgetUsed(RateLimited):
    """The key has searched as many different probes as it may on one day."""

    code = "probe_budget_used"


class StorageBusy(errors.StorageUnavailable):
    """The database takes no changes for the moment; reading works."""

    code = "storage_busy"


class PreconditionFailed(WhosthereError):
    """The object is not in the state that the request expects."""

    code = "precondition_failed"


class KeyReused(WhosthereError):
    """An Idempotency-Key was used for another request."""

    code = "idempotency_key_reused"


class RequestInProgress(WhosthereError):
    """Another request with the same Idempotency-Key is being answered."""

    code = "request_in_progress"


STATUS: tuple[tuple[type[WhosthereError], int], ...] = (
    (BodyTooLarge, 413),
    (BodyTooSlow, 408),
    (CallerGone, 499),  # as nginx logs it
    (Unauthorized, 401),
    (Forbidden, 403),
    (PreconditionFailed, 412),
    (KeyReused, 422),
    (RequestInProgress, 409),
    (errors.RejectedImage, 422),
    (errors.InvalidRequest, 400),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Overloaded, 429),
    (errors.ModelUnavailable, 503),
    (errors.StorageUnavailable, 503),
)
"""The status of each kind of error; the first that fits counts. Everything else is 500."""

RETRY_AFTER_SECONDS = 1

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def status_of(error: WhosthereError) -> int:
    """Returns the HTTP status of an error."""
    if error.code == Reason.IMAGE_TOO_LARGE:
        return 413
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


def request_id(request: Request) -> str:
    """Returns the id of the request: the caller's `X-Request-ID` if it is short printable ASCII, else a new one."""
    if not hasattr(request.state, "request_id"):
        given = request.headers.get("x-request-id", "")
        sane = 0 < len(given) <= 64 and given.isascii() and given.isprintable()
        request.state.request_id = given if sane else uuid.uuid4().hex
    value: str = request.state.request_id
    return value


def answer(request: Request, status: int, body: ErrorBody) -> JSONResponse:
    known = request_id(request)
    headers = {"X-Request-ID": known}
    if status in (429, 503) or body.code == RequestInProgress.code:
        headers["Retry-After"] = str(body.details.get("retry_after_seconds", RETRY_AFTER_SECONDS))
    if status == 408:
        headers["Connection"] = "close"  # the rest of the body may come yet
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="whosthere"'
    content = ErrorAnswer(error=body, request_id=known).model_dump(mode="json")
    return JSONResponse(content, status, headers=headers)


def domain_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, WhosthereError)  # noqa: S101 (how it is registered)
    return answer(request, status_of(error), error_body(error))


async def send_error(error: WhosthereError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers an error from a middleware."""
    await domain_error(Request(scope), error)(scope, receive, send)


def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answers what FastAPI found wrong with a request, naming the field."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    found = [_problem(request, e) for e in error.errors()[:MOST_NAMES]]
    message = "; ".join(f"{f['field']}: {f['problem']}" for f in found)
    return answer(request, 400, ErrorBody(code="invalid_request", message=message, details={"fields": found}))


def _problem(request: Request, found: Mapping[str, Any]) -> dict[str, str]:
    where, problem = found["loc"], str(found["msg"]).removeprefix("Value error, ")
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if found["type"] == "json_invalid":
        where, problem = ("body",), f"is not JSON: {found['ctx']['error']} at character {found['loc'][-1]}"
    elif found["type"] == "extra_forbidden" and len(where) == 2:
        where = BODY, short_name(str(where[1]))
        problem = request.state.parameters.problem(*where)
    elif where == ("body",) and kind != "application/json" and not kind.endswith("+json"):
        problem = f"the content type is {kind or 'missing'}; expected application/json"
    return {"field": ".".join(map(str, where)), "problem": problem}


def http_error(request: Request, error: Exception) -> JSONResponse:
    """Answers the framework's own errors: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    response = answer(
        request,
        error.status_code,
        ErrorBody(code=code, message=f"{request.method} {request.url.path}: {error.detail}"),
    )
    response.headers.update(error.headers or {})
    if error.status_code == 405:  # the framework names only the methods of the first route with that path
        response.headers["Allow"] = ", ".join(sorted(_allowed(request)))
    return response


def _allowed(request: Request) -> set[str]:
    """Returns the methods that this path has."""
    routes = request.app.routes
    return {
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    }


def misfit(request: Request, error: Exception) -> JSONResponse:
    """Answers 500 for an answer that does not fit its schema. The error quotes all of it; the log names only places."""
    assert isinstance(error, ResponseValidationError)  # noqa: S101
    found = (f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors())
    log.error("request %s failed, as its answer does not fit: %s", request_id(request), "; ".join(found))
    return _failed(request)


def unexpected(request: Request, error: Exception) -> JSONResponse:
    log.exception("request %s failed", request_id(request), exc_info=error)
    return _failed(request)


def _failed(request: Request) -> JSONResponse:
    message = "the service failed; its log has the details under this request id"
    return answer(request, 500, ErrorBody(code="failed", message=message))


def register(app: FastAPI) -> None:
    app.add_exception_handler(WhosthereError, domain_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ResponseValidationError, misfit)
    app.add_exception_handler(Exception, unexpected)
