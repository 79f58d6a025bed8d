"""Both clients with the real service."""

from __future__ import annotations

import io
import os
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from search_service.client import (
    Client,
    Conflict,
    Decision,
    DecisionReason,
    Direction,
    Forbidden,
    GalleryHandle,
    InvalidRequest,
    NotDone,
    NotFound,
    Outcome,
    PreconditionFailed,
    RateLimited,
    Reason,
    Rejected,
    Retries,
    Scope,
    TooLarge,
    Unauthorized,
)
from tests import photos as sources
from tests.search_service.api.conftest import MAX_BODY_BYTES
from tests.search_service.api.serving import Running
from tests.search_service.background.receiver import receiving
from tests.search_service.client.conftest import Connect, guarded
from tests.waiting import DEADLINE, wait_for

AT = datetime(2031, 4, 5, 6, 7, 8, tzinfo=UTC)


def test_gallery_is_created_shown_listed_and_deleted(faces: Client) -> None:
    gallery = faces.gallery("Gäste, à propos")
    assert gallery.create(model="sface").model == "sface"
    with pytest.raises(Conflict) as caught:
        gallery.create()
    assert (caught.value.status, caught.value.code) == (409, "gallery_exists")
    shown = gallery.show()
    assert (shown.name, shown.identities, shown.index.faces) == (gallery.name, 0, 0)
    assert gallery.name in [found.name for found in faces.with_options(page_size=1).galleries()]
    assert gallery.delete().deleted == gallery.name
    with pytest.raises(NotFound, match="gallery_not_found"):
        gallery.show()


def test_search_returns_match_or_no_match(staff: GalleryHandle, photos: Path) -> None:
    answer = staff.search(photos / "probes" / "left-1-small.jpg", top_k=1, fpir=0.01)
    assert answer.match is not None
    assert (answer.match.external_id, answer.image) == ("left-1", "left-1-small.jpg")
    assert answer.faces[0].decision is Decision.MATCH
    assert len(answer.faces[0].candidates) == 1
    stranger = staff.search((photos / "probes" / "stranger.jpg").read_bytes())
    assert (stranger.match, stranger.image) == (None, None)
    assert stranger.faces[0].decision is Decision.NO_MATCH
    assert stranger.faces[0].reasons[0] is DecisionReason.BELOW_THRESHOLD
    with pytest.raises(Rejected) as caught:
        staff.search(sources.no_faces()[0])
    assert caught.value.code == Reason.NO_FACE
    with pytest.raises(InvalidRequest, match="top_k"):
        staff.search(sources.astronaut(), top_k=0)


def test_photo_can_be_bytes_a_path_or_an_open_file(staff: GalleryHandle, photos: Path) -> None:
    path = photos / "probes" / "left-2-large.png"
    with path.open("rb") as file:
        for image in (path, str(path), file, path.read_bytes(), io.BytesIO(path.read_bytes())):
            match = staff.search(image).match
            assert match is not None
            assert match.external_id == "left-2"
    with pytest.raises(FileNotFoundError):
        staff.search("no such photo.jpg")
    with pytest.raises(TypeError, match="expected bytes, a path"):
        staff.search(17)  # type: ignore[arg-type]


def test_several_images_are_searched_in_one_request(staff: GalleryHandle, photos: Path) -> None:
    one, other = photos / "probes" / "left-1-small.jpg", photos / "probes" / "left-2-large.png"
    answers = staff.search_each([one, sources.no_faces()[0], other])
    assert [answer.match and answer.match.external_id for answer in answers] == ["left-1", None, "left-2"]
    assert answers[1].error is not None
    assert answers[1].error.code == Reason.NO_FACE
    frames = staff.search_frames([one, photos / "photos" / "left-1" / "1.jpg"])
    assert frames.match is not None
    assert frames.match.external_id == "left-1"
    apart = staff.search_frames([one, other])
    assert apart.match is None
    assert DecisionReason.FRAMES_DISAGREE in apart.faces[0].reasons
    group = staff.search(sources.six_people(), all_faces=True)
    assert len(group.faces) == 6
    with pytest.raises(TypeError, match="a list of images; got a single one"):
        staff.search_each(one)  # type: ignore[arg-type]


def test_faces_are_detected_embedded_and_compared(faces: Client, staff: GalleryHandle, photos: Path) -> None:
    photo = photos / "photos" / "left-1" / "1.jpg"
    assert faces.ready().ready
    assert any(file.licence for model in faces.models().models for file in model.files)
    assert faces.models().default in [model.name for model in faces.models().models]
    detected = faces.detect(photo)
    assert detected.faces[0].box is not None
    assert len(detected.faces[0].box) == 4
    assert detected.faces[0].landmarks is not None
    assert len(detected.faces[0].landmarks) == 5
    embedded = faces.embed(photo, pick="largest", model="sface")
    assert len(embedded.faces[0].embedding) == embedded.dim
    found = staff.search_embedding(embedded.faces[0].embedding, top_k=1)
    assert found.match is not None
    assert found.match.external_id == "left-1"
    assert faces.compare(photo, photos / "probes" / "left-1-small.jpg").same
    assert not faces.compare(photo, photos / "probes" / "left-2-large.png", model="sface").same


