"""`docs/python-client.md`: its examples run with the real service, and its tables are complete."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from search_service.client import Client, Retries, sync_client
from tests.search_service.api.serving import Running
from tests.test_docs import office as office
from tests.waiting import DEADLINE

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "python-client.md").read_text()


def test_code_of_the_page_runs(service: Running, office: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    code = "\n".join(blocks).replace("http://127.0.0.1:8000", service.url).replace('"staff"', f'"s-{uuid.uuid4().hex}"')
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=office,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ana 0.")
    assert lines[1].startswith("several_faces ")
    assert "done" in lines
    assert lines[-1] in {path.name for path in (office / "photos").iterdir()}
    assert len(blocks) == 2


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("`faces`", Client),
        ("`faces.keys`", sync_client.Keys),
        ("`faces.webhooks`", sync_client.Webhooks),
        ("a gallery", sync_client.GalleryHandle),
        ("an identity", sync_client.IdentityHandle),
        ("a job", sync_client.JobHandle),
    ],
)
def test_table_lists_every_method(row: str, kind: type) -> None:
    (cell,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", PAGE, re.MULTILINE)
    methods = {name for name, value in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    assert set(re.findall(r"\w+", cell)) == methods - {"close"}


def test_numbers_of_the_page_are_the_defaults() -> None:
    assert f"`Retries.deadline_seconds` ({Retries.deadline_seconds:g})" in PAGE
    assert f"`timeout_seconds` ({inspect.signature(Client).parameters['timeout_seconds'].default:g})" in PAGE
