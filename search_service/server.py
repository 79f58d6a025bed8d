"""`whosthere serve`: the service in one process, or in several that share a port."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.settings import PREFIX, Settings, read_settings
from indexer.vision.runtime import usable_cores
from search_service import logs
from search_service.service_context import ServiceContext

if TYPE_CHECKING:
    from fastapi import FastAPI

SHUTDOWN_SECONDS = 30
"""For what was taken to be answered after the service was told to end; a batch takes a second at most."""

WORKER_SILENT_SECONDS = 60
"""After which a worker that tells its parent nothing is taken for dead: loading networks keeps it busy for some."""


def run(settings: Settings) -> None:
    """Answers over HTTP until stopped. Raises what opening the home and its database raises."""
    import uvicorn

    from search_service.api.app import create_app
    from search_service.api.metrics_files import shared_folder
    from search_service.api.security import check_address
    from search_service.workers import notice_deaths

    logs.set_up(settings.log_format)
    context = ServiceContext(settings)
    check_address(settings, context.keys.has_any())  # which also tells whether the database answers, in one line
    how: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
    }
    if settings.workers == 1:
        uvicorn.run(create_app(context), **how)
        return
    context.close()
    notice_deaths()
    with shared_folder() as counted:
        os.environ |= _environment(settings, counted)
        uvicorn.run(
            f"{__name__}:worker",
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=WORKER_SILENT_SECONDS,
            **how,
        )


def worker() -> FastAPI:
    """The application of one of several processes, by the environment that `run` gave it."""
    from search_service.api.app import create_app

    settings = read_settings()
    logs.set_up(settings.log_format)
    return create_app(ServiceContext(settings))


def _environment(settings: Settings, counted: Path | None) -> dict[str, str]:
    """What was said on the command line, for workers to read; the cores, divided among them; and where they count
    together, where they can."""
    from search_service.api.metrics_files import SHARED

    cores = settings.threads or usable_cores()
    said = {
        "home": str(settings.home),
        "host": settings.host,
        "port": str(settings.port),
        "device": str(settings.device),
        "threads": str(max(1, cores // settings.workers)),
    }
    shared = {SHARED: str(counted)} if counted is not None else {}
    return {PREFIX + name.upper(): value for name, value in said.items()} | shared
