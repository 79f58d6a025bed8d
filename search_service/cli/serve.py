"""`whosthere serve`."""

from __future__ import annotations

from pathlib import Path

import click

from indexer.cli.common import device_option, examples
from indexer.settings import read_settings


@click.command(epilog=examples("whosthere serve", "whosthere serve --host 0.0.0.0 --port 9000"))
@click.option("--host", help="Address to listen on (WHOSTHERE_HOST).")
@click.option("--port", type=int, help="Port to listen on; 0 chooses a free one (WHOSTHERE_PORT).")
@click.option("--workers", type=int, help="Number of worker processes (WHOSTHERE_WORKERS).")
@click.option("--root-path", help="Path below which a reverse proxy serves the API (WHOSTHERE_ROOT_PATH).")
@device_option
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
@click.pass_context
def serve(
    context: click.Context,
    host: str | None,
    port: int | None,
    workers: int | None,
    root_path: str | None,
    device: str | None,
    home: Path | None,
) -> None:
    """Serve the HTTP API until stopped."""
    from search_service.server import run

    home = home or context.find_root().params.get("home")
    run(read_settings(home=home, host=host, port=port, workers=workers, root_path=root_path, device=device))