def test_photos_are_enrolled(gallery: GalleryHandle, photos: Path) -> None:
    photo = photos / "photos" / "left-1" / "1.jpg"
    assert gallery.enroll("ana", photo).outcome is Outcome.ENROLLED
    assert gallery.enroll("ana", photo, pick="largest").outcome is Outcome.UNCHANGED
    with pytest.raises(Rejected, match="no_face"):
        gallery.enroll("ana", sources.no_faces()[0])
    results = gallery.enroll_each("ben", [photos / "photos" / "left-2" / "1.jpg", sources.no_faces()[0]])
    assert [(one.outcome, one.reason) for one in results] == [
        (Outcome.ENROLLED, None),
        (Outcome.REJECTED, Reason.NO_FACE),
    ]
    with pytest.raises(TooLarge, match="body_too_large"):
        gallery.enroll("ana", bytes(MAX_BODY_BYTES + 1))
    (face,) = gallery.identity("ana").faces()
    assert gallery.face(face.face_id) == face
    assert gallery.delete_face(face.face_id).faces == 1
    assert list(gallery.identity("ana").faces()) == []
    assert gallery.show().faces == 1


def test_identity_is_created_changed_and_deleted(gallery: GalleryHandle) -> None:
    ana = gallery.identity("e/1042 100%")
    created = gallery.create_identity(ana.external_id, name="Ana", metadata={"desk": 4, "floor": 1}, valid_until=AT)
    assert created.valid_until == AT
    shown = ana.show()
    assert (shown, shown.etag) == (created, created.etag)
    assert shown.etag is not None
    assert ana.changed(shown.etag) is None
    patched = ana.update(metadata={"desk": None}, valid_until=None, if_match=shown.etag)
    assert (patched.name, patched.metadata, patched.valid_until) == ("Ana", {"floor": 1}, None)
    assert ana.changed(shown.etag) == patched
    for change in (ana.update, ana.put, ana.delete):
        with pytest.raises(PreconditionFailed) as caught:
            change(if_match=shown.etag)
        assert caught.value.details == {"etag": patched.etag}
    assert ana.put(name="Ann", valid_from=AT).metadata == {}
    with pytest.raises(PreconditionFailed):
        ana.put(if_missing=True)
    (listed,) = gallery.identities()
    with pytest.raises(ValueError, match="if_match is None"):
        ana.delete(if_match=listed.etag)
    assert gallery.identity("new").put(if_missing=True).external_id == "new"
    assert ana.delete().deleted == ana.external_id
    with pytest.raises(NotFound):
        ana.show()


def test_lists_request_further_pages(faces: Client, gallery: GalleryHandle) -> None:
    names = [f"person {number}" for number in range(7)]
    for name in names:
        gallery.create_identity(name)
    small = faces.with_options(page_size=3).gallery(gallery.name)
    assert [person.external_id for person in small.identities()] == names
    assert next(small.identities()).external_id == names[0]
    gallery.create_identity("Zoë", metadata={"floor": 3})
    assert [person.external_id for person in small.identities("PERSON")] == names
    assert [person.external_id for person in small.identities("zoe", metadata={"floor": "3"})] == ["Zoë"]


def test_identities_are_compared_and_merged(gallery: GalleryHandle, photos: Path) -> None:
    gallery.create_identity("ana", name="Ana")
    gallery.enroll("ana", photos / "photos" / "left-1" / "1.jpg")
    gallery.create_identity("7")
    found = gallery.duplicates(threshold=0.5, limit=10)
    assert (found.faces, found.pairs, found.complete) == (1, (), True)
    merged = gallery.identity("7").merge("ana")
    assert (merged.merged, merged.faces, merged.identity.name) == ("ana", 1, "Ana")
    assert [person.external_id for person in gallery.identities()] == ["7"]


def test_gallery_is_calibrated(staff: GalleryHandle) -> None:
    calibration = staff.calibrate()
    assert (calibration.people, calibration.faces) == (2, 2)
    assert calibration.thresholds[0].basis == "pack"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_name_that_changes_the_path_is_rejected(faces: Client, gallery: GalleryHandle, name: str) -> None:
    """`DELETE .../identities/..` would delete the gallery."""
    with pytest.raises(ValueError, match="cannot be part of a path"):
        gallery.identity(name).delete()
    with pytest.raises(ValueError, match="cannot be part of a path"):
        faces.gallery(name).delete()
    assert gallery.show().name == gallery.name


