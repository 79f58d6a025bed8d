"""`whosthere`: galleries, identities, models, doctor, settings, help and the demo."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from indexer.models.packs import SFACE
from search_service.cli import main
from search_service.cli.app import whosthere
from search_service.demo import PROBES
from tests.indexer.cli.command import SCRIPT, Command, Ran
from tests.indexer.cli.conftest import Demo
from tests.variants import PRECISION_SETTING, clean_environment
from tests.waiting import DEADLINE


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Returns the words of every command that is not a group."""
    found: list[tuple[str, ...]] = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += commands(command, (*path, name)) if isinstance(command, click.Group) else [(*path, name)]
    return found


# Galleries and identities


def only_problem(ran: Ran) -> Any:
    """Returns the only finding of `doctor --json` that is not ok."""
    assert ran.code == 1
    problems = [finding for finding in ran.json if not finding["ok"]]
    assert len(problems) == 1, problems
    return problems[0]


def test_gallery_is_created_shown_listed_and_deleted(empty: Command, demo: Demo) -> None:
    assert "There are no galleries" in empty.ok("gallery", "list").out
    assert empty.ok("gallery", "list", "--json").json == []
    created = empty.ok("gallery", "create", "staff", "--json").json
    counts = {"identities": 0, "faces": 0}
    assert created == {"name": "staff", "model": "sface", "dim": 128, "created_at": created["created_at"], **counts}
    again = empty("gallery", "create", "staff")
    assert (again.code, again.err) == (1, "Error: there is a gallery 'staff' already\n")
    empty.ok("enroll", demo.photo("collins"), "--gallery", "staff")
    shown = empty.ok("gallery", "show", "staff", "--json").json
    assert list(shown) == ["name", "model", "dim", "identities", "faces", "created_at", "index"]
    assert (shown["identities"], shown["faces"], shown["created_at"]) == (1, 1, created["created_at"])
    assert shown["index"] == {"kind": "exact", "faces": 1, "seq": 2, "snapshot_seq": 2, "checked": None}
    assert empty.ok("gallery", "list", "--json").json == [{k: v for k, v in shown.items() if k != "index"}]
    index = empty.home / "indexes" / "1.index"
    assert index.is_file()
    assert empty.ok("gallery", "delete", "staff", "--yes").out == "Gallery staff deleted: 1 identities, 1 faces.\n"
    assert not index.exists()
    for table in ("galleries", "identities", "faces", "changes"):
        assert empty.query(f"SELECT * FROM {table}") == []
    for arguments in (["show", "staff"], ["delete", "staff", "--yes"], ["rebuild", "staff"]):
        ran = empty("gallery", *arguments)
        assert (ran.code, ran.out, ran.err) == (1, "", "Error: there is no gallery 'staff'\n")


@pytest.mark.parametrize(("answer", "code", "left"), [("n\n", 1, 7), ("", 130, 7), ("y\n", 0, 0)])
def test_deleting_a_gallery_asks_for_confirmation(staff: Command, answer: str, code: int, left: int) -> None:
    done = subprocess.run(
        [SCRIPT, "gallery", "delete", "staff"],
        input=answer,
        capture_output=True,
        text=True,
        env=clean_environment(WHOSTHERE_HOME=str(staff.home)),
        timeout=DEADLINE,
    )
    assert done.returncode == code, done
    assert "Delete gallery staff with 7 identities and 7 faces?" in done.stdout
    assert ("nothing was deleted" in done.stderr) == (answer == "n\n")
    assert staff.query("SELECT count(*) FROM faces") == [(left,)]


