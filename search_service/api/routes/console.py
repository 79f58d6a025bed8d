"""/console: the web page, served from the files of `search_service/console`. It uses the public API like any caller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from search_service.api.permissions import public

FOLDER = Path(__file__).resolve().parents[2] / "console"

POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "media-src 'self' blob:",
    "connect-src 'self'",
    "form-action 'none'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
"""Nothing inline, nothing of another host, no frame around it, and no markup from text."""

HEADERS = {
    "Content-Security-Policy": "; ".join(POLICY),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",  # browsers ask by ETag, so that an update of the service replaces every file
}

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
"""Content types by suffix. Python's own table depends on the machine, and browsers refuse modules of another type."""

# The page holds no data of the service; everything it shows is requested with the caller's key.
router = APIRouter(prefix="/console", include_in_schema=False, dependencies=[public()])

_files = StaticFiles(directory=FOLDER, check_dir=False)


@router.api_route("", methods=["GET", "HEAD"], name="console")
async def console() -> Any:
    """Redirects to the folder by a relative address, which keeps the path prefix of a proxy."""
    return RedirectResponse("console/", 308, HEADERS)


@router.api_route("/{path:path}", methods=["GET", "HEAD"], name="console_file")
async def console_file(request: Request, path: str) -> Response:
    """Returns a file of the page."""
    response = await _files.get_response(path or "index.html", request.scope)
    response.headers.update(HEADERS)
    content_type = TYPES.get(Path(path or "index.html").suffix)
    if content_type is not None:
        response.headers["Content-Type"] = content_type
    return response
