"""`whosthere gallery reembed` with real faces and two packs, to the second and back.

The pack `other` has the networks of `sface` but does not use the mirrored crop, so that its scores differ slightly.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from indexer.enrollment.reembed import Reembedder
from indexer.gallery.faces import NewFace
from indexer.gallery.reembeddings import SwitchResult
from indexer.models.model_files import ModelFiles
from indexer.models.packs import SFACE
from indexer.types import Person, sha256
from indexer.vision import crops
from tests.indexer.cli.command import Command
from tests.indexer.cli.conftest import Demo
from tests.indexer.gallery.faces import face, vector

ADDED = ("--detector", "sface", "--scale", "1", "--no-mirror")
TO_OTHER = ("--model", "other")

PEOPLE = ("collins", "hanks", "left-1", "left-2", "left-3", "left-4", "left-6")


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes scores independent of the CPU and of the batch."""
    monkeypatch.setenv("WHOSTHERE_PRECISION", "float32")


@pytest.fixture(scope="session")
def two_packs_home(tmp_path_factory: pytest.TempPathFactory, prepared_models: Path, demo: Demo) -> Path:
    """A home folder with the demo's people in three galleries: with crops in `staff`, without crops in `bare`, and
    enrolled by the pack `other` in `fresh`. Tests use copies of it."""
    folder = tmp_path_factory.mktemp("packs")
    prepared = folder / "models" / "prepared"
    prepared.mkdir(parents=True)
    for file in SFACE.files:
        (prepared / f"{file.prepared_sha256}.onnx").symlink_to(
            prepared_models / "prepared" / f"{file.prepared_sha256}.onnx"
        )
    home = folder / "home"
    home.mkdir()
    (home / "models").symlink_to(folder / "models")
    command = Command(home)
    embedder = ModelFiles(folder).path(SFACE.embedder)
    assert embedder is not None
    with pytest.MonkeyPatch.context() as settings:
        settings.setenv("WHOSTHERE_PRECISION", "float32")
        command.ok("models", "add", "other", *ADDED, "--mean", "0", "--embedder", embedder)
        command.ok("models", "add", "third", *ADDED, "--mean", "1", "--embedder", embedder)
        command.ok("enroll", demo.photos, "--gallery", "bare", "--model", "sface")
        command.ok("enroll", demo.photos, "--gallery", "fresh", "--model", "other")
        settings.setenv("WHOSTHERE_KEEP_CROPS", "true")
        command.ok("enroll", demo.photos, "--gallery", "staff", "--model", "sface")
    return home


@pytest.fixture
def command(tmp_path: Path, two_packs_home: Path) -> Command:
    return Command(Path(shutil.copytree(two_packs_home, tmp_path / "home", symlinks=True)))


def scores(command: Command, demo: Demo, gallery: str) -> dict[str, float]:
    """Returns the scores of all identities of the gallery for a probe of left-3."""
    probe = demo.probes / "left-3-turned.jpg"
    [answer] = command.ok("search", probe, "--gallery", gallery, "--top-k", "7", "--json").json
    return {found["external_id"]: found["score"] for found in answer["faces"][0]["candidates"]}


def near(expected: Mapping[str, float]) -> object:
    return pytest.approx(expected, abs=1e-3)


def model(command: Command, gallery: str) -> str:
    return str(command.ok("gallery", "show", gallery, "--json").json["model"])


def kept_crops(command: Command, gallery: str) -> int:
    sql = "SELECT count(*) FROM crops JOIN faces ON faces.id = face_id JOIN galleries ON galleries.id = gallery_id"
    [(count,)] = command.query(f"{sql} WHERE galleries.name = '{gallery}'")
    return int(count)


def test_gallery_is_reembedded_and_rolled_back(command: Command, demo: Demo) -> None:
    before, by_other = scores(command, demo, "staff"), scores(command, demo, "fresh")
    assert before != near(by_other)
    moved = command.ok("gallery", "reembed", "staff", *TO_OTHER, "--json").json
    outcome = {"switched": True, "missing": [], "dropped": 0}
    assert moved == {"gallery": "staff", "model": "other", "former": "sface", **outcome}
    assert model(command, "staff") == "other"
    assert scores(command, demo, "staff") == near(by_other)  # equal to enrolling with that pack

    again = command("gallery", "reembed", "staff", *TO_OTHER)
    assert again.code == 1
    assert "Error: gallery 'staff' is bound to other" in again.err

    back = command.ok("gallery", "reembed", "staff", "--rollback")
    assert "Gallery staff is now bound to sface; before, it was bound to other." in back.out
    assert scores(command, demo, "staff") == before  # the same embeddings
    assert command.ok("gallery", "reembed", "staff", "--rollback", "--json").json["model"] == "other"
    assert scores(command, demo, "staff") == near(by_other)


