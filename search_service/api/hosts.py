"""Who may call: not the web pages of others, which reach this service through a browser beside it.

A page can send multipart to any address without asking (no CORS preflight); browsers tell whose page it is in `Origin`.
And a page whose own name is made to resolve to this machine (DNS rebinding) is no stranger to the browser; then its
name is in `Host`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from search_service.api.errors import Forbidden, domain_error


class HostCheck:
    """ASGI middleware: answers 403 to pages of another origin and, unless `allowed` is None, to host names other than
    those and this machine's own."""

    def __init__(self, app: ASGIApp, allowed: frozenset[str] | None) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope))
            except Forbidden as error:
                await domain_error(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        """Raises Forbidden."""
        host = ", ".join(headers.getlist("host"))  # two are no name
        name = _name(host)
        if self._allowed is not None and not (is_loopback(name) or name in self._allowed):
            message = f"the host name {name!r} is not served here; WHOSTHERE_ALLOWED_HOSTS may name it"
            raise Forbidden(message, code="forbidden_host")
        for origin in headers.getlist("origin"):
            if origin.lower().partition("://")[2] != host.lower():
                message = f"the request comes from a page of {origin!r}, which is not this service"
                raise Forbidden(message, code="forbidden_origin")


def allowed_hosts(listening_on: str, named: Iterable[str]) -> frozenset[str] | None:
    """The host names that are served beside this machine's own; None for any."""
    names = frozenset(name.strip().lower() for name in named) - {""}
    return names if names or is_loopback(listening_on) else None


def is_loopback(name: str) -> bool:
    """Whether it is a name or an address of the machine itself."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """Without the port and the brackets; nothing where it is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
