"""`whosthere gallery export` and `whosthere gallery import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.app_context import AppContext
from indexer.enrollment.parquet.file import MEMORY, PROCESS_STATUS
from tests.indexer.cli.command import Command
from tests.indexer.enrollment.parquet.galleries import (
    DIM,
    GOOD,
    contents,
    fill,
    floats,
    make_gallery,
    plain,
    write,
)


@pytest.fixture
def command(context: AppContext) -> Command:
    return Command(context.settings.home)


def test_commands_export_and_import_a_gallery(context: AppContext, command: Command, path: Path) -> None:
    fill(context)
    made = command.ok("gallery", "export", "staff", path, "--json").json
    assert made.pop("seconds") >= 0
    assert made == {
        "gallery": "staff",
        "model": "sface",
        "identities": 3,
        "faces": 4,
        "file": str(path),
        "bytes": path.stat().st_size,
    }
    summary = command.ok("gallery", "import", "copy", path, "--json").json
    assert summary.pop("seconds") >= 0
    expected = {"gallery": "copy", "model": "sface", "rows": 5, "enrolled": 5, "unchanged": 0, "rejected": 0}
    assert summary == {**expected, "identities": 3, "faces": 4, "rejections": []}
    assert contents(context, "copy") == contents(context)
    ran = command.ok("gallery", "export", "staff", path)
    assert "Gallery staff (sface): 3 identities with 4 faces written to" in ran.out
    ran = command.ok("gallery", "import", "copy", path)
    assert ran.out.startswith("5 rows: 0 enrolled, 5 unchanged, 0 rejected, in ")
    assert ran.out.endswith("Gallery copy (sface) holds 3 identities with 4 faces.\n")


def test_import_command_lists_rejected_rows(command: Command, path: Path) -> None:
    write(path, {"external_id": ["ana"] + ["bob"] * 25, "embedding": floats([GOOD] + [GOOD[1:]] * 25)})
    ran = command("gallery", "import", "staff", path, "--model", "sface", "--json")
    assert ran.code == 3
    counted = {key: ran.json[key] for key in ("rows", "enrolled", "rejected", "identities", "faces")}
    assert counted == {"rows": 26, "enrolled": 1, "rejected": 25, "identities": 1, "faces": 1}
    assert len(ran.json["rejections"]) == 25
    assert ran.json["rejections"][0] == {
        "row": 1,
        "external_id": "bob",
        "reason": "invalid_row",
        "message": f"an embedding must have {DIM} numbers; got {DIM - 1}",
    }
    ran = command("gallery", "import", "staff", path)
    assert ran.code == 3
    assert "... and 5 more" in ran.out
    assert ran.out.count("invalid_row") == 20


def test_import_command_limits_the_listed_rejections(
    command: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.cli.parquet.MOST_REJECTIONS", 3)
    write(path, {"external_id": ["bob"] * 5, "embedding": floats([[1.0]] * 5)})
    ran = command("gallery", "import", "staff", path, "--json")
    assert (ran.json["rejected"], len(ran.json["rejections"])) == (5, 3)


def test_commands_report_errors_with_their_exit_codes(
    context: AppContext, command: Command, path: Path, tmp_path: Path
) -> None:
    make_gallery(context)
    path.write_bytes(b"no")
    cases: list[tuple[Sequence[str | Path], int, str]] = [
        (["import", "staff", path], 2, "some.parquet cannot be read as a Parquet file"),
        (["import", "staff", tmp_path / "none"], 2, "does not exist"),
        (
            ["import", "staff", write(tmp_path / "a", plain(1)), "--model", "buffalo_l"],
            1,
            "a gallery never mixes packs",
        ),
        (["import", "staff", tmp_path / "a", "--model", "nothing"], 2, "no model pack 'nothing'"),
        (["import", "a/b", tmp_path / "a"], 2, "must not contain a slash"),
        (["export", "nobody", path], 1, "there is no gallery 'nobody'"),
        (["export", "staff", tmp_path], 2, "is a directory"),
        (["export", "staff", path / "under"], 1, "cannot be written"),
    ]
    for arguments, code, why in cases:
        ran = command("gallery", *arguments)
        assert (ran.code, ran.out) == (code, ""), ran
        assert why in ran.err


@pytest.mark.skipif(not PROCESS_STATUS.exists(), reason="the memory is bounded on Linux only")
def test_import_command_bounds_the_memory_of_a_file_that_grows(command: Command, path: Path) -> None:
    """The file names the same text of 16 MB in each of 200 rows."""
    name = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["x" * 2**24]))
    pq.write_table(pa.table(plain(*range(200)) | {"name": name}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 2**20
    ran = command.script("gallery", "import", "staff", path, "--model", "sface")
    assert ran.code == 2, ran
    assert f"some.parquet has rows that need more than {MEMORY:,} bytes of memory" in ran.err
    write(path, plain(1, 2))
    assert command.script("gallery", "import", "staff", path, "--model", "sface").code == 0
