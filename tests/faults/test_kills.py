"""kill -9 of the service and of the command line, while they write."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.faults.place import STAFF, Ask, Photo, Place, calling, check, checked, embedding, faces
from tests.postgres import Postgres
from tests.search_service.api.serving import ENVIRONMENT, WHOSTHERE, ok
from tests.waiting import wait_for

PEOPLE = 50
"""Of the gallery in which identities and faces are deleted, and the number of galleries that are."""

PHOTOS = 112
"""Of the folder that is enrolled: some of it is done long before the rest."""

TEAM = 2
"""People of each of those galleries."""


def test_kill_during_single_enrollments_loses_nothing(place: Place, enrol: Ask) -> None:
    """Every photo that was answered with 201 is there, and the next ones may come."""
    with place.serving() as serve, calling(str(serve.client.base_url), enrol) as callers:
        callers.wait(12, 201)
        serve.process.kill()
        wait_for(lambda: callers.lost > 0, "the callers find out")
    assert callers.statuses() == {201}
    kept = {told["face_id"]: f"staff/{told['external_id']}" for told in callers.bodies(201).values()}
    with checked(place, kept) as client:
        unknown = len(callers.asked) - len(callers.answered)
        assert len(kept) <= len(faces(client)) <= len(kept) + unknown
        for number in sorted(callers.asked)[:3]:  # acknowledged enrollments are not repeated
            again = enrol(client, number)
            assert again.status_code == 200
            assert again.json()["face_id"] == callers.answered[number].json()["face_id"]
        assert enrol(client, max(callers.asked) + 1).status_code == 201


def test_kill_during_deletions_loses_nothing(place: Place) -> None:
    """Acknowledged deletions are never undone; everything else is kept."""
    filled = place.fill({"staff": 2 * PEOPLE} | {f"team{n}": TEAM for n in range(PEOPLE)})
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

    def hit(number: int) -> set[int]:
        turn, kind = divmod(number, 3)
        if kind == 2:
            return set(filled[f"team{turn}"])
        return {staff[f"p{turn + kind * PEOPLE}"]}

    with place.serving() as serve, calling(str(serve.client.base_url), delete, most=3 * PEOPLE) as callers:
        callers.wait(20, 200)
        serve.process.kill()
        wait_for(lambda: callers.lost > 0, "the callers find out")
    assert callers.statuses() == {200}
    assert len(callers.answered) < 3 * PEOPLE, "it was killed in the middle"
    everything = {face: f"{gallery}/{owner}" for gallery, people in filled.items() for face, owner in people.items()}
    asked = set().union(*map(hit, callers.asked))
    gone = set().union(*map(hit, callers.answered))
    kept = {face: owner for face, owner in everything.items() if face not in asked}
    with checked(place, kept, gone) as client:
        for number in range(0, 2 * PEOPLE, 5):
            face_id = staff[f"p{number}"]
            if face_id in asked - gone:  # who knows
                continue
            body = {"embedding": embedding(number).tolist(), "threshold": 0.99}
            (face,) = ok(client.post(f"{STAFF}/search", json=body))["faces"]
            assert {c["face_id"] for c in face["candidates"] if c["score"] > 0.99} == {face_id} - gone
        names = {gallery["name"] for gallery in ok(client.get("/v1/galleries", params={"limit": 1000}))["galleries"]}
        assert not {f"team{n // 3}" for n in callers.answered if n % 3 == 2} & names


def test_kill_during_folder_enrollment_loses_nothing(
    postgres: Postgres, new_place: Callable[[str], Place], photo: Photo, tmp_path: Path
) -> None:
    """The command line over PostgreSQL; tests/indexer_cli/test_enroll.py kills it over SQLite. Its report tells nothing
    that is not there, and the same command goes on."""
    place = new_place(postgres.migrated())
    folder, report = tmp_path / "photos", tmp_path / "report.csv"
    for number in range(PHOTOS):
        person, data = photo(number)
        (folder / person).mkdir(parents=True, exist_ok=True)
        (folder / person / f"{number}.jpg").write_bytes(data)
    arguments = ["enroll", str(folder), "--gallery", "staff", "--report", str(report)]
    process = subprocess.Popen([WHOSTHERE, *arguments, "--home", place.home], env=ENVIRONMENT | place.environment)
    wait_for(
        lambda: "enrolled" in (report.read_text() if report.exists() else "") or process.poll() is not None, "rows"
    )
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole, _, _ = report.read_text().rpartition("\n")  # the last line may be cut off
    rows = list(csv.DictReader(io.StringIO(whole)))
    kept = {int(row["face_id"]): f"staff/{row['external_id']}" for row in rows if row["outcome"] == "enrolled"}
    assert 0 < len(kept) < PHOTOS, "it was killed in the middle"
    check(place, kept)
    code, told = place.command("enroll", folder, "--gallery", "staff")
    assert (code, told["images"], told["faces"], told["rejected"]) == (0, PHOTOS, PHOTOS, 0)
    check(place, {**kept, **{one["face_id"]: f"staff/{one['external_id']}" for one in told["results"]}})
