"""Generates the sync client from the async one: `make client` runs it, a test checks that it was run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

CLIENT = Path(__file__).resolve().parents[3] / "search_service" / "client"
ASYNC, SYNC = CLIENT / "async_client.py", CLIENT / "sync_client.py"

DOCSTRING = '"""The client that blocks. Generated from `async_client.py` by `make client`: do not edit."""'

TOKENS = {
    "AsyncClient": "Client",
    "AsyncGalleryHandle": "GalleryHandle",
    "AsyncIdentityHandle": "IdentityHandle",
    "AsyncJobHandle": "JobHandle",
    "AsyncKeys": "Keys",
    "AsyncWebhooks": "Webhooks",
    "async_chunks": "chunks",
    "aclose": "close",
    "asyncio": "time",
}
"""Names in the async client and their names in the sync one."""


def sync_source() -> str:
    """Returns the source of the sync client."""
    source = ASYNC.read_text().replace("Coroutine[Any, Any, T]", "T")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "async"), Path(folder, "sync")
        before.mkdir()
        (before / "client.py").write_text(DOCSTRING + source[source.index("\n\n") :])
        rule = unasync.Rule(f"{before}/", f"{after}/", TOKENS)
        unasync.unasync_files([str(before / "client.py")], [rule])
        source = (after / "client.py").read_text()
    for arguments in (("check", "--fix-only", "--unsafe-fixes"), ("format",)):
        command = [Path(sys.executable).with_name("ruff"), *arguments, "--quiet", "--stdin-filename", SYNC, "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


if __name__ == "__main__":
    SYNC.write_text(sync_source())