def test_forgotten_embeddings_cannot_be_rolled_back(command: Command) -> None:
    command.ok("gallery", "reembed", "staff", *TO_OTHER)
    forgotten = command.ok("gallery", "reembed", "staff", "--forget", "--json").json
    assert forgotten == {"gallery": "staff", "forgotten": {"sface": 7}}
    ran = command("gallery", "reembed", "staff", "--rollback")
    assert ran.code == 1
    assert "gallery 'staff' cannot be rolled back: no embeddings of a former pack are kept" in ran.err
    assert command.ok("gallery", "reembed", "staff", "--forget", "--json").json["forgotten"] == {}
    assert command.ok("gallery", "reembed", "staff", "--forget").out.startswith(
        "Gallery staff has no embeddings of other packs"
    )
    assert model(command, "staff") == "other"


def test_rollback_ignores_packs_that_the_gallery_was_never_bound_to(command: Command, demo: Demo) -> None:
    """Even if re-embedding by such a pack began after the switch from the former one."""
    command.ok("gallery", "reembed", "staff", *TO_OTHER)
    with command.database() as database:
        database.execute("DELETE FROM crops WHERE face_id = (SELECT max(face_id) FROM crops)")
    begun = command("gallery", "reembed", "staff", "--model", "third", "--json")
    assert (begun.code, begun.json["switched"], len(begun.json["missing"])) == (3, False, 1)
    assert command.ok("gallery", "reembed", "staff", "--rollback", "--json").json["model"] == "sface"
    assert command.query("SELECT model FROM reembeddings ORDER BY started_at") == [("third",), ("other",)]
    assert command.ok("gallery", "reembed", "staff", "--rollback", "--json").json["model"] == "other"


def test_missing_faces_are_listed(command: Command, demo: Demo) -> None:
    before = scores(command, demo, "bare")
    ran = command("gallery", "reembed", "bare", *TO_OTHER, "--json")
    assert ran.code == 3
    assert (ran.json["model"], ran.json["former"], ran.json["switched"]) == ("sface", "sface", False)
    hashes = {person: sha256(demo.photo(person).read_bytes()) for person in PEOPLE}
    assert {face["external_id"]: face["image_sha256"] for face in ran.json["missing"]} == hashes
    printed = command("gallery", "reembed", "bare", *TO_OTHER)
    assert printed.code == 3
    assert all(person in printed.out and sha in printed.out for person, sha in hashes.items())
    assert "Gallery bare is still bound to sface: 7 faces cannot be embedded with other" in printed.out
    assert "--images" in printed.out
    assert scores(command, demo, "bare") == before


def test_photos_are_found_by_content_and_missing_faces_dropped(command: Command, demo: Demo, tmp_path: Path) -> None:
    """The photos have other names, are in two folders, and one of them was never enrolled."""
    some, more = tmp_path / "some", tmp_path / "more" / "deep"
    for folder, people in ((some, PEOPLE[:3]), (more, PEOPLE[3:6])):
        folder.mkdir(parents=True)
        for number, person in enumerate(people):
            shutil.copy(demo.photo(person), folder / f"IMG_{number}.jpeg")
    shutil.copy(demo.probes / "left-6-poor.jpg", some / "1.jpg")
    images = ("--images", some, "--images", tmp_path / "more")
    ran = command("gallery", "reembed", "bare", *TO_OTHER, *images, "--json")
    assert ran.code == 3
    assert [face["external_id"] for face in ran.json["missing"]] == ["left-6"]

    # Embeddings are kept, so the photos are not needed again.
    dropped = command.ok("gallery", "reembed", "bare", *TO_OTHER, "--drop-missing", "--json").json
    assert (dropped["switched"], dropped["missing"], dropped["dropped"]) == (True, ran.json["missing"], 1)
    by_other = scores(command, demo, "fresh")
    assert max(by_other, key=by_other.__getitem__) == "left-3"
    del by_other["left-6"]
    # Re-embedding detects every face of a photo, which places landmarks slightly differently than enrollment does.
    assert scores(command, demo, "bare") == pytest.approx(by_other, abs=1e-3)
    shown = command.ok("identity", "show", "left-6", "--gallery", "bare", "--json").json
    assert (shown["external_id"], shown["faces"]) == ("left-6", [])


