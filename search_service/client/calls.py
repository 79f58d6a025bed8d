"""Everything that can be asked of the service, by what it is asked of. Nothing here sends anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, TypedDict, TypeVar, Unpack

from search_service.client.answers import (
    Answer,
    Calibration,
    Comparison,
    Decision,
    Deleted,
    Delivery,
    DeliveryState,
    Detected,
    Direction,
    Duplicates,
    Embedded,
    Enrolled,
    Event,
    Gallery,
    GalleryDetail,
    Identity,
    Job,
    Key,
    MadeKey,
    MadeWebhook,
    Merged,
    Models,
    Outcome,
    Pick,
    Ready,
    Scope,
    StoredFace,
    Webhook,
    WebhookDeleted,
    Webhooks,
)
from search_service.client.asking import Api, Pages, Pause, Reply, Request, Steps, address, as_a, json_of
from search_service.client.bodies import Body, Photo, file_body, form, json_body, photo, said
from search_service.client.errors import NotDone
from search_service.client.reading import read

T = TypeVar("T")

NOT_MODIFIED = HTTPStatus.NOT_MODIFIED

FIRST_LOOK_SECONDS = 0.1
LONGEST_LOOK_SECONDS = 2.0
"""How often a job is looked at while somebody waits for it: less and less, from the first to the longest."""


class Unset(Enum):
    """What is not to be changed."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class Query(TypedDict, total=False):
    """What is asked of a search; None is not said."""

    top_k: int | None
    """How many candidates (5)."""
    fpir: float | None
    """The share of strangers who may be answered with a match (0.01)."""
    threshold: float | None
    """Or the cosine itself."""
    pick: Pick | str | None
    """The face that is searched: the largest, or `center`."""
    all_faces: bool | None
    """Every face, instead of `pick`."""
    record: bool | None
    """An event is recorded of each face: once a person, device and cooldown."""
    device: str | None
    """With `record`: what the image was taken by, as `north-door`."""
    direction: Direction | str | None
    cooldown: float | None
    """Seconds."""


@dataclass(frozen=True)
class ServiceCalls:
    api: Api

    def ready(self) -> Steps[Ready]:
        """Whether models and indexes are there yet."""
        return self.api.ask(Request("GET", "/readyz", fine=(HTTPStatus.SERVICE_UNAVAILABLE,)), as_a(Ready))

    def models(self) -> Steps[Models]:
        """The model packs there are, and which one new galleries are bound to."""
        return self.api.get(address("models"), Models)

    def detect(self, image: Photo) -> Steps[Detected]:
        """All faces of an image, largest first; none is an empty list."""
        return self.api.post(address("detect"), Detected, form([photo("image", image)], {}), keyed=False)

    def embed(
        self, image: Photo, *, model: str | None = None, pick: Pick | str | None = None, all_faces: bool | None = None
    ) -> Steps[Embedded]:
        """The embeddings of an image's faces: the largest, unless `pick` or `all_faces` say otherwise."""
        body = form([photo("image", image)], {"model": model, "pick": pick, "all_faces": all_faces})
        return self.api.post(address("embed"), Embedded, body, keyed=False)

    def compare(self, image_a: Photo, image_b: Photo, *, model: str | None = None) -> Steps[Comparison]:
        """Whether the largest faces of two images are one person, at a false match rate of 1 in 1,000."""
        body = form([photo("image_a", image_a), photo("image_b", image_b)], {"model": model})
        return self.api.post(address("compare"), Comparison, body, keyed=False)

    def galleries(self) -> Pages[Gallery]:
        """Those that the key opens, in the order of their making."""
        return self.api.pages(address("galleries"), "galleries", Gallery)

    def jobs(self, *, gallery: str | None = None) -> Pages[Job]:
        """Bulk enrolments, the latest first."""
        return self.api.pages(address("jobs"), "jobs", Job, said({"gallery": gallery}))

    def events(
        self,
        *,
        gallery: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        external_id: str | None = None,
        device: str | None = None,
        decision: Decision | str | None = None,
        direction: Direction | str | None = None,
    ) -> Pages[Event]:
        """Those to which all that is said applies, in the order of their recording: from `since` on and before
        `until`, which are UTC where they have no zone."""
        wanted = {
            "gallery": gallery,
            "since": _time(since),
            "until": _time(until),
            "external_id": external_id,
            "device": device,
            "decision": decision,
            "direction": direction,
        }
        return self.api.pages(address("events"), "events", Event, said(wanted))

    def event(self, event_id: int) -> Steps[Event]:
        return self.api.get(address("events", str(event_id)), Event)

    def forget_events(
        self, gallery: str, *, external_id: str | None = None, before: datetime | None = None
    ) -> Steps[int]:
        """Deletes a person's events for good, or everybody's before a time; how many there were."""
        params = said({"gallery": gallery, "external_id": external_id, "before": _time(before)})
        return self.api.ask(
            Request("DELETE", address("events"), params), lambda reply: read(int, json_of(reply).get("forgotten"))
        )