def test_identities_are_listed_shown_and_deleted(staff: Command) -> None:
    listed = staff.ok("identity", "list", "--gallery", "staff", "--json").json
    assert [person["external_id"] for person in listed] == [
        *("collins", "hanks", "left-1", "left-2", "left-3", "left-4", "left-6")
    ]
    assert [person["faces"] for person in listed] == [1] * 7
    few = staff.ok("identity", "list", "--gallery", "staff", "--limit", "2", "--json").json
    assert few == listed[:2]
    assert staff("identity", "list", "--gallery", "staff", "--limit", "0").code == 2
    shown = staff.ok("identity", "show", "hanks", "--gallery", "staff", "--json").json
    (face,) = shown.pop("faces")
    assert shown == {k: v for k, v in listed[1].items() if k != "faces"}
    assert list(face) == [
        "face_id",
        "image_sha256",
        "box",
        "landmarks",
        "detection_score",
        "quality",
        "created_at",
        "has_crop",
    ]
    deleted = staff.ok("identity", "delete", "hanks", "--gallery", "staff", "--json").json
    assert deleted == {"external_id": "hanks", "faces": 1}
    assert staff.query("SELECT count(*) FROM faces") == [(6,)]
    assert staff.ok("gallery", "show", "staff", "--json").json["index"]["faces"] == 6
    for what in ("show", "delete"):
        ran = staff("identity", what, "hanks", "--gallery", "staff")
        assert (ran.code, ran.err) == (1, "Error: there is no identity 'hanks' in this gallery\n")