def test_number_of_dropped_faces_is_printed(command: Command) -> None:
    printed = command.ok("gallery", "reembed", "bare", *TO_OTHER, "--drop-missing").out
    assert "7 faces without a crop and without a photo deleted." in printed
    assert command.ok("gallery", "show", "bare", "--json").json["faces"] == 0


@pytest.mark.parametrize("drop", [False, True])
def test_face_enrolled_just_before_the_switch_is_listed(
    command: Command, monkeypatch: pytest.MonkeyPatch, drop: bool
) -> None:
    switch = Reembedder.switch

    def late(run: Reembedder, drop_missing: bool) -> SwitchResult:
        new = NewFace(Person("late"), sha256(b"late"), face(vector(1, SFACE.dim)))
        run._store.faces.enroll(run._gallery, [new])
        return switch(run, drop_missing)

    monkeypatch.setattr(Reembedder, "switch", late)
    ran = command("gallery", "reembed", "staff", *TO_OTHER, "--json", *(["--drop-missing"] if drop else []))
    assert (ran.code, ran.json["switched"], ran.json["dropped"]) == ((0, True, 1) if drop else (3, False, 0))
    assert [missing["external_id"] for missing in ran.json["missing"]] == ["late"]


def test_crops_are_stored_on_request_and_deleted_with_their_identity(command: Command, demo: Demo) -> None:
    assert (kept_crops(command, "staff"), kept_crops(command, "bare")) == (7, 0)
    for (image,) in command.query("SELECT image FROM crops"):
        assert crops.decode(image).shape == (112, 112, 3)
    command.ok("identity", "delete", "hanks", "--gallery", "staff")
    assert (kept_crops(command, "staff"), command.query("SELECT count(*) FROM crops")) == (6, [(6,)])
    command.ok("gallery", "reembed", "staff", *TO_OTHER)
    command.ok("identity", "delete", "collins", "--gallery", "staff")
    left = "SELECT count(*) FROM embeddings JOIN faces ON id = face_id WHERE gallery_id = "
    assert command.query(f"{left} (SELECT id FROM galleries WHERE name = 'staff')") == [(10,)]  # five by two packs
    command.ok("gallery", "delete", "staff", "--yes")
    assert command.query("SELECT count(*) FROM crops") == [(0,)]
    assert command.query("SELECT count(*) FROM embeddings") == [(14,)]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give one of --model, --rollback and --forget"),
        (["--model", "other", "--rollback"], 2, "give one of --model, --rollback and --forget"),
        (["--forget", "--drop-missing"], 2, "need --model or --rollback"),
        (["--model", "nope"], 2, "there is no model pack 'nope'; expected one of ir50, buffalo_l, sface, other, third"),
        (["--model", "buffalo_l"], 1, "`whosthere models pull buffalo_l` fetches it"),
        (["--model", "other", "--images", "nowhere"], 2, "'nowhere' does not exist"),
        (["--model", "other", "--images", "ZIP"], 2, "is a ZIP file; expected photos or folders of photos"),
        (["--model", "sface"], 1, "gallery 'bare' is bound to sface"),
        (["--rollback"], 1, "cannot be rolled back"),
    ],
)
def test_wrong_usage_is_rejected(
    command: Command, demo: Demo, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    if "ZIP" in arguments:
        arguments = [*arguments[:-1], shutil.make_archive(str(tmp_path / "photos"), "zip", demo.photos)]
    ran = command("gallery", "reembed", "bare", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert "Traceback" not in ran.err
    assert command.query("SELECT count(*) FROM embeddings") == [(21,)]


def test_unknown_gallery_fails(command: Command) -> None:
    ran = command("gallery", "reembed", "nobody", *TO_OTHER)
    assert ran.code == 1
    assert "there is no gallery 'nobody'" in ran.err


def test_rollback_to_a_pack_with_changed_files_fails(command: Command) -> None:
    with command.database() as database:
        former = "id, '0123456789abcdef', 'other', 128, '2099-01-01 00:00:00.000000', TRUE"
        database.execute(f"INSERT INTO reembeddings SELECT {former} FROM galleries WHERE name = 'staff'")
        database.execute("INSERT INTO embeddings SELECT face_id, '0123456789abcdef', embedding FROM embeddings")
    ran = command("gallery", "reembed", "staff", "--rollback")
    assert ran.code == 1
    assert "was bound to other 0123456789abcdef, but the installed other is" in ran.err