@dataclass(frozen=True)
class GalleryCalls:
    api: Api
    name: str

    def create(self, *, model: str | None = None) -> Steps[Gallery]:
        """Makes it, empty, and bound for life to a model pack: the service's own where it is not named."""
        return self.api.post(address("galleries"), Gallery, json_body({"name": self.name, "model": model}))

    def show(self) -> Steps[GalleryDetail]:
        """How much is in it, and the state of its index."""
        return self.api.get(self._at(), GalleryDetail)

    def delete(self) -> Steps[Deleted]:
        """Deletes it with everybody in it."""
        return self.api.ask(Request("DELETE", self._at()), as_a(Deleted))

    def search(self, image: Photo, **query: Unpack[Query]) -> Steps[Answer]:
        """Who is this, out of the people enrolled? Raises Rejected where there is no face to search."""
        return self._search(form([photo("image", image)], query), query, as_a(Answer))

    def search_each(self, images: Iterable[Photo], **query: Unpack[Query]) -> Steps[tuple[Answer, ...]]:
        """The same of up to 16 images at once: an answer each, in order, with its own `error` where there is no
        face."""
        body = form(_images(images), query)
        return self._search(body, query, lambda reply: read(tuple[Answer, ...], json_of(reply).get("answers")))

    def search_frames(self, images: Iterable[Photo], **query: Unpack[Query]) -> Steps[Answer]:
        """One answer of up to 16 images that show one person, as frames of a video: each counts for its quality, and
        frames that disagree are no match."""
        return self._search(form(_images(images), {**query, "same_person": True}), query, as_a(Answer))

    def search_embedding(self, embedding: Iterable[float], **query: Unpack[Query]) -> Steps[Answer]:
        """Of an embedding that the gallery's model pack made."""
        body = json_body({"embedding": [float(number) for number in embedding], **said(query)})
        return self._search(body, query, as_a(Answer))

    def identities(self) -> Pages[Identity]:
        """The people, in the order of their making."""
        return self.api.pages(self._at("identities"), "identities", Identity)

    def create_identity(
        self,
        external_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> Steps[Identity]:
        """Makes a person, without faces yet. Raises Conflict where there is one of that id. Enrolling does it too."""
        body = json_body({"external_id": external_id} | _person(name, metadata, valid_from, valid_until))
        return self.api.ask(Request("POST", self._at("identities"), body=body, keyed=True), _tagged)

    def enroll(self, external_id: str, image: Photo, *, pick: Pick | str | None = None) -> Steps[Enrolled]:
        """Enrols a photo of a person, making the identity where it is missing. Raises Rejected: `code` says why."""
        body = form([photo("image", image)], {"pick": pick})
        return self.api.post(self._at("identities", external_id, "faces"), Enrolled, body)

    def enroll_each(
        self, external_id: str, images: Iterable[Photo], *, pick: Pick | str | None = None
    ) -> Steps[tuple[Enrolled, ...]]:
        """Enrols up to 16 photos of a person: a result each, in order, whatever became of them."""
        path = self._at("identities", external_id, "faces")
        request = Request("POST", path, body=form(_images(images), {"pick": pick}), keyed=True)
        return self.api.ask(request, lambda reply: read(tuple[Enrolled, ...], json_of(reply).get("results")))

    def enroll_archive(self, path: str | os.PathLike[str], *, pick: Pick | str | None = None) -> Steps[Job]:
        """Enrols a ZIP of many people's photos, as `whosthere enroll` takes it. It is sent as it is read, and never
        held in memory."""
        return self._enrollment(file_body("application/zip", path), said({"pick": pick}))

    def enroll_many(
        self,
        images: Mapping[str, Photo],
        *,
        manifest: Photo | None = None,
        pick: Pick | str | None = None,
    ) -> Steps[Job]:
        """The same of photos by their names: `ana/1.jpg` is a photo of `ana`, and so is `ana_1.jpg`; or of the
        person whom the row of that name says in the manifest, a CSV."""
        files = [photo("images", image, name) for name, image in images.items()]
        files += [photo("manifest", manifest, "manifest.csv")] if manifest is not None else []
        return self._enrollment(form(files, {"pick": pick}), {})

    def face(self, face_id: int) -> Steps[StoredFace]:
        """An enrolled face, and whose it is."""
        return self.api.get(self._at("faces", str(face_id)), StoredFace)

    def delete_face(self, face_id: int) -> Steps[Deleted]:
        """Deletes one face; the identity stays."""
        return self.api.ask(Request("DELETE", self._at("faces", str(face_id))), as_a(Deleted))

    def duplicates(self, *, threshold: float | None = None, limit: int | None = None) -> Steps[Duplicates]:
        """The identities that look alike, and the photos that look like somebody else than their own person."""
        return self.api.get(self._at("duplicates"), Duplicates, said({"threshold": threshold, "limit": limit}))

    def calibrate(self) -> Steps[Calibration]:
        """Computes the thresholds from the gallery's own people now, and tells how sure they are."""
        return self.api.post(self._at("calibration"), Calibration)

    def _search(self, body: Body, query: Query, understand: Callable[[Reply], T]) -> Steps[T]:
        """It changes something where it records."""
        request = Request("POST", self._at("search"), body=body, keyed=bool(query.get("record")))
        return self.api.ask(request, understand)

    def _enrollment(self, body: Body, params: Mapping[str, Any]) -> Steps[Job]:
        return self.api.ask(Request("POST", self._at("enrollments"), params, body, keyed=True), as_a(Job))

    def _at(self, *parts: str) -> str:
        return address("galleries", self.name, *parts)


@dataclass(frozen=True)
class IdentityCalls:
    api: Api
    gallery: str
    external_id: str

    def show(self) -> Steps[Identity]:
        """What is said of the person, and the `etag` of that."""
        return self.api.ask(Request("GET", self._at()), _tagged)

    def changed(self, etag: str) -> Steps[Identity | None]:
        """The same where it is not the state of that etag any more; else None."""
        request = Request("GET", self._at(), headers={"If-None-Match": etag}, fine=(NOT_MODIFIED,))
        return self.api.ask(request, lambda reply: None if reply.status == NOT_MODIFIED else _tagged(reply))

    def put(
        self,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
        if_match: str | Unset | None = UNSET,
        if_missing: bool = False,
    ) -> Steps[Identity]:
        """Makes the person, or replaces all that is said of them; their faces stay. `if_missing` makes and never
        replaces. Raises PreconditionFailed where it is otherwise than expected."""
        return self._change("PUT", _person(name, metadata, valid_from, valid_until), if_match, if_missing)

    def update(
        self,
        *,
        name: str | Unset | None = UNSET,
        metadata: Mapping[str, Any] | Unset | None = UNSET,
        valid_from: datetime | Unset | None = UNSET,
        valid_until: datetime | Unset | None = UNSET,
        if_match: str | Unset | None = UNSET,
    ) -> Steps[Identity]:
        """Changes what is given; None removes, also keys of the metadata. Raises PreconditionFailed unless it is in the
        state of the etag `if_match`."""
        given = {"name": name, "metadata": metadata, "valid_from": valid_from, "valid_until": valid_until}
        change = {field: _sendable(value) for field, value in given.items() if value is not UNSET}
        return self._change("PATCH", change, if_match)

    def delete(self, *, if_match: str | Unset | None = UNSET) -> Steps[Deleted]:
        """Deletes the person and all their faces. They are never returned again. Raises NotFound where they are not
        there, also where a first try deleted them and its answer was lost."""
        headers = _condition(if_match)
        return self.api.ask(Request("DELETE", self._at(), headers=headers, once=bool(headers)), as_a(Deleted))

    def merge(self, other: str) -> Steps[Merged]:
        """Joins the person `other` into this one: their faces become this one's, and they are gone."""
        return self.api.post(self._at("merge"), Merged, json_body({"other": other}))

    def faces(self) -> Pages[StoredFace]:
        """The enrolled faces, in the order of their enrolment."""
        return self.api.pages(self._at("faces"), "faces", StoredFace)

    def _change(
        self, method: str, change: Mapping[str, Any], if_match: str | Unset | None, if_missing: bool = False
    ) -> Steps[Identity]:
        headers = _condition(if_match) | ({"If-None-Match": "*"} if if_missing else {})
        body = json_body(change)
        return self.api.ask(Request(method, self._at(), body=body, headers=headers, once=bool(headers)), _tagged)

    def _at(self, *parts: str) -> str:
        return address("galleries", self.gallery, "identities", self.external_id, *parts)


@dataclass(frozen=True)
class JobCalls:
    api: Api
    id: str

    def show(self) -> Steps[Job]:
        """How far it is."""
        return self.api.get(address("jobs", self.id), Job, {"limit": 1})

    def rows(self, *, outcome: Outcome | str | None = None) -> Pages[Enrolled]:
        """What became of each image, so far; of those with one outcome."""
        return self.api.pages(address("jobs", self.id), "results", Enrolled, said({"outcome": outcome}))

    def cancel(self) -> Steps[Job]:
        """Stops it, soon. What was enrolled stays enrolled; one that has ended stays as it is."""
        return self.api.post(address("jobs", self.id, "cancel"), Job)

    def wait(self, timeout_seconds: float | None = None) -> Steps[Job]:
        """Waits until it has ended: done, failed or cancelled, as its `state` says. Raises NotDone."""
        began, pause = self.api.clock(), FIRST_LOOK_SECONDS
        while True:
            job = yield from self.show()
            if job.ended:
                return job
            if timeout_seconds is not None and self.api.clock() - began + pause > timeout_seconds:
                raise NotDone(f"job {self.id} is {job.state} after {timeout_seconds:g} s: {job.done} of {job.images}")
            yield Pause(pause)
            pause = min(2 * pause, LONGEST_LOOK_SECONDS)


@dataclass(frozen=True)
class WebhookCalls:
    api: Api

    def list(self) -> Steps[tuple[Webhook, ...]]:
        """All of them, in the order of their making."""
        return self.api.ask(Request("GET", address("webhooks")), lambda reply: as_a(Webhooks)(reply).webhooks)

    def create(
        self, url: str, *, gallery: str | None = None, decisions: Sequence[Decision | str] | None = None
    ) -> Steps[MadeWebhook]:
        """Sends every event from now on to a URL: matches, of every gallery, unless said otherwise."""
        body = json_body(said({"url": url, "gallery": gallery, "decisions": decisions and list(decisions)}))
        return self.api.post(address("webhooks"), MadeWebhook, body)

    def show(self, webhook_id: str) -> Steps[Webhook]:
        return self.api.get(address("webhooks", webhook_id), Webhook)

    def delete(self, webhook_id: str) -> Steps[WebhookDeleted]:
        """Sends nothing more to it, also what was on its way."""
        return self.api.ask(Request("DELETE", address("webhooks", webhook_id)), as_a(WebhookDeleted))

    def deliveries(self, webhook_id: str, *, state: DeliveryState | str = DeliveryState.DEAD) -> Pages[Delivery]:
        """The dead letters, oldest first; or what is on its way."""
        path = address("webhooks", webhook_id, "deliveries")
        return self.api.pages(path, "deliveries", Delivery, {"state": state})

    def replay(self, webhook_id: str) -> Steps[int]:
        """Tries the dead letters anew, from now on; how many there are."""
        request = Request("POST", address("webhooks", webhook_id, "replay"), keyed=True)
        return self.api.ask(request, lambda reply: read(int, json_of(reply).get("replayed")))


@dataclass(frozen=True)
class KeyCalls:
    api: Api

    def list(self) -> Pages[Key]:
        """Every key that was made, by name, the revoked ones too."""
        return self.api.pages(address("keys"), "keys", Key)

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope | str],
        galleries: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        per_minute: int | None = None,
    ) -> Steps[MadeKey]:
        """Makes a key. From the first one on, every request needs one. It is told once: where the answer is lost
        (ServiceUnreachable), revoke the key, if it is there, and make another."""
        said_of = {
            "galleries": galleries and list(galleries),
            "expires_at": _time(expires_at),
            "per_minute": per_minute,
        }
        body = json_body(said({"name": name, "scopes": list(scopes), **said_of}))
        return self.api.ask(Request("POST", address("keys"), body=body, once=True), as_a(MadeKey))

    def revoke(self, key_id: str) -> Steps[Key]:
        """It opens nothing any more. It stays in the list."""
        return self.api.ask(Request("DELETE", address("keys", key_id)), as_a(Key))


def _images(images: Iterable[Photo]) -> list[Any]:
    """Raises TypeError where it is a single one, which would be taken for a list of its bytes."""
    if isinstance(images, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(images, "read"):
        raise TypeError("expected a list of images; got a single one")
    return [photo("images", image) for image in images]


def _person(
    name: str | None,
    metadata: Mapping[str, Any] | None,
    valid_from: datetime | None,
    valid_until: datetime | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "metadata": dict(metadata or {}),
        "valid_from": _time(valid_from),
        "valid_until": _time(valid_until),
    }


def _condition(if_match: str | Unset | None) -> dict[str, str]:
    """Raises ValueError on None: a condition that got lost must not be taken for none."""
    if if_match is None:
        raise ValueError("if_match is None; expected an etag, which `show` tells and lists do not")
    return {} if isinstance(if_match, Unset) else {"If-Match": if_match}


def _sendable(value: object) -> object:
    if isinstance(value, datetime):
        return _time(value)
    return dict(value) if isinstance(value, Mapping) else value


def _time(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()


def _tagged(reply: Reply) -> Identity:
    return replace(as_a(Identity)(reply), etag=reply.headers.get("etag"))
