"""One request and its answer, however often it is tried: the part of the client that does no I/O.

What is to be done comes as steps: a generator yields `Send` and `Pause`, and is sent what came of each. The sync and
the async client are two ways of doing a step.
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
from search_service.client.bodies import Body, said
from search_service.client.errors import LONGEST_SHOWN, ServiceUnreachable, UnexpectedAnswer, WhosthereError, error_of
from search_service.client.reading import read

T = TypeVar("T")

MAY_PASS = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may be answered otherwise soon: too much to do, something not there for the
moment, and a proxy that got no answer."""

NOT_DONE = 429
"""The one of them that says for sure that nothing was done."""

IN_PROGRESS = "request_in_progress"
"""The code of a 409 while the first try of a request is still being answered."""

LONGEST_REQUEST_ID = 64
"""Characters of an `X-Request-ID` that the service takes."""


@dataclass(frozen=True)
class Retries:
    """How long what may pass is tried again. The waits double from the first to the longest, each cut at random ("full
    jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that many callers do not
    come back together; what `Retry-After` asks for comes on top."""

    deadline_seconds: float = 60.0
    """No try begins later than this after the first one; 0 for a single try."""
    first_seconds: float = 0.25
    longest_seconds: float = 8.0

    def wait(self, attempt: int, asked: float, chance: float) -> float:
        """Seconds after the try number `attempt`, from 0 on; `asked` is what Retry-After says, `chance` is 0..1."""
        doubled = self.first_seconds * 2.0 ** min(attempt, 63)  # which is longer than any longest
        return asked + chance * min(self.longest_seconds, doubled)


@dataclass(frozen=True)
class Options:
    key: str | None = field(default=None, repr=False)
    timeout_seconds: float = 30.0
    """Of one try: how long nothing may come or go. Two of them fit into the default deadline of all tries."""
    retries: Retries = Retries()
    request_id: str | None = None
    """`X-Request-ID` of every request; None for a new one each."""
    page_size: int = 1000
    """Entries asked for at a time by what lists; the most that the service gives."""

    def __post_init__(self) -> None:
        """Raises ValueError on what cannot be sent."""
        if self.key is not None and not _sendable(self.key):
            raise ValueError(
                "key holds characters that no API key has; expected one as `whosthere keys create` told it"
            )
        given = self.request_id
        if given is not None and not (_sendable(given) and len(given) <= LONGEST_REQUEST_ID):
            raise ValueError(f"request_id is {given!r}; expected 1 to {LONGEST_REQUEST_ID} printable ASCII characters")

    def changed(
        self,
        timeout_seconds: float | None,
        retries: Retries | None,
        request_id: str | None,
        page_size: int | None,
    ) -> Options:
        """The same, but for what is not None."""
        given = {
            "timeout_seconds": timeout_seconds,
            "retries": retries,
            "request_id": request_id,
            "page_size": page_size,
        }
        return replace(self, **said(given))


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fine: tuple[int, ...] = ()
    """Statuses that are answers, besides those of success."""
    keyed: bool = False
    """A POST that changes something: it is sent with one Idempotency-Key, however often."""
    once: bool = False
    """A second time it would be answered otherwise: it is not tried again once it may have been done."""


@dataclass(frozen=True)
class Send:
    request: Request
    headers: Mapping[str, str]
    timeout_seconds: float


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """Their names are looked up in lower case."""
    body: bytes


@dataclass(frozen=True)
class Lost:
    """There was no answer."""

    why: str
    reached: bool
    """Whether the request may have reached the service."""
    hopeless: bool
    """Whether it will be the same the next time."""


Steps: TypeAlias = Generator[Send | Pause, Reply | Lost | None, T]


