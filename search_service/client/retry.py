"""Requests with their retries: the part of the client without I/O.

A request is a generator of steps: it yields `Send` and `Pause`, and receives the result of each. The sync and the
async client only differ in how they execute a step.
"""

from __future__ import annotations

import json
import random
import ssl
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from search_service.client.answers import Page
from search_service.client.errors import (
    SHOWN_CHARACTERS,
    ServiceUnreachable,
    UnexpectedAnswer,
    WhosthereError,
    error_from,
)
from search_service.client.parsing import read
from search_service.client.request_bodies import Body, without_none

T = TypeVar("T")

RETRYABLE = frozenset({429, 502, 503, 504})
"""Statuses of temporary failures: overload, unavailability, and proxies that received no answer."""

REFUSED = 429
"""The retryable status that guarantees that the request was not executed."""

REQUEST_IN_PROGRESS = "request_in_progress"
"""The error code of a 409 while the first attempt of a request is still in progress."""

MAX_REQUEST_ID = 64
"""Characters of an `X-Request-ID` that the service accepts."""


@dataclass(frozen=True)
class Retries:
    """How long temporary failures are retried: exponential backoff with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), in addition to `Retry-After`."""

    deadline_seconds: float = 60.0
    """No attempt begins later than this after the first one; 0 for a single attempt."""
    first_seconds: float = 0.25
    longest_seconds: float = 8.0

    def wait(self, attempt: int, retry_after: float, chance: float) -> float:
        """Returns the seconds to wait after attempt number `attempt`, counted from 0.

        `retry_after` is the header's value in seconds, `chance` a random number in 0..1.
        """
        doubled = self.first_seconds * 2.0 ** min(attempt, 63)  # bounded: no overflow
        return retry_after + chance * min(self.longest_seconds, doubled)


@dataclass(frozen=True)
class Options:
    """Options of every request of a client."""

    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 30.0
    """Of one attempt: the longest time without sending or receiving. Two attempts fit into the default deadline."""
    retries: Retries = Retries()
    request_id: str | None = None
    """`X-Request-ID` of every request; None for a new one for each request."""
    page_size: int = 1000
    """Entries requested at a time by methods that list; the most that the service returns."""

    def __post_init__(self) -> None:
        """Raises ValueError for values that cannot be sent."""
        if self.key is not None and not _sendable(self.key):
            raise ValueError(
                "key has characters that no API key has; expected a key printed by `whosthere keys create`"
            )
        given = self.request_id
        if given is not None and not (_sendable(given) and len(given) <= MAX_REQUEST_ID):
            raise ValueError(f"request_id is {given!r}; expected 1 to {MAX_REQUEST_ID} printable ASCII characters")

    def changed(
        self,
        timeout_seconds: float | None,
        retries: Retries | None,
        request_id: str | None,
        page_size: int | None,
    ) -> Options:
        """Returns the options with those replaced that are not None."""
        given = {
            "timeout_seconds": timeout_seconds,
            "retries": retries,
            "request_id": request_id,
            "page_size": page_size,
        }
        return replace(self, **without_none(given))


@dataclass(frozen=True)
class Request:
    """A request, before authentication and retries."""

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    accepted_statuses: tuple[int, ...] = ()
    """Statuses other than success that are answers, not errors."""
    idempotent: bool = False
    """A POST that changes something: all attempts carry the same Idempotency-Key."""
    unrepeatable: bool = False
    """A second attempt would be answered differently: not retried once it may have been executed."""


@dataclass(frozen=True)
class Send:
    """A step: send the request. Its result is a Reply or NoAnswer."""

    request: Request
    headers: Mapping[str, str]
    timeout_seconds: float


