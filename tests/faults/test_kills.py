"""The service and the command line are killed with SIGKILL while they write."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
from pathlib import Path

import httpx

from tests.faults.installation import (
    STAFF,
    Installation,
    NewInstallation,
    Photo,
    SendRequest,
    calling,
    check,
    checked,
    embedding,
    faces,
    owners,
)
from tests.postgres import Postgres
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE, ok
from tests.waiting import wait_for

PEOPLE = 50
"""Number of identities, of faces and of galleries that are deleted."""

PHOTOS = 112
"""Photos of the enrolled folder, enough for a kill between the first and the last."""

TEAM = 2
"""People of each deleted gallery."""


def test_kill_during_single_enrollments_loses_nothing(installation: Installation, enroll: SendRequest) -> None:
    """Every photo that was answered with 201 is enrolled, and others can be enrolled afterwards."""
    with installation.serving() as serve, calling(str(serve.client.base_url), enroll) as callers:
        callers.wait(12, 201)
        serve.process.kill()
        wait_for(lambda: callers.lost > 0, "the callers lose their connections")
    assert callers.statuses() == {201}
    kept = owners(callers.bodies(201).values())
    with checked(installation, kept) as client:
        unknown = len(callers.sent) - len(callers.answered)
        assert len(kept) <= len(faces(client)) <= len(kept) + unknown
        for number in sorted(callers.sent)[:3]:  # acknowledged enrollments are not repeated
            again = enroll(client, number)
            assert again.status_code == 200
            assert again.json()["face_id"] == callers.answered[number].json()["face_id"]
        assert enroll(client, max(callers.sent) + 1).status_code == 201


def test_kill_during_deletions_loses_nothing(installation: Installation) -> None:
    """Acknowledged deletions are never undone, and everything else is kept."""
    filled = installation.fill({"staff": 2 * PEOPLE} | {f"team{n}": TEAM for n in range(PEOPLE)})
    staff = {owner: face_id for face_id, owner in filled["staff"].items()}

    def delete(client: httpx.Client, number: int) -> httpx.Response:
        turn, kind = divmod(number, 3)
        return client.delete(
            (
                f"{STAFF}/identities/p{turn}",
                f"{STAFF}/faces/{staff[f'p{PEOPLE + turn}']}",
                f"/v1/galleries/team{turn}",
            )[kind]
        )

    def deleted_by(number: int) -> set[int]:
        """Returns the faces that request number `number` deletes."""
        turn, kind = divmod(number, 3)
        if kind == 2:
            return set(filled[f"team{turn}"])
        return {staff[f"p{turn + kind * PEOPLE}"]}

    with installation.serving() as serve, calling(str(serve.client.base_url), delete, most=3 * PEOPLE) as callers:
        callers.wait(20, 200)
        serve.process.kill()
        wait_for(lambda: callers.lost > 0, "the callers lose their connections")
    assert callers.statuses() == {200}
    assert len(callers.answered) < 3 * PEOPLE, "the service was killed between two deletions"
    everything = {face: f"{gallery}/{owner}" for gallery, people in filled.items() for face, owner in people.items()}
    requested = set().union(*map(deleted_by, callers.sent))
    deleted = set().union(*map(deleted_by, callers.answered))
    kept = {face: owner for face, owner in everything.items() if face not in requested}
    with checked(installation, kept, deleted) as client:
        for number in range(0, 2 * PEOPLE, 5):
            face_id = staff[f"p{number}"]
            if face_id in requested - deleted:  # deleted or not
                continue
            body = {"embedding": embedding(number).tolist(), "threshold": 0.99}
            (face,) = ok(client.post(f"{STAFF}/search", json=body))["faces"]
            assert {c["face_id"] for c in face["candidates"] if c["score"] > 0.99} == {face_id} - deleted
        names = {gallery["name"] for gallery in ok(client.get("/v1/galleries", params={"limit": 1000}))["galleries"]}
        assert not {f"team{n // 3}" for n in callers.answered if n % 3 == 2} & names


def test_kill_during_folder_enrollment_loses_nothing(
    postgres: Postgres, new_installation: NewInstallation, photo: Photo, tmp_path: Path
) -> None:
    """The report lists only photos that are enrolled, and the same command continues. `tests/indexer/cli` has the same
    test with SQLite."""
    installation = new_installation(postgres.migrated())
    folder, report = tmp_path / "photos", tmp_path / "report.csv"
    for number in range(PHOTOS):
        person, data = photo(number)
        (folder / person).mkdir(parents=True, exist_ok=True)
        (folder / person / f"{number}.jpg").write_bytes(data)
    arguments: list[str | Path] = [
        "enroll",
        folder,
        "--gallery",
        "staff",
        "--report",
        report,
        "--home",
        installation.home,
    ]
    process = subprocess.Popen([WHOSTHERE, *arguments], env=ENVIRONMENT | installation.environment)
    wait_for(
        lambda: "enrolled" in (report.read_text() if report.exists() else "") or process.poll() is not None, "rows"
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole, _, _ = report.read_text().rpartition("\n")  # the last line may be cut off
    rows = list(csv.DictReader(io.StringIO(whole)))
    kept = {int(row["face_id"]): f"staff/{row['external_id']}" for row in rows if row["outcome"] == "enrolled"}
    assert 0 < len(kept) < PHOTOS, "the command was killed between two photos"
    check(installation, kept)
    code, summary = installation.command("enroll", folder, "--gallery", "staff")
    assert (code, summary["images"], summary["faces"], summary["rejected"]) == (0, PHOTOS, PHOTOS, 0)
    check(installation, kept | owners(summary["results"]))
