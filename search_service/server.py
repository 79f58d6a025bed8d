"""Runs the service (`whosthere serve`) in one process, or in several that share a port."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.settings import PREFIX, Settings, read_settings
from indexer.vision.runtime import usable_cores
from search_service import logs
from search_service.service_context import ServiceContext

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

SHUTDOWN_SECONDS = 25
"""How long running requests may take after the service was asked to stop; a batch takes a second at most."""

WORKER_SILENT_SECONDS = 15
"""After which uvicorn replaces a worker that does not answer its parent. Answers took 0.5 s at most while networks were
loaded on a machine with eight times as many runnable processes as cores. The parent handles no signal while it waits,
so with SHUTDOWN_SECONDS, STOP_SECONDS and CLOSE_SECONDS it stays under the minute after which supervisors kill."""

ORPHAN_SECONDS = 60
"""How long a worker may take to end after its parent is gone: the time after which supervisors would kill it."""

PORT_SECONDS = 5
"""How long a start waits for its port. Workers whose parent was killed close it within a second."""


def run(settings: Settings) -> None:
    """Answers over HTTP until stopped. Raises the errors of opening the home folder and its database."""
    import uvicorn

    from search_service.api.app import create_app
    from search_service.api.connections import protocol_of
    from search_service.api.metrics_files import shared_folder
    from search_service.api.security import check_address

    logs.set_up(settings.log_format)
    context = ServiceContext(settings)
    check_address(settings, context.keys.has_any())  # fails in one line if the database does not answer
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "http": protocol_of(settings),
        "log_config": None,
        "access_log": False,
        "proxy_headers": False,  # else the caller's address would be what a proxy names, and no proxy could be trusted
        "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
    }
    _wait_for_port(settings.host, settings.port)
    if settings.workers == 1:
        uvicorn.run(create_app(context, _end_in_time), **options)
        return
    context.close()
    with shared_folder() as metrics_folder:
        os.environ |= _environment(settings, metrics_folder)
        uvicorn.run(
            f"{__name__}:worker",
            factory=True,
            workers=settings.workers,
            timeout_worker_healthcheck=WORKER_SILENT_SECONDS,
            **options,
        )


def worker() -> FastAPI:
    """Returns the application of one of several processes, configured by the environment that `run` prepared."""
    from search_service.api.metrics_files import prepare

    settings = read_settings()
    logs.set_up(settings.log_format)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    prepare()
    from search_service.api.app import create_app  # after that, because it imports prometheus_client

    return create_app(ServiceContext(settings), _end_in_time)


def _end_in_time() -> None:
    """Ends this process when its parts have had their time to stop. After SIGINT, unlike SIGTERM, Python would wait for
    threads that hang, such as those of requests that were abandoned after SHUTDOWN_SECONDS."""
    from search_service.api.app import CLOSE_SECONDS, STOP_SECONDS

    def end() -> None:
        time.sleep(STOP_SECONDS + CLOSE_SECONDS)
        log.warning("the process ends although some of its threads are still working")
        os._exit(0)

    threading.Thread(target=end, name="end", daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker, after what it took, when the parent is gone: nothing else would end it then.

    Multiprocessing holds a pipe that the parent closes however it ends. uvicorn's own pipe stays open, because each
    worker has both ends of it; the kernel's parent-death signal follows the parent's thread and exists on Linux only.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    log.warning("the parent process is gone: this worker finishes its requests and ends")
    signal.raise_signal(signal.SIGTERM)
    time.sleep(ORPHAN_SECONDS)
    os._exit(1)


def _wait_for_port(host: str, port: int) -> None:
    """Waits while workers of a killed service still close the port. Any other problem is left for uvicorn to report."""
    deadline = time.monotonic() + PORT_SECONDS
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while time.monotonic() < deadline:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    time.sleep(0.1)
                    continue
            return


def _environment(settings: Settings, metrics_folder: Path | None) -> dict[str, str]:
    """Returns the environment of the workers: settings of the command line, their share of the cores, and the folder in
    which they count together, if there is one."""
    from search_service.api.metrics_files import FOLDER_VARIABLE

    cores = settings.threads or usable_cores()
    configured = {
        "home": str(settings.home),
        "host": settings.host,
        "port": str(settings.port),
        "device": str(settings.device),
        "root_path": settings.root_path,
        "threads": str(max(1, cores // settings.workers)),
    }
    shared = {FOLDER_VARIABLE: str(metrics_folder)} if metrics_folder is not None else {}
    return {PREFIX + name.upper(): value for name, value in configured.items()} | shared