@dataclass(frozen=True)
class Api:
    """Asks, under the same options."""

    options: Options
    clock: Callable[[], float] = time.monotonic
    chance: Callable[[], float] = random.random

    def ask(self, request: Request, understand: Callable[[Reply], T]) -> Steps[T]:
        """What `understand` makes of the answer. Raises WhosthereError."""
        known_as = self.options.request_id or uuid.uuid4().hex
        headers = self._headers(request, known_as)
        end = self.clock() + self.options.retries.deadline_seconds
        reached = False
        for attempt in count():
            got = yield Send(request, headers, self.options.timeout_seconds)
            assert got is not None  # noqa: S101 (a Send is answered)
            if isinstance(got, Reply) and (got.status < 300 or got.status in request.fine):
                return understand(got)
            reached = reached or (got.reached if isinstance(got, Lost) else got.status != NOT_DONE)
            failure = _failure(got, known_as, reached)
            wait = self.options.retries.wait(attempt, _retry_after(got), self.chance())
            if not _may_try_again(request, got) or self.clock() + wait > end:
                raise failure
            yield Pause(wait)
        raise AssertionError("unreachable")

    def get(self, path: str, kind: type[T], params: Mapping[str, Any] | None = None) -> Steps[T]:
        return self.ask(Request("GET", path, params or {}), as_a(kind))

    def post(self, path: str, kind: type[T], body: Body | None = None, *, keyed: bool = True) -> Steps[T]:
        """`keyed` where it changes something."""
        return self.ask(Request("POST", path, body=body, keyed=keyed), as_a(kind))

    def pages(self, path: str, name: str, kind: type[T], params: Mapping[str, Any] | None = None) -> Pages[T]:
        """The entries of the list `name`."""
        return Pages(self, Request("GET", path, params or {}), name, kind)

    def _headers(self, request: Request, known_as: str) -> dict[str, str]:
        headers = {"Accept": "application/json", "X-Request-ID": known_as, **request.headers}
        if self.options.key is not None:
            headers["Authorization"] = f"Bearer {self.options.key}"
        if request.keyed:
            headers["Idempotency-Key"] = uuid.uuid4().hex
        if request.body is not None:
            headers["Content-Type"] = request.body.content_type
            headers["Content-Length"] = str(request.body.size)
        return headers


@dataclass(frozen=True)
class Pages(Generic[T]):
    """A list that comes page by page."""

    api: Api
    request: Request
    name: str
    kind: type[T]

    def page(self, cursor: str | None) -> Steps[Page[T]]:
        """The page that begins at the cursor, which the one before it told."""
        params = {**self.request.params, "limit": self.api.options.page_size}
        if cursor is not None:
            params["cursor"] = cursor
        return self.api.ask(Request(self.request.method, self.request.path, params), self._read)

    def _read(self, reply: Reply) -> Page[T]:
        told = json_of(reply)
        entries: tuple[T, ...] = read(tuple[self.kind, ...], told.get(self.name))  # type: ignore[name-defined]
        return Page(entries, told.get("cursor"))


def as_a(kind: type[T]) -> Callable[[Reply], T]:
    return lambda reply: read(kind, json_of(reply))


def json_of(reply: Reply) -> dict[str, Any]:
    """Raises UnexpectedAnswer."""
    try:
        told = json.loads(reply.body)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        kind = reply.headers.get("content-type", "nothing")
        message = f"expected an answer of whosthere; got {kind}: {reply.body[:LONGEST_SHOWN]!r}"
        raise UnexpectedAnswer(message, request_id=reply.headers.get("x-request-id"))
    return told


def base_of(url: str) -> str:
    """What every path is appended to. Raises ValueError on what is no address of a service."""
    try:
        told = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}; expected one as http://127.0.0.1:8000") from error
    if told.scheme not in ("http", "https") or not told.host or told.query or told.fragment:
        raise ValueError(f"{url!r} is no address of a service; expected one as http://127.0.0.1:8000")
    return url.rstrip("/")


def address(*parts: str) -> str:
    """The path of something. Raises ValueError on an id that would make it the path of something else: `..` in a DELETE
    is the gallery's own path to whoever resolves it on the way."""
    for part in parts:
        if part in ("", ".", ".."):
            raise ValueError(f"{part!r} cannot be part of an address; expected the name or id of something")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def lost(error: httpx.RequestError) -> Lost:
    """What is known of a request that has no answer."""
    unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Lost(why, not unreached, _is_hopeless(error))


def _is_hopeless(error: BaseException) -> bool:
    """Whether it will be the same again: a certificate that is not believed, an answer that cannot be unpacked."""
    cause = error.__cause__ or error.__context__
    here = isinstance(error, ssl.SSLCertVerificationError | httpx.DecodingError | httpx.TooManyRedirects)
    return here or (cause is not None and _is_hopeless(cause))


def _failure(got: Reply | Lost, known_as: str, reached: bool) -> WhosthereError:
    if isinstance(got, Lost):
        told = "; whether it was done is not known" if reached else ""
        return ServiceUnreachable(f"no answer: {got.why}{told}", request_id=known_as, maybe_done=reached)
    return error_of(got.status, got.body, got.headers.get("x-request-id", known_as))


def _may_try_again(request: Request, got: Reply | Lost) -> bool:
    if isinstance(got, Lost):
        return not got.hopeless and not (request.once and got.reached)
    if request.once:
        return got.status == NOT_DONE
    return got.status in MAY_PASS or (got.status == 409 and f'"{IN_PROGRESS}"'.encode() in got.body)


def _retry_after(got: Reply | Lost) -> float:
    """Seconds; 0 where it is not said. Some proxies tell a time (RFC 9110, 10.2.3)."""
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
