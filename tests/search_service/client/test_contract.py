"""The client covers the service: every route, every field and every enumeration value."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import date
from typing import Any

import pytest

from indexer import types
from indexer.models.packs import SFACE, describe
from search_service.api.errors import RETRY_AFTER_SECONDS
from search_service.api.middleware.idempotency import CHANGES_NOTHING, RENEWAL_SECONDS
from search_service.calibration import report
from search_service.client import answers, async_client, enums, service_answers, sync_client
from search_service.client.calls import GalleryCalls, IdentityCalls, ServiceCalls
from search_service.client.parsing import read
from search_service.client.retry import Api, Options, Pages, Retries, Send
from search_service.client.service_calls import JobCalls, KeyCalls, WebhookCalls
from search_service.matching import decision
from search_service.store import api_keys as stored_keys
from search_service.store import idempotency as stored_answers
from search_service.store import jobs as stored_jobs
from search_service.store.event_pages import Direction
from tests.search_service.api.endpoints import application
from tests.search_service.api.serving import Running

API = Api(Options())
SERVICE, GALLERY, ANA = ServiceCalls(API), GalleryCalls(API, "g"), IdentityCalls(API, "g", "ana")
JOB, WEBHOOKS, KEYS = JobCalls(API, "1"), WebhookCalls(API), KeyCalls(API)

CALLS: Mapping[str, Callable[[], Any]] = {
    "GET /readyz": SERVICE.ready,
    "GET /v1/access": SERVICE.key_needed,
    "GET /v1/galleries": SERVICE.galleries,
    "POST /v1/galleries": GALLERY.create,
    "GET /v1/galleries/{gallery}": GALLERY.show,
    "DELETE /v1/galleries/{gallery}": GALLERY.delete,
    "POST /v1/galleries/{gallery}/search": lambda: GALLERY.search(b""),
    "GET /v1/galleries/{gallery}/identities": GALLERY.identities,
    "POST /v1/galleries/{gallery}/identities": lambda: GALLERY.create_identity("ana"),
    "GET /v1/galleries/{gallery}/identities/{id}": ANA.show,
    "PUT /v1/galleries/{gallery}/identities/{id}": ANA.put,
    "PATCH /v1/galleries/{gallery}/identities/{id}": ANA.update,
    "DELETE /v1/galleries/{gallery}/identities/{id}": ANA.delete,
    "POST /v1/galleries/{gallery}/identities/{id}/merge": lambda: ANA.merge("ben"),
    "GET /v1/galleries/{gallery}/identities/{id}/faces": ANA.faces,
    "POST /v1/galleries/{gallery}/identities/{id}/faces": lambda: GALLERY.enroll("ana", b""),
    "GET /v1/galleries/{gallery}/faces/{id}": lambda: GALLERY.face(1),
    "GET /v1/galleries/{gallery}/faces/{id}/crop": lambda: GALLERY.face_crop(1),
    "DELETE /v1/galleries/{gallery}/faces/{id}": lambda: GALLERY.delete_face(1),
    "GET /v1/galleries/{gallery}/duplicates": GALLERY.duplicates,
    "POST /v1/galleries/{gallery}/calibration": GALLERY.calibrate,
    "POST /v1/galleries/{gallery}/enrollments": lambda: GALLERY.enroll_many({"ana.jpg": b""}),
    "GET /v1/jobs": SERVICE.jobs,
    "GET /v1/jobs/{id}": JOB.show,
    "POST /v1/jobs/{id}/cancel": JOB.cancel,
    "POST /v1/detect": lambda: SERVICE.detect(b""),
    "POST /v1/compare": lambda: SERVICE.compare(b"", b""),
    "POST /v1/embed": lambda: SERVICE.embed(b""),
    "GET /v1/models": SERVICE.models,
    "GET /v1/events": SERVICE.events,
    "DELETE /v1/events": lambda: SERVICE.forget_events("g"),
    "GET /v1/events/attendance": lambda: SERVICE.attendance("g", date(2026, 11, 1), date(2026, 12, 1)),
    "GET /v1/events/{id}": lambda: SERVICE.event(1),
    "GET /v1/webhooks": WEBHOOKS.list,
    "POST /v1/webhooks": lambda: WEBHOOKS.create("http://h"),
    "GET /v1/webhooks/{id}": lambda: WEBHOOKS.show("1"),
    "DELETE /v1/webhooks/{id}": lambda: WEBHOOKS.delete("1"),
    "GET /v1/webhooks/{id}/deliveries": lambda: WEBHOOKS.deliveries("1"),
    "POST /v1/webhooks/{id}/replay": lambda: WEBHOOKS.replay("1"),
    "GET /v1/keys": KEYS.list,
    "GET /v1/keys/self": KEYS.own,
    "POST /v1/keys": lambda: KEYS.create("door", scopes=["search"]),
    "DELETE /v1/keys/{id}": lambda: KEYS.revoke("1"),
}

NOT_IN_THE_CLIENT = {"GET /metrics", "GET /healthz", "GET /v1/events/stream"}

KINDS: Mapping[str, type] = {
    "AnswerPayload": answers.Answer,
    "FramePayload": answers.Frame,
    "CalibrationPayload": answers.Calibration,
    "ComparePayload": answers.Comparison,
    "DetectPayload": answers.Detected,
    "DuplicatesPayload": answers.Duplicates,
    "EmbedPayload": answers.Embedded,
    "EnrolledPayload": answers.Enrolled,
    "EventPayload": answers.Event,
    "GalleryDetailPayload": answers.GalleryDetail,
    "GalleryPayload": answers.Gallery,
    "IdentityPayload": answers.Identity,
    "JobPayload": service_answers.Job,
    "KeyPayload": service_answers.Key,
    "MadeKey": service_answers.MadeKey,
    "MadeWebhook": service_answers.MadeWebhook,
    "MergedPayload": answers.Merged,
    "ModelsPayload": service_answers.Models,
    "OwnKey": service_answers.OwnKey,
    "ReadyPayload": service_answers.Ready,
    "StoredFacePayload": answers.StoredFace,
    "WebhookDeleted": service_answers.WebhookDeleted,
    "WebhookPayload": service_answers.Webhook,
    "Deleted": answers.Deleted,
    # parts of others
    "AttendanceRow": answers.AttendanceRow,
    "CandidatePayload": answers.Candidate,
    "DeliveryPayload": service_answers.Delivery,
    "EmbeddedFacePayload": answers.EmbeddedFace,
    "ErrorBody": answers.Problem,
    "FaceAnswerPayload": answers.FaceAnswer,
    "FacePayload": answers.Face,
    "IndexPayload": answers.Index,
    "LikelyOne": answers.LikelyOne,
    "PairPayload": answers.Pair,
    "LivenessPayload": answers.Liveness,
    "QualityPayload": answers.Quality,
    "RecordedPayload": answers.Recorded,
    "SidePayload": answers.Side,
    "ThresholdPayload": answers.Threshold,
    "WrongPhotoPayload": answers.WrongPhoto,
    "OutlierPayload": answers.Outlier,
}
"""The client's class for each object of the service's OpenAPI document."""

SENT = {"IdentityBody", "IdentityPatch", "MergeBody", "NewGallery", "NewIdentity", "NewKey", "NewWebhook"}

UNWRAPPED = {
    *("DeliveryList", "EventList", "GalleryList", "IdentityList", "JobDetailPayload", "JobList", "KeyList"),
    *("StoredFaceList", "AlivePayload", "AnswersPayload", "ErrorAnswer", "Forgotten", "ModelPayload", "Replayed"),
    *("AccessPayload", "AttendancePayload", "ResultsPayload", "WebhookList"),
}
"""Objects without a class in the client: pages, errors, objects with one field, and model packs with any fields."""

ENUMS = [
    (enums.Decision, decision.Decision),
    (enums.DecisionReason, decision.DecisionReason),
    (enums.Reason, types.Reason),
    (enums.Outcome, types.Outcome),
    (enums.LivenessMode, types.LivenessMode),
    (enums.Pick, types.Pick),
    (enums.Direction, Direction),
    (enums.JobState, stored_jobs.JobState),
    (enums.Scope, stored_keys.Scope),
    (enums.Basis, report.Basis),
]


@pytest.mark.parametrize("route", CALLS)
def test_call_requests_its_route(route: str) -> None:
    call = CALLS[route]()
    step = next(call.page(None) if isinstance(call, Pages) else call)
    assert isinstance(step, Send)
    method, path = route.split()
    assert step.request.method == method
    assert re.fullmatch(re.sub(r"{\w+}", "[^/]+", path), step.request.path)
    changes_nothing = step.request.path in CHANGES_NOTHING or route.endswith("/search")
    idempotent = method == "POST" and not changes_nothing and route != "POST /v1/keys"
    assert ("Idempotency-Key" in step.headers) == idempotent


def _unnamed(route: str) -> str:
    """Returns a route without the names of its parameters."""
    return re.sub(r"{\w+}", "{}", route)


def test_every_route_has_a_call() -> None:
    paths = application().openapi()["paths"]
    routes = {f"{method.upper()} {_unnamed(path)}" for path, methods in paths.items() for method in methods}
    assert routes - NOT_IN_THE_CLIENT == {_unnamed(route) for route in CALLS}


def test_every_field_is_known(service: Running) -> None:
    schemas = service.app.openapi()["components"]["schemas"]
    for name, kind in KINDS.items():
        assert {f.name for f in fields(kind)} - {"etag"} == set(schemas[name]["properties"]), name


def test_every_field_of_a_model_pack_is_known() -> None:
    described = describe(SFACE)
    assert {f.name for f in fields(service_answers.Model)} == {*described, "installed", "problem"}
    assert isinstance(described["files"], list)
    assert {f.name for f in fields(service_answers.ModelFile)} == set(described["files"][0])


def test_every_object_is_known(service: Running) -> None:
    enumerations = {kind.__name__ for _, kind in ENUMS}
    assert set(service.app.openapi()["components"]["schemas"]) - enumerations == set(KINDS) | SENT | UNWRAPPED


@pytest.mark.parametrize("name", KINDS)
def test_every_example_is_parsed(service: Running, name: str) -> None:
    (example,) = service.app.openapi()["components"]["schemas"][name]["examples"]
    assert read(KINDS[name], example | {"something": "new"}) == read(KINDS[name], example)


@pytest.mark.parametrize(("ours", "theirs"), ENUMS)
def test_every_enumeration_value_is_known(ours: type[Any], theirs: type[Any]) -> None:
    assert {str(value) for value in ours} == {str(value) for value in theirs}


def test_both_clients_have_every_call() -> None:
    for kind, name in (
        (ServiceCalls, "Client"),
        (GalleryCalls, "GalleryHandle"),
        (IdentityCalls, "IdentityHandle"),
        (JobCalls, "JobHandle"),
        (WebhookCalls, "Webhooks"),
        (KeyCalls, "Keys"),
    ):
        calls = {name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}
        for handle in (getattr(sync_client, name), getattr(async_client, f"Async{name}")):
            assert calls <= {name for name in vars(handle) if not name.startswith("_")}, handle
            for call in calls:
                assert inspect.getdoc(getattr(handle, call)) or not inspect.getdoc(getattr(kind, call)), call


def test_import_loads_no_other_part_of_the_project() -> None:
    """A door's controller has none of the service's dependencies."""
    script = (
        "import sys, warnings\n"
        "import search_service.client\n"
        "heavy = {'numpy', 'faiss', 'torch', 'cv2', 'fastapi', 'starlette', 'pydantic', 'sqlalchemy', 'indexer'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "ours = {name for name in sys.modules if name.startswith('search_service.')}\n"
        "assert all(name.startswith('search_service.client') for name in ours), ours\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_retries_outlast_the_lease_of_a_dead_worker() -> None:
    """A lease ends after LEASE_SECONDS, or twice that if the clock was set back. The attempt before that end can begin
    one longest wait earlier, and the next one must begin before the deadline."""
    retries, lease = Retries(), stored_answers.LEASE_SECONDS
    longest = retries.wait(99, RETRY_AFTER_SECONDS, chance=1.0)
    assert lease + longest < retries.deadline_seconds / 2
    assert 2 * lease + longest < retries.deadline_seconds
    assert lease > 4 * RENEWAL_SECONDS, "a few renewals may fail"
