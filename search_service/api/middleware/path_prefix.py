"""Knows below which path a reverse proxy serves the application, so that links and redirections lead there."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.errors import InvalidRequest
from indexer.settings import PATH_PREFIX
from search_service.api.errors import send_error
from search_service.api.shortening import short

HEADER = "X-Forwarded-Prefix"


class PathPrefix:
    """ASGI middleware. Sets `root_path` of a request and puts it before its path, unless the proxy left it there.

    The prefix is that of trusted proxies' `X-Forwarded-Prefix`, one after the other if there are several, or else the
    configured one.
    """

    def __init__(self, app: ASGIApp, root_path: str, trusted: tuple[IPv4Network | IPv6Network, ...]) -> None:
        self.app = app
        self._root_path = root_path
        self._trusted = trusted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                prefix = self._prefix(scope)
            except InvalidRequest as error:
                await send_error(error, scope, receive, send)
                return
            if prefix:
                raw = scope.get("raw_path") or b""
                scope["root_path"] = prefix
                if not scope["path"].startswith(f"{prefix}/"):
                    scope["path"], scope["raw_path"] = prefix + scope["path"], prefix.encode() + raw
        await self.app(scope, receive, send)

    def _prefix(self, scope: Scope) -> str:
        """Raises InvalidRequest where a trusted proxy sends something else than a path."""
        sent = Headers(scope=scope).getlist(HEADER)
        if not sent or not self._trusts(scope):
            return self._root_path
        prefix = "".join(part.strip().removesuffix("/") for value in sent for part in value.split(","))
        if not re.fullmatch(PATH_PREFIX, prefix):
            raise InvalidRequest(f"{HEADER} is {short(', '.join(sent))}; expected a path such as /faces")
        return prefix

    def _trusts(self, scope: Scope) -> bool:
        try:
            address = ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)
