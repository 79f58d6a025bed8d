"""Downloads over HTTP into a partial file: resumed after interruptions, and never mixed from two versions of a file."""

from __future__ import annotations

import re
import ssl
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from indexer.errors import ModelUnavailable
from indexer.models.model_files import UnusableFile
from indexer.models.model_sources import SourceNotFound
from indexer.models.partial_file import PartialFile, ResumeState, shown

if TYPE_CHECKING:
    import httpx

MISSING = (401, 403, 404, 410)
"""Statuses after which the next source is tried. Object stores answer 403 for missing files to clients that may not
list them."""

MAX_REDIRECTS = 10


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for a server, and how often to try again."""

    timeout_seconds: float = 30.0
    """A connection that delivers no byte for this long counts as interrupted."""
    pauses_seconds: tuple[float, ...] = (0.5, 2.0, 5.0)
    """Pauses before the attempts that follow an interruption. They start again whenever an attempt has stored more than
    any before it; after the last one the download fails."""


class _Interrupted(Exception):
    """The response ended or stalled before the file was complete."""


class _NoResponse(_Interrupted):
    """The request got no usable response."""


def download(part: PartialFile, retry: RetryPolicy) -> None:
    """Completes the partial file from its URL. If that fails, what is stored is kept, unless it is useless.

    Raises SourceNotFound, ModelUnavailable, and OSError if the folder cannot be written.
    """
    if part.is_complete:
        return
    first = most = part.resumable
    pauses = iter(retry.pauses_seconds)
    with _client(retry) as client:
        while True:
            try:
                _transfer(client, part)
                return
            except UnusableFile:
                part.discard()
                raise
            except _Interrupted as error:
                if not (part.resumable or isinstance(error, _NoResponse)):
                    part.discard()
                if part.resumable > most:
                    most, pauses = part.resumable, iter(retry.pauses_seconds)
                pause = None if most == first and isinstance(error, _NoResponse) else next(pauses, None)
                if pause is None:
                    kept = f"; {part.resumable} bytes are stored, and pulling again resumes from them"
                    problem = f"{shown(part.location)}: {error}{kept if part.resumable else ''}"
                    raise ModelUnavailable(f"{part.name} cannot be fetched from {problem}") from error
            time.sleep(pause)


def _client(retry: RetryPolicy) -> httpx.Client:
    """Returns a client that trusts the system's certificates and uses the proxies that the environment names."""
    import httpx

    try:
        return httpx.Client(
            headers={"User-Agent": "whosthere", "Accept-Encoding": "identity"},
            timeout=retry.timeout_seconds,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_keepalive_connections=0),  # a reused connection may be closed already
        )
    except (ValueError, ImportError, httpx.InvalidURL) as error:  # the message may contain the proxy's password
        raise ModelUnavailable(
            "the proxy that the environment names cannot be used: expected http://HOST:PORT, or socks5://HOST:PORT "
            "with the package httpx[socks] installed"
        ) from error


def _transfer(client: httpx.Client, part: PartialFile) -> None:
    """Stores what one response has of the file. Raises _Interrupted if more is missing after it."""
    import httpx

    response, start, total = _request(client, part)
    with closing(response):
        _check_response(part, response, total)
        validator = _validator(response)
        if not start:
            part.start(validator, total)
        try:
            part.receive(response.iter_raw(), total)
        except httpx.TransportError as error:
            raise _Interrupted(_reason(error)) from error
        if part.stored < (total or part.size):
            raise _Interrupted(f"the server sent {part.stored} of {total or part.size} bytes")
    part.record(validator, part.stored)


def _request(client: httpx.Client, part: PartialFile) -> tuple[httpx.Response, int, int | None]:
    """Requests the missing bytes, or all if the server cannot continue.

    Returns the response, the offset of its content, and the size of the file if it is known, in bytes.
    """
    state, stored = part.resume_state(), part.resumable
    requests: list[dict[str, str]] = [{}]
    if state and stored:
        condition = {"If-Range": state.validator} if state.validator else {}
        requests.insert(0, {"Range": f"bytes={stored}-"} | condition)
    for headers in requests:
        response = _get(client, part.location, headers)
        if response.status_code == 200:
            return response, 0, _content_length(response)
        if state and headers and (total := _resumed_total(response, stored, state)):
            return response, stored, total
        response.close()
    raise UnusableFile(f"{part.name} cannot be fetched from {shown(part.location)}, which does not send the whole file")


def _get(client: httpx.Client, url: str, headers: dict[str, str]) -> httpx.Response:
    """Follows redirects, except from HTTPS to HTTP. Returns a success, or status 416: the server has no such range."""
    import httpx

    try:
        target = httpx.URL(url)
        auth = (target.username, target.password) if target.userinfo else None  # apart, as httpx logs the URL
        request = client.build_request("GET", target.copy_with(userinfo=b""), headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = client.send(request, auth=auth, stream=True)
            following = response.next_request
            if following is None:
                break
            response.close()  # unread: httpx's own redirects would load a body of any size
            if following.url.scheme != "https" and not following.url.scheme == request.url.scheme == "http":
                break
            request, auth = following, None
    except (httpx.TransportError, httpx.InvalidURL, ValueError) as error:
        raise _NoResponse(_reason(error)) from error
    if response.is_success or response.status_code == 416:
        return response
    response.close()
    status = f"{response.status_code} {response.reason_phrase}"
    if response.status_code in MISSING:
        raise SourceNotFound(f"{shown(url)} answers {status}")
    redirect = f", a redirect to {shown(str(following.url))} that is not followed" if following else ""
    raise _NoResponse(f"the server answers {status}{redirect}")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _validator(response: httpx.Response) -> str:
    """Returns what identifies this version of the file in If-Range; empty if the server names nothing usable."""
    etag: str = response.headers.get("ETag", "")
    validator: str = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    return validator if validator.isascii() else ""


def _content_length(response: httpx.Response) -> int | None:
    length = response.headers.get("Content-Length")
    return None if length is None or "Transfer-Encoding" in response.headers else int(length)


def _resumed_total(response: httpx.Response, start: int, state: ResumeState) -> int | None:
    """Returns the size of the file in bytes, or None if the response does not continue this version at `start`."""
    content_range = re.fullmatch(rf"bytes {start}-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
    if response.status_code != 206 or not content_range:
        return None
    last, total = map(int, content_range.groups())
    name = "ETag" if state.validator.startswith('"') else "Last-Modified"
    is_same_version = state.validator in ("", response.headers.get(name, state.validator))
    fits = start <= last < total == (state.total or total) and _content_length(response) in (None, last + 1 - start)
    return total if fits and is_same_version else None


def _check_response(part: PartialFile, response: httpx.Response, total: int | None) -> None:
    """Raises UnusableFile if the response cannot be the file. `total` is its size in bytes."""
    place, headers = shown(part.location), response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UnusableFile(f"{place} sends {part.name} encoded as {headers['Content-Encoding']}; expected no encoding")
    if not part.size and headers.get("Content-Type", "").lower().startswith("text/html"):
        raise UnusableFile(f"{place} sends a web page; expected {part.name}")
    if not part.is_verifiable and total is None and "Transfer-Encoding" not in headers:
        raise UnusableFile(f"{place} does not say how long {part.name} is, so a missing end would not be noticed")