@dataclass(frozen=True)
class Pause:
    """A step: wait."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """The answer of the service or of a proxy."""

    status: int
    headers: Mapping[str, str]
    """Looked up by lower-case names."""
    body: bytes


@dataclass(frozen=True)
class NoAnswer:
    """The request was not answered."""

    why: str
    reached: bool
    """Whether the request may have reached the service."""
    permanent: bool
    """Whether a retry would fail as well."""


Steps: TypeAlias = Generator[Send | Pause, Reply | NoAnswer | None, T]


@dataclass(frozen=True)
class Api:
    """Builds the steps of requests under the same options."""

    options: Options
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def send(self, request: Request, parse: Callable[[Reply], T]) -> Steps[T]:
        """Requests and returns the parsed answer. Raises WhosthereError."""
        request_id = self.options.request_id or uuid.uuid4().hex
        headers = self._headers(request, request_id)
        end = self.clock() + self.options.retries.deadline_seconds
        reached = False
        for attempt in count():
            got = yield Send(request, headers, self.options.timeout_seconds)
            assert got is not None  # noqa: S101 (the result of a Send)
            if isinstance(got, Reply) and (got.status < 300 or got.status in request.accepted_statuses):
                return parse(got)
            reached = reached or (got.reached if isinstance(got, NoAnswer) else got.status != REFUSED)
            failure = _failure(got, request_id, reached)
            wait = self.options.retries.wait(attempt, _retry_after(got), self.chance())
            if not _is_retryable(request, got) or self.clock() + wait > end:
                raise failure
            yield Pause(wait)
        raise AssertionError("unreachable")

    def get(self, path: str, kind: type[T], params: Mapping[str, Any] | None = None) -> Steps[T]:
        return self.send(Request("GET", path, params or {}), parser_of(kind))

    def post(self, path: str, kind: type[T], body: Body | None = None, *, idempotent: bool = True) -> Steps[T]:
        """Posts; `idempotent` if the request changes something."""
        return self.send(Request("POST", path, body=body, idempotent=idempotent), parser_of(kind))

    def delete(self, path: str, kind: type[T]) -> Steps[T]:
        return self.send(Request("DELETE", path), parser_of(kind))

    def pages(self, path: str, name: str, kind: type[T], params: Mapping[str, Any] | None = None) -> Pages[T]:
        """Returns the pages of the list `name`."""
        return Pages(self, Request("GET", path, params or {}), name, kind)

    def _headers(self, request: Request, request_id: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "X-Request-ID": request_id, **request.headers}
        if self.options.key is not None:
            headers["Authorization"] = f"Bearer {self.options.key}"
        if request.idempotent:
            headers["Idempotency-Key"] = uuid.uuid4().hex
        if request.body is not None:
            headers["Content-Type"] = request.body.content_type
            headers["Content-Length"] = str(request.body.size)
        return headers


@dataclass(frozen=True)
class Pages(Generic[T]):
    """A list that is requested page by page."""

    api: Api
    request: Request
    name: str
    kind: type[T]

    def page(self, cursor: str | None) -> Steps[Page[T]]:
        """Requests the page at `cursor`, which the previous page returned."""
        params = {**self.request.params, "limit": self.api.options.page_size}
        if cursor is not None:
            params["cursor"] = cursor
        return self.api.send(Request(self.request.method, self.request.path, params), self._read)

    def _read(self, reply: Reply) -> Page[T]:
        answer = parse_json(reply)
        entries: tuple[T, ...] = read(tuple[self.kind, ...], answer.get(self.name))  # type: ignore[name-defined]
        return Page(entries, answer.get("cursor"))


def parser_of(kind: type[T], field: str | None = None) -> Callable[[Reply], T]:
    """Returns the function that reads a reply, or one field of it, as a `kind`."""
    if field is None:
        return lambda reply: read(kind, parse_json(reply))
    return lambda reply: read(kind, parse_json(reply).get(field))


def parse_json(reply: Reply) -> dict[str, Any]:
    """Returns the JSON object of the reply. Raises UnexpectedAnswer."""
    try:
        answer = json.loads(reply.body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        kind = reply.headers.get("content-type", "nothing")
        message = f"expected an answer of whosthere; got {kind}: {reply.body[:SHOWN_CHARACTERS]!r}"
        raise UnexpectedAnswer(message, request_id=reply.headers.get("x-request-id"))
    return answer


def base_url(url: str) -> str:
    """Returns the URL to which paths are appended. Raises ValueError if it cannot be a service's."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is not a URL: {error}; expected one such as http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise ValueError(f"{url!r} is not the URL of a service; expected one such as http://127.0.0.1:8000")
    return url.rstrip("/")


def address(*parts: str) -> str:
    """Returns the path of an object. Raises ValueError for ids that change the path: proxies resolve `..`, so that a
    DELETE of an identity `..` would delete its gallery."""
    for part in parts:
        if part in ("", ".", ".."):
            raise ValueError(f"{part!r} cannot be part of a path; expected a name or an id")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def no_answer(error: httpx.RequestError) -> NoAnswer:
    """Classifies the error of a request without an answer."""
    unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return NoAnswer(why, not unreached, _is_permanent(error))


def _is_permanent(error: BaseException) -> bool:
    """Returns whether a retry would fail as well: an untrusted certificate, an answer that cannot be decoded."""
    cause = error.__cause__ or error.__context__
    here = isinstance(error, ssl.SSLCertVerificationError | httpx.DecodingError | httpx.TooManyRedirects)
    return here or (cause is not None and _is_permanent(cause))


def _failure(got: Reply | NoAnswer, request_id: str, reached: bool) -> WhosthereError:
    if isinstance(got, NoAnswer):
        suffix = "; the request may have been executed" if reached else ""
        return ServiceUnreachable(f"no answer: {got.why}{suffix}", request_id=request_id, maybe_done=reached)
    return error_from(got.status, got.body, got.headers.get("x-request-id", request_id))


def _is_retryable(request: Request, got: Reply | NoAnswer) -> bool:
    if isinstance(got, NoAnswer):
        return not got.permanent and not (request.unrepeatable and got.reached)
    if request.unrepeatable:
        return got.status == REFUSED
    return got.status in RETRYABLE or (got.status == 409 and f'"{REQUEST_IN_PROGRESS}"'.encode() in got.body)


def _retry_after(got: Reply | NoAnswer) -> float:
    """Returns the seconds of Retry-After, which may be a date (RFC 9110, 10.2.3); 0 without one."""
    text = got.headers.get("retry-after", "").strip() if isinstance(got, Reply) else ""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max((then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _sendable(text: str) -> bool:
    return text != "" and text.isascii() and text.isprintable()