# Models


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision for which no model has to be quantized."""
    monkeypatch.delenv(PRECISION_SETTING, raising=False)


def test_models_are_listed_and_verified(empty: Command) -> None:
    liveness, *others, pack = empty.ok("models", "list", "--json").json
    assert (liveness["name"], liveness["kind"]) == ("minifasnet", "liveness")
    assert [(other["name"], other["dim"], other["installed"]) for other in others] == [
        ("ir50", 512, False),
        ("buffalo_l", 512, False),
    ]
    assert (pack["name"], pack["dim"], pack["installed"]) == ("sface", 128, True)
    assert [file["licence"] for file in pack["files"]] == ["MIT", "Apache-2.0"]
    verified = empty.ok("models", "verify", "sface", "--json").json
    assert [one for one in verified if not one["file"].startswith("int8/")] == [
        {"model": "sface", "file": file.name, "sha256": file.sha256, "error": None} for file in SFACE.files
    ]
    assert empty.ok("models", "verify").out.count("sound") == len(verified)
    ran = empty("models", "verify", "unknown")
    assert ran.code == 2
    assert "there is no model pack 'unknown'; expected one of ir50, buffalo_l, sface" in ran.err


@pytest.mark.usefixtures("native")
def test_damaged_model_file_is_reported(tmp_path: Path, demo: Demo) -> None:
    command, file = Command(tmp_path / "home"), SFACE.embedder
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "models").mkdir()
    (tmp_path / "home" / "models" / file.name).write_bytes(b"damaged")
    ran = command("models", "verify", "--json")
    assert ran.code == 1
    detector, embedder = ran.json
    assert (detector["error"], embedder["file"]) == (None, file.name)
    assert str(tmp_path / "home" / "models" / file.name) in embedder["error"]
    assert f"expected {file.size} bytes with SHA-256 {file.sha256}, found 7 bytes" in embedder["error"]
    assert only_problem(command("doctor", "--json")) == {
        "check": f"model file {file.name}",
        "ok": False,
        "found": embedder["error"],
        "advice": "whosthere models pull sface",
    }
    enrolled = command("enroll", demo.photo("collins"), "--gallery", "staff")
    assert (enrolled.code, enrolled.out) == (1, "")
    assert file.name in enrolled.err
    assert "Traceback" not in enrolled.err


# doctor


@pytest.mark.usefixtures("native")
def test_doctor_finds_nothing_wrong(staff: Command, empty_home: Command) -> None:
    for command in (staff, empty_home):
        ran = command.ok("doctor", "--json")
        assert {finding["ok"] for finding in ran.json} == {True}
        assert [finding["check"] for finding in ran.json][:9] == [
            "runtime",
            *(f"model file {file.name}" for file in SFACE.files),
            "networks",
            "liveness",
            "free disk",
            "permissions",
            "database",
            "migrations",
        ]
    checked = {finding["check"]: finding["found"] for finding in staff.ok("doctor", "--json").json}
    assert checked["gallery staff"] == "7 faces in the database, 7 in the index"
    assert "WRONG" not in staff.ok("doctor").out


@pytest.fixture
def empty_home(tmp_path: Path) -> Command:
    """The command with a home folder that does not exist yet."""
    return Command(tmp_path / "new" / "home")


def test_damaged_snapshot_is_reported_and_replaced(staff: Command) -> None:
    snapshot = staff.home / "indexes" / "1.index"
    whole = snapshot.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        snapshot.write_bytes(damaged)
        assert only_problem(staff("doctor", "--json")) == {
            "check": "snapshot of gallery staff",
            "ok": False,
            "found": f"{snapshot} is damaged" + ("" if damaged else ": it is empty"),
            "advice": "whosthere gallery rebuild staff",
        }
        assert snapshot.read_bytes() == whole
        staff.ok("doctor")
    snapshot.unlink()
    assert staff.ok("gallery", "show", "staff", "--json").json["index"]["faces"] == 7
    assert snapshot.read_bytes() == whole


def test_index_that_differs_from_the_database_is_reported_and_rebuilt(staff: Command) -> None:
    with staff.database() as database:
        database.execute("DELETE FROM faces WHERE id = 3")
    problems = {finding["check"]: finding for finding in staff("doctor", "--json").json if not finding["ok"]}
    assert problems.keys() == {"gallery staff", "counts of gallery staff"}
    assert problems["gallery staff"]["found"] == "6 faces in the database, 7 in the index, 1 different"
    assert {problem["advice"] for problem in problems.values()} == {"whosthere gallery rebuild staff"}
    printed = staff("doctor")
    assert printed.code == 1
    assert "WRONG" in printed.out
    assert "whosthere gallery rebuild staff" in printed.out
    assert staff.ok("gallery", "rebuild", "staff", "--json").json == {"gallery": "staff", "faces": 6}
    staff.ok("doctor")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE embeddings SET embedding = (SELECT embedding FROM embeddings WHERE face_id = 2) WHERE face_id = 3",
        "UPDATE faces SET identity_id = 2 WHERE id = 3",
    ],
)
def test_doctor_compares_more_than_ids(staff: Command, change: str) -> None:
    with staff.database() as database:
        database.execute(change)
    found = only_problem(staff("doctor", "--json"))["found"]
    assert found == "7 faces in the database, 7 in the index, 1 different"
    staff.ok("gallery", "rebuild", "staff")
    staff.ok("doctor")


def test_doctor_reports_a_restored_backup(staff: Command) -> None:
    with staff.database() as database:
        database.execute("UPDATE changes SET at = '2020-01-01 00:00:00.000000'")
    problem = only_problem(staff("doctor", "--json"))
    assert problem["check"] == "snapshot of gallery staff"
    assert problem["found"].endswith("is of another gallery, model or database")


def test_doctor_reports_a_gallery_of_another_pack(staff: Command) -> None:
    with staff.database() as database:
        database.execute("UPDATE galleries SET fingerprint = '0123456789abcdef'")
    problem = only_problem(staff("doctor", "--json"))
    assert (problem["check"], problem["advice"]) == ("gallery staff", "follow the message, or enroll the photos again")
    assert "0123456789abcdef" in problem["found"]


@pytest.mark.parametrize("arguments", [["doctor"], ["gallery", "list"], ["search", "x.jpg", "--gallery", "staff"]])
@pytest.mark.parametrize("broken", ["no database", "no folder"])
def test_unusable_home_folder_is_reported_in_one_line(tmp_path: Path, broken: str, arguments: list[str]) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "whosthere.db").write_bytes(b"This is no database. " * 500)
    home = tmp_path / "home" if broken == "no database" else tmp_path / "home" / "whosthere.db" / "home"
    ran = Command(home)(*arguments)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert ran.err.count("\n") <= 1
    assert any(word in ran.out + ran.err for word in ("database", "Not a directory"))


# The command as a whole


@pytest.mark.parametrize("path", commands(whosthere), ids=" ".join)
def test_help_shows_examples(path: tuple[str, ...], tmp_path: Path) -> None:
    for flag in ("--help", "-h"):
        ran = Command(tmp_path / "home")(*path, flag)
        assert (ran.code, ran.err) == (0, "")
        _, _, shown = ran.out.partition("Examples:")
        assert f"whosthere {' '.join(path)}" in shown
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("path", [(), ("gallery",), ("identity",), ("models",)])
def test_help_of_groups_lists_their_commands(path: tuple[str, ...], tmp_path: Path) -> None:
    ran = Command(tmp_path)(*path, "--help")
    assert ran.code == 0
    for command in commands(whosthere):
        if command[: len(path)] == path:
            assert f"\n  {command[len(path)]} " in ran.out


@pytest.mark.parametrize("path", commands(whosthere), ids=" ".join)
def test_unknown_option_is_wrong_usage(path: tuple[str, ...], tmp_path: Path) -> None:
    ran = Command(tmp_path / "home")(*path, "--unknown")
    assert (ran.code, ran.out) == (2, "")
    assert "--unknown" in ran.err


def test_unknown_command_is_wrong_usage(tmp_path: Path) -> None:
    ran = Command(tmp_path)("enrol")
    assert ran.code == 2
    assert "No such command 'enrol'" in ran.err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WHOSTHERE_FIPR", "0.01", "there is no setting WHOSTHERE_FIPR; did you mean WHOSTHERE_FPIR?"),
        ("WHOSTHERE_XYZZY", "1", "there is no setting WHOSTHERE_XYZZY"),
        ("WHOSTHERE_FPIR", "2", "WHOSTHERE_FPIR is '2': "),
        ("WHOSTHERE_FPIR", "low", "WHOSTHERE_FPIR is 'low': "),
        ("WHOSTHERE_THREADS", "-1", "WHOSTHERE_THREADS is '-1': "),
        ("WHOSTHERE_PRECISION", "half", "WHOSTHERE_PRECISION is 'half': "),
        ("WHOSTHERE_DATABASE_URL", "mysql://x/y", "'mysql' are not supported; expected sqlite:///"),
    ],
)
def test_invalid_setting_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    ran = Command(tmp_path / "home")("gallery", "list")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_home_is_named_by_either_option_or_the_environment(
    staff: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = str(staff.home)
    for arguments in (["--home", home, "gallery", "list"], ["gallery", "list", "--home", home]):
        main(arguments)
        assert "staff" in capsys.readouterr().out
    monkeypatch.setenv("WHOSTHERE_HOME", home)
    main(["gallery", "list"])
    assert "staff" in capsys.readouterr().out
    main(["--home", str(tmp_path / "other"), "gallery", "list"])
    assert "There are no galleries" in capsys.readouterr().out


def test_database_can_be_outside_the_home_folder(
    staff: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copy(staff.home / "whosthere.db", tmp_path / "elsewhere.db")
    monkeypatch.setenv("WHOSTHERE_DATABASE_URL", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    other = Command(tmp_path / "other")
    assert other.ok("gallery", "show", "staff", "--json").json["faces"] == 7
    assert not (other.home / "whosthere.db").exists()


def test_installed_script_runs(staff: Command) -> None:
    assert staff.script("gallery", "list", "--json").json[0]["faces"] == 7
    assert staff.script("--version").out.startswith("whosthere, version ")
    failed = staff.script("gallery", "show", "guests")
    assert (failed.code, failed.out, failed.err) == (1, "", "Error: there is no gallery 'guests'\n")
    assert staff.script("gallery", "show").code == 2


# demo


def test_demo_recognizes_its_probes(tmp_path: Path, prepared_models: Path) -> None:
    folder = tmp_path / "demo"
    (folder / "home").mkdir(parents=True)
    (folder / "home" / "models").symlink_to(prepared_models)
    command = Command(tmp_path / "unused")
    first, second = (command.ok("demo", "--folder", folder).out for _ in range(2))
    assert f"Enrolled the faces in {folder / 'photos'}: 7 enrolled." in first
    assert f"Enrolled the faces in {folder / 'photos'}: 7 unchanged." in second
    assert first.split("\n")[1:] == second.split("\n")[1:]
    lines = {line.split()[0]: line.split() for line in first.splitlines() if line.strip()}
    for probe in PROBES:
        words = lines[probe.file]
        if probe.expected is None:
            assert words[-1] == "no_match"
        else:
            assert words[-1] == "match"
            assert " ".join(words).startswith(f"{probe.file} {probe.how} {probe.expected} 0.")
    assert not (tmp_path / "unused").exists()
    assert Command(folder / "home").query("SELECT count(*) FROM faces") == [(7,)]
    assert {path.name for path in (folder / "probes").iterdir()} == {probe.file for probe in PROBES}
