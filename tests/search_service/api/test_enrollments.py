"""Bulk enrollment requests: ZIPs, single images and manifests become jobs; anything else is rejected at once."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from indexer.enrollment import manifest_files
from tests import photos as sources
from tests.search_service.api.bulk import JOB_FIELDS, accepted, archive, enroll, finished, jobs_of, packed
from tests.search_service.api.conftest import MAX_BODY_BYTES
from tests.search_service.api.serving import ok, refused


def test_zip_is_enrolled_by_a_job(client: httpx.Client, gallery: str, people_zip: bytes) -> None:
    job = finished(client, enroll(client, people_zip, gallery))
    assert set(job) == JOB_FIELDS | {"results", "cursor"}
    assert (job["images"], job["enrolled"], job["rejected"]) == (7, 7, 0)
    assert job["gallery"] == gallery.rsplit("/", 1)[1]
    assert job["created_at"] <= job["started_at"] <= job["finished_at"]
    for one in job["results"]:
        assert sorted(one) == ["details", "external_id", "face_id", "image", "message", "outcome", "reason"]
        assert one["external_id"] == one["image"].split("/")[0]
        assert ok(client.get(f"{gallery}/faces/{one['face_id']}"))["external_id"] == one["external_id"]
    again = finished(client, enroll(client, people_zip, gallery))
    assert (again["enrolled"], again["unchanged"]) == (0, 7)
    assert ok(client.get(gallery))["faces"] == 7


def test_zip_as_the_body_may_exceed_the_limit_of_other_bodies(client: httpx.Client, gallery: str) -> None:
    manifest = b"image,external_id,name,floor\ngroup.jpg,ana,Ana,3\nastronaut.png,ben,Ben,\nnowhere.jpg,cem,,\n"
    files = {
        "manifest.csv": manifest,
        "group.jpg": sources.six_people(),
        "astronaut.png": sources.astronaut(),
        "notes.bin": bytes(MAX_BODY_BYTES),
    }
    headers = {"Content-Type": "application/zip"}
    answer = client.post(f"{gallery}/enrollments", content=packed(files), params={"pick": "largest"}, headers=headers)
    job = finished(client, accepted(answer))
    assert [(one["external_id"], one["outcome"], one["reason"]) for one in job["results"]] == [
        ("ana", "enrolled", None),
        ("ben", "enrolled", None),
        ("cem", "rejected", "unreadable_image"),
    ]
    assert ok(client.get(f"{gallery}/identities/ana"))["metadata"] == {"floor": "3"}


def test_single_images_are_enrolled_with_and_without_manifest(
    client: httpx.Client, gallery: str, many: Mapping[str, bytes]
) -> None:
    names = sorted(many)[::6]
    rows = "\n".join(f"{name};{name.split('/')[0]};Somebody" for name in names)
    files = [("images", (name, many[name])) for name in names]
    files.insert(2, ("manifest", ("staff.csv", f"image;external_id;name\n{rows}\n".encode())))
    job = finished(client, accepted(client.post(f"{gallery}/enrollments", files=files, data={"pick": "only"})))
    assert [one["image"] for one in job["results"]] == names
    assert job["enrolled"] == 7
    assert ok(client.get(f"{gallery}/identities/collins"))["name"] == "Somebody"
    loose = [("images", ("ana_1.jpg", sources.astronaut())), ("images", ("cat.png", sources.no_faces()[-1]))]
    job = finished(client, accepted(client.post(f"{gallery}/enrollments", files=loose)))
    assert [(one["external_id"], one["reason"]) for one in job["results"]] == [
        ("ana", "looks_like_another_identity"),
        ("cat", "no_face"),
    ]


def test_images_of_a_job_are_people_as_files_are(client: httpx.Client, gallery: str, many: Mapping[str, bytes]) -> None:
    """Numbered photos of different people are refused, files of a camera are not joined, those of a bin are skipped."""
    people = [data for name, data in sorted(many.items())[::6]]
    names = ["emp_1042.jpg", "emp_1043.jpg", "IMG_2041.jpg", "laura/IMG_2042.jpg", "#recycle/1.jpg", "@eaDir/1.jpg"]
    files = [("images", one) for one in zip(names, people, strict=False)]
    job = finished(client, accepted(client.post(f"{gallery}/enrollments", files=files)))
    assert [(one["image"], one["external_id"], one["reason"]) for one in job["results"]] == [
        ("IMG_2041.jpg", "IMG_2041", None),
        ("emp_1042.jpg", "emp", "unlike_own_identity"),
        ("emp_1043.jpg", "emp", "unlike_own_identity"),
        ("laura/IMG_2042.jpg", "laura", None),
    ]


def encrypted() -> bytes:
    """Returns a ZIP whose only file is marked as encrypted."""
    data = bytearray(packed({"a.jpg": b"x"}))
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flags in the central directory
    return bytes(data)


ONE = packed({"a.jpg": b"x"})
IMAGE, ZIP = ("images", ("a.jpg", b"x")), ("archive", ("a.zip", b"y"))


@pytest.mark.parametrize(
    ("files", "data", "code", "message"),
    [
        (archive(b"no ZIP"), {}, "invalid_archive", "not a readable ZIP"),
        (archive(b"PK\x03\x04 cut short"), {}, "invalid_archive", "it is incomplete, its end is missing"),
        (archive(packed({})), {}, "invalid_archive", "no images"),
        (archive(packed({"notes.txt": b"x"})), {}, "invalid_archive", "no images"),
        (archive(packed({"../a.jpg": b"x"})), {}, "invalid_archive", "points out"),
        (
            archive(packed({"a.jpg": bytes(2**27)}, compression=zipfile.ZIP_DEFLATED)),
            {},
            "invalid_archive",
            "decompressed 134,217,728",
        ),
        (archive(encrypted()), {}, "invalid_archive", "encrypted"),
        ({"manifest": ("m.csv", b"image,external_id\n")}, {}, "invalid_archive", "no images"),
        ({}, {"pick": "only"}, "invalid_request", "multipart/form-data"),
        (archive(packed({"manifest.csv": b"photo\nx"})), {}, "invalid_request", "no column 'image'"),
        (archive(ONE), {"pick": "best"}, "invalid_request", "pick is 'best'"),
        (archive(ONE), {"pick": "x" * 2000}, "invalid_request", "more than 1,000 bytes"),
        (archive(ONE), {"pike": "only"}, "invalid_request", "body.pike: is unknown; did you mean pick?"),
        ({"image": ("a.jpg", b"x")}, {}, "invalid_request", "body.image: is unknown; did you mean images?"),
        ([IMAGE, IMAGE], {}, "invalid_request", "named 'a.jpg'"),
        ([IMAGE, ZIP], {}, "invalid_request", "one or the other"),
        ([ZIP, IMAGE], {}, "invalid_request", "one or the other"),
        ([ZIP, ZIP], {}, "invalid_request", "one or the other"),
    ],
)
def test_unusable_forms_are_rejected_and_create_no_job(
    client: httpx.Client, gallery: str, files: Any, data: Any, code: str, message: str
) -> None:
    error = refused(client.post(f"{gallery}/enrollments", files=files, data=data), 400, code)
    assert message in error["message"]
    assert jobs_of(client, gallery) == []


def test_manifest_with_too_many_rows_is_rejected(
    client: httpx.Client, gallery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_files, "MAX_ROWS", 2)
    manifest = b"image,external_id\n" + b"a.jpg,ana\n" * 3
    files = archive(packed({"manifest.csv": manifest, "a.jpg": b"x"}))
    error = refused(client.post(f"{gallery}/enrollments", files=files), 400, "invalid_request")
    assert error["message"] == "the manifest manifest.csv has more than the 2 rows allowed; split it into several"
    assert jobs_of(client, gallery) == []


FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", b""),
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "b" * 1000, b"x"),
        (FORM, b""),
        (FORM, b"no boundary"),
        (FORM, b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\ncut short'),
        (FORM, b'--b\r\nContent-Disposition: form-data; name="archive"\r\n\r\nas text\r\n--b--\r\n'),
    ],
)
def test_malformed_bodies_are_rejected(client: httpx.Client, gallery: str, kind: str, body: bytes) -> None:
    headers = {"Content-Type": kind} if kind else {}
    refused(client.post(f"{gallery}/enrollments", content=body, headers=headers), 400, "invalid_request")


def test_unknown_galleries_jobs_and_cursors_are_rejected(client: httpx.Client, people_zip: bytes) -> None:
    refused(client.post("/v1/galleries/nobody/enrollments", files=archive(people_zip)), 404, "gallery_not_found")
    refused(client.get("/v1/jobs/nothing"), 404, "job_not_found")
    refused(client.post("/v1/jobs/nothing/cancel"), 404, "job_not_found")
    refused(client.get("/v1/jobs", params={"gallery": "nobody"}), 404, "gallery_not_found")
    refused(client.get("/v1/jobs", params={"cursor": "x"}), 400, "invalid_request")


def test_repeated_request_with_an_idempotency_key_creates_one_job(
    client: httpx.Client, gallery: str, people_zip: bytes
) -> None:
    paths = {enroll(client, people_zip, gallery, headers={"Idempotency-Key": gallery}) for _ in range(2)}
    assert len(paths) == 1
    assert finished(client, paths.pop())["enrolled"] == 7
    assert len(jobs_of(client, gallery)) == 1


def test_jobs_and_results_are_listed_in_pages_and_filtered(
    client: httpx.Client, gallery: str, many: Mapping[str, bytes]
) -> None:
    name = gallery.rsplit("/", 1)[1]
    files = {f"{n}.jpg": data for n, data in enumerate([*many.values()][:3])} | {"cat.png": sources.no_faces()[-1]}
    paths = [enroll(client, packed(files), gallery) for _ in range(3)]
    whole = [finished(client, path) for path in paths]
    first = ok(client.get(paths[0], params={"limit": 3}))
    rest = ok(client.get(paths[0], params={"limit": 3, "cursor": first["cursor"]}))
    assert first["results"] + rest["results"] == whole[0]["results"]
    assert rest["cursor"] is None
    rejected = ok(client.get(paths[0], params={"outcome": "rejected"}))["results"]
    assert rejected == [one for one in whole[0]["results"] if one["outcome"] == "rejected"]
    assert "no_face" in {one["reason"] for one in rejected}
    listed = ok(client.get("/v1/jobs", params={"gallery": name, "limit": 2}))
    more = ok(client.get("/v1/jobs", params={"gallery": name, "limit": 2, "cursor": listed["cursor"]}))
    assert more["cursor"] is None
    expected = [{key: job[key] for key in JOB_FIELDS} for job in reversed(whole)]
    assert listed["jobs"] + more["jobs"] == expected
    assert [job for job in ok(client.get("/v1/jobs"))["jobs"] if job["gallery"] == name] == expected
