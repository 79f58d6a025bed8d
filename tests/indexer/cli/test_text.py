"""Text that no database can store is reported by the command, with SQLite and PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import photos
from tests.indexer.cli.command import Command
from tests.postgres import Database


@pytest.fixture
def command(empty: Command, database: Database, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("WHOSTHERE_DATABASE_URL", database.url)
    empty.ok("gallery", "create", "staff")
    return empty


@pytest.mark.parametrize(
    ("row", "message"),
    [("a\0b,Ana", "an external_id must"), ("\0,Ana", "an external_id must"), ("ana,A\0a", "a name must")],
)
def test_row_with_a_nul_character_is_rejected(command: Command, tmp_path: Path, row: str, message: str) -> None:
    """The other rows are enrolled."""
    (tmp_path / "1.png").write_bytes(photos.astronaut())
    (tmp_path / "2.png").write_bytes(photos.astronaut() + b"\0")
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"image,external_id,name\n1.png,{row}\n2.png,ben,Ben\n")
    ran = command("enroll", tmp_path, "--manifest", manifest, "--gallery", "staff", "--json")
    assert ran.code == 3
    assert [one["outcome"] for one in ran.json["results"]] == ["rejected", "enrolled"]
    assert message in ran.json["results"][0]["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("gallery", "show", "\udcff"),
        ("gallery", "delete", "\udcff", "--yes"),
        ("identity", "show", "\udcff", "--gallery", "staff"),
        ("identity", "list", "--gallery", "\udcff"),
        ("events", "forget", "\udcff", "--gallery", "staff", "--yes"),
        ("webhooks", "dead", "\udcff"),
    ],
)
def test_argument_that_is_not_utf_8_is_wrong_usage(command: Command, arguments: tuple[str, ...]) -> None:
    """Python decodes such bytes of the command line as surrogates. An argument cannot contain NUL."""
    ran = command(*arguments)
    assert ran.code == 2
    assert "not valid Unicode" in ran.err
