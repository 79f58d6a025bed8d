"""Unexpected failures are reported to the caller and the log, without any personal data."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy import text

from indexer.gallery.database import open_database
from search_service.api.models.identities import IdentityBody
from tests import photos
from tests.postgres import Database
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Serve, ok, refused, serving
from tests.waiting import wait_for

ANA, BEN = "badge-4711", "badge-4712"
NAME = "Ana-Ruiz"
CITY = "Antofagasta"
STAFF = "/v1/galleries/staff"


@pytest.fixture
def serve(database: Database, tmp_path: Path, models_folder: Path) -> Iterator[Serve]:
    """A service with Ana, whose database has a unique index on names."""
    place = new_home(tmp_path, models_folder)
    with serving(place, place / "log", WHOSTHERE_DATABASE_URL=database.url) as serve:
        client = serve.ready().client
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        ok(client.put(f"{STAFF}/identities/{ANA}", json={"name": NAME, "metadata": {"city": CITY}}), 201)
        change(database, "CREATE UNIQUE INDEX one_of_a_name ON identities (name)")
        yield serve


def change(database: Database, sql: str) -> None:
    """Changes the database behind the service's back."""
    engine = open_database(database.url)
    with engine.begin() as connection:
        connection.execute(text(sql))
    engine.dispose()


def logs_no_person(serve: Serve, reported: str) -> None:
    """Checks that the log contains the failure and no personal data."""
    wait_for(lambda: reported in serve.log(), f"the log contains {reported}")
    for word in (ANA, BEN, NAME, CITY, "Failing row"):
        assert word not in serve.log()


def failed(serve: Serve, answer: httpx.Response, reported: str) -> None:
    error = refused(answer, 500, "failed")
    assert error["message"] == "the service failed; its log has the details under this request id"
    assert answer.headers["x-request-id"] in serve.log()
    logs_no_person(serve, reported)


def test_violated_constraint_is_logged_without_personal_data(serve: Serve, database: Database) -> None:
    reported = "UNIQUE constraint failed: identities.name" if database.kind == "sqlite" else "one_of_a_name"
    failed(
        serve, serve.client.put(f"{STAFF}/identities/{BEN}", json={"name": NAME, "metadata": {"city": CITY}}), reported
    )


def enrolled(serve: Serve, name: str) -> str:
    """Returns the path of a finished job that enrolled one photo of Ben."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("1.png", photos.astronaut())
        archive.writestr("manifest.csv", f"image,external_id,name,city\n1.png,{BEN},{name},{CITY}\n")
    files = {"archive": ("photos.zip", packed.getvalue())}
    path = f"/v1/jobs/{ok(serve.client.post(f'{STAFF}/enrollments', files=files), 202)['id']}"
    wait_for(lambda: ok(serve.client.get(path))["state"] in ("done", "failed"), "the job ends")
    return path


def test_failed_job_is_logged_without_personal_data(serve: Serve) -> None:
    job = ok(serve.client.get(enrolled(serve, NAME)))
    assert (job["state"], job["problem"]) == ("failed", "it failed; the service's log has the details")
    logs_no_person(serve, "IntegrityError")


def test_answer_that_does_not_fit_is_logged_without_personal_data(serve: Serve, database: Database) -> None:
    job = enrolled(serve, "Ben Katz")
    change(database, f"UPDATE job_results SET details = '[\"{CITY}\"]'")
    failed(serve, serve.client.get(job), "results.0.details: dict_type")
    with pytest.raises(ValidationError, match="metadata") as caught:  # as where an answer is put together
        IdentityBody.model_validate({"metadata": [CITY]})
    assert CITY not in str(caught.value)


def test_value_that_does_not_fit_is_logged_without_personal_data(serve: Serve, database: Database) -> None:
    if database.kind == "sqlite":
        pytest.skip("SQLite takes any value, and has no rules that come later")
    change(database, "ALTER TABLE identities ADD CONSTRAINT short_names CHECK (length(name) < 3) NOT VALID")
    failed(serve, serve.client.put(f"{STAFF}/identities/{BEN}", json={"name": "Ben Katz"}), "short_names")
    change(database, "ALTER TABLE identities ALTER COLUMN name TYPE VARCHAR(8)")
    failed(serve, serve.client.put(f"{STAFF}/identities/{BEN}", json={"name": f"{NAME}-II"}), "a value does not fit")