def test_archive_is_enrolled_by_a_job(faces: Client, gallery: GalleryHandle, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "people.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for photo in sorted((photos / "photos").glob("*/*.jpg")):
            archive.write(photo, f"{photo.parent.name}/{photo.name}")
        archive.writestr("nobody/1.jpg", sources.no_faces()[0])
        archive.writestr("padding.bin", os.urandom(MAX_BODY_BYTES))  # more than the service keeps in memory
    job = gallery.enroll_archive(path, pick="largest")
    done = job.wait(DEADLINE)
    assert (done.state, done.images, done.enrolled, done.rejected) == ("done", 8, 7, 1)
    assert done.ended
    assert len(list(job.rows())) == 8
    (wrong,) = job.rows(outcome=Outcome.REJECTED)
    assert (wrong.external_id, wrong.reason) == ("nobody", Reason.NO_FACE)
    assert job.show() == done == job.cancel()
    assert [found.id for found in faces.jobs(gallery=gallery.name)] == [job.id]
    assert faces.job(job.id).show() == done
    with pytest.raises(InvalidRequest, match="invalid_archive"):
        gallery.enroll_archive(photos / "probes" / "stranger.jpg")


def test_waiting_for_a_job_ends_after_its_timeout(service: Running, gallery: GalleryHandle, photos: Path) -> None:
    photo = photos / "photos" / "left-1" / "1.jpg"
    job = gallery.enroll_many({f"p{number}/1.jpg": photo for number in range(50)})
    with pytest.raises(NotDone, match=job.id):
        job.wait(0)
    job.cancel()
    assert job.wait(DEADLINE).ended


def test_photos_are_enrolled_with_a_manifest(gallery: GalleryHandle, photos: Path) -> None:
    photo = photos / "photos" / "left-1" / "1.jpg"
    name = 'Ana "A" Kovač.jpg'
    manifest = f'image,external_id,name\n"{name.replace(chr(34), chr(34) * 2)}",ana,Ana\n'.encode()
    job = gallery.enroll_many({name: photo}, manifest=manifest)
    job.wait(DEADLINE)
    (row,) = job.rows()
    assert (row.external_id, row.outcome) == ("ana", Outcome.ENROLLED)
    (person,) = gallery.identities()
    assert (person.name, person.etag) == ("Ana", None)


def test_events_are_recorded_listed_and_deleted(faces: Client, staff: GalleryHandle, photos: Path) -> None:
    probe = photos / "probes" / "left-1-small.jpg"
    options = {"record": True, "device": "door", "direction": Direction.IN, "cooldown": 60.5}
    first, again = (staff.search(probe, **options).faces[0].event for _ in range(2))  # type: ignore[arg-type]
    assert first is not None
    assert again is not None
    assert (first.recorded, again.recorded, again.id) == (True, False, first.id)
    wanted = {"gallery": staff.name, "external_id": "left-1", "device": "door"}
    (found,) = faces.events(**wanted, since=first.at, decision=Decision.MATCH, direction="in")  # type: ignore[arg-type]
    assert faces.event(found.id) == found
    assert (found.at, found.direction, found.score) == (first.at, Direction.IN, first.score)
    assert list(faces.events(gallery=staff.name, until=first.at)) == []
    assert faces.forget_events(staff.name, before=first.at) == 0
    assert faces.forget_events(staff.name, external_id="left-1") == 1


def test_webhook_receives_events_and_is_deleted(faces: Client, staff: GalleryHandle, photos: Path) -> None:
    with receiving() as receiver:
        hook = faces.webhooks.create(receiver.url, gallery=staff.name, decisions=[Decision.MATCH, "review"])
        assert hook.secret not in repr(hook)
        shown = faces.webhooks.show(hook.id)
        assert shown in faces.webhooks.list()
        assert (shown.decisions, shown.dead) == ((Decision.MATCH, Decision.REVIEW), 0)
        staff.search(photos / "probes" / "left-1-small.jpg", record=True, device="door")
        wait_for(lambda: faces.webhooks.show(hook.id).waiting == 0, "the event is delivered")
        assert list(faces.webhooks.deliveries(hook.id)) == []
        assert list(faces.webhooks.deliveries(hook.id, state="waiting")) == []
        assert faces.webhooks.replay(hook.id) == 0
        assert faces.webhooks.delete(hook.id).undelivered == 0


def test_key_is_limited_to_its_scope_gallery_and_rate(connect: Connect, tmp_path: Path, models_folder: Path) -> None:
    with guarded(tmp_path, models_folder) as (url, secret):
        owner = connect(url, secret)
        owner.gallery("staff").create()
        door = owner.keys.create("door", scopes=["search"], galleries=["staff"], expires_at=AT, per_minute=3)
        assert door.key not in repr(door)
        assert (door.scopes, door.galleries, door.expires_at) == ((Scope.SEARCH,), ("staff",), AT)
        client = connect(url, door.key, retries=Retries(deadline_seconds=0))
        assert [found.name for found in client.galleries()] == ["staff"]
        with pytest.raises(Forbidden, match="forbidden_scope"):
            client.gallery("staff").delete()
        with pytest.raises(Forbidden, match="forbidden_gallery"):
            client.gallery("visitors").show()
        with pytest.raises(RateLimited) as caught:
            [client.models() for _ in range(3)]
        assert caught.value.details["retry_after_seconds"] > 0
        assert [key.name for key in owner.keys.list()] == ["door", "owner"]
        assert owner.keys.revoke(door.id).revoked_at is not None
        with pytest.raises(Unauthorized, match="revoked"):
            client.models()
        with pytest.raises(Unauthorized):
            connect(url).models()
