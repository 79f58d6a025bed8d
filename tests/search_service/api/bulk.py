"""Helpers for bulk enrollments: archives, and the jobs that enroll them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import httpx

from tests.search_service.api.serving import ok
from tests.waiting import wait_for

JOB_FIELDS = {
    *("id", "gallery", "state", "images", "done", "enrolled", "unchanged", "rejected"),
    *("created_at", "started_at", "finished_at", "problem"),
}

STAFF = "/v1/galleries/staff"


def packed(files: Mapping[str, bytes], **options: Any) -> bytes:
    """Returns a ZIP."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def archive(data: bytes) -> dict[str, tuple[str, bytes]]:
    """Returns a ZIP as httpx's `files`."""
    return {"archive": ("people.zip", data)}


def accepted(response: httpx.Response) -> str:
    """Returns the path of the job of an accepted enrollment."""
    job = ok(response, 202)
    assert set(job) == JOB_FIELDS
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["done"], job["enrolled"], job["problem"]) == (0, 0, None)
    return response.headers["location"]


def enroll(client: httpx.Client, data: bytes, gallery: str = STAFF, **request: Any) -> str:
    """Posts a ZIP and returns the path of the job."""
    return accepted(client.post(f"{gallery}/enrollments", files=archive(data), **request))


def finished(client: httpx.Client, path: str, state: str = "done") -> dict[str, Any]:
    """Waits for a job to end, and returns it with all its results."""
    wait_for(lambda: ok(client.get(path))["finished_at"] is not None, f"{path} ends")
    job: dict[str, Any] = ok(client.get(path, params={"limit": 1000}))
    assert job["state"] == state, job
    assert job["cursor"] is None
    assert job["done"] == job["enrolled"] + job["unchanged"] + job["rejected"] == len(job["results"])
    return job


def jobs_of(client: httpx.Client, gallery: str) -> list[dict[str, Any]]:
    """Lists the jobs of a gallery, given by its path."""
    jobs: list[dict[str, Any]] = ok(client.get("/v1/jobs", params={"gallery": gallery.rpartition("/")[2]}))["jobs"]
    return jobs
