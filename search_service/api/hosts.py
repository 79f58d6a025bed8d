"""Refuses requests that other people's web pages send through a browser on this machine or in its network.

A page can send multipart to any address without asking first (no CORS preflight); browsers name the page in `Origin`.
A page whose own host name resolves to this machine (DNS rebinding) has a matching origin, but the wrong name in `Host`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from search_service.api.errors import Forbidden


def check_host(headers: Headers, allowed: frozenset[str] | None, origins: frozenset[str]) -> None:
    """Raises Forbidden for pages of an origin that is neither this service's nor one of `origins` and, unless `allowed`
    is None, for host names other than those and this machine's own."""
    host = ", ".join(headers.getlist("host"))  # two are not a valid name
    name = _hostname(host)
    if allowed is not None and not (is_loopback(name) or name in allowed):
        message = f"the host name {name!r} is not served here; WHOSTHERE_ALLOWED_HOSTS may name it"
        raise Forbidden(message, code="forbidden_host")
    for origin in headers.getlist("origin"):
        if origin.lower().partition("://")[2] != host.lower() and origin.lower() not in origins:
            message = (
                f"the request comes from a page of {origin!r}, which is not this service; WHOSTHERE_ALLOWED_ORIGINS "
                "may name it"
            )
            raise Forbidden(message, code="forbidden_origin")


def allowed_hosts(listening_on: str, configured: Iterable[str]) -> frozenset[str] | None:
    """Returns the host names that are served besides this machine's own; None for any."""
    names = frozenset(name.strip().lower() for name in configured) - {""}
    return names if names or is_loopback(listening_on) else None


def is_loopback(name: str) -> bool:
    """Returns whether it is a name or an address of the machine itself."""
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str:
    """Returns the host without port and brackets; empty if it is not valid."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
