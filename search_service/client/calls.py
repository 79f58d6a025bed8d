"""The calls of the HTTP API, grouped by the object they belong to. Nothing here performs I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import Enum
from http import HTTPStatus
from typing import Any, Final, TypeVar, Unpack

from search_service.client.answers import (
    Answer,
    AttendanceRow,
    Calibration,
    Comparison,
    Deleted,
    Detected,
    Duplicates,
    Embedded,
    Enrolled,
    Event,
    Gallery,
    GalleryDetail,
    Identity,
    Merged,
    StoredFace,
)
from search_service.client.enums import Decision, Direction, LivenessMode, Pick
from search_service.client.options import EnrollOptions, Query
from search_service.client.request_bodies import Body, Photo, file_body, form, iso_time, json_body, photo, without_none
from search_service.client.retry import Api, Pages, Reply, Request, Steps, address, parser_of
from search_service.client.service_answers import Job, Models, Ready

T = TypeVar("T")

NOT_MODIFIED = HTTPStatus.NOT_MODIFIED


class Unset(Enum):
    """The value of fields that are not changed."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True)
class ServiceCalls:
    api: Api

    def ready(self) -> Steps[Ready]:
        """Returns whether models and indexes are loaded."""
        return self.api.send(
            Request("GET", "/readyz", accepted_statuses=(HTTPStatus.SERVICE_UNAVAILABLE,)), parser_of(Ready)
        )

    def attendance(
        self, gallery: str, first: date, until: date, *, timezone: str = "UTC"
    ) -> Steps[tuple[AttendanceRow, ...]]:
        """Returns arrival, departure and hours by day and person, from the first day on and before `until`."""
        query = {"gallery": gallery, "first": first.isoformat(), "until": until.isoformat(), "timezone": timezone}
        request = Request("GET", address("events", "attendance"), query)
        return self.api.send(request, parser_of(tuple[AttendanceRow, ...], "rows"))

    def key_needed(self) -> Steps[bool]:
        """Returns whether the service answers this client only with a key."""
        return self.api.send(Request("GET", address("access")), parser_of(bool, "key_needed"))

    def models(self) -> Steps[Models]:
        """Returns the model packs and the default of new galleries."""
        return self.api.get(address("models"), Models)

    def detect(self, image: Photo) -> Steps[Detected]:
        """Returns all faces of an image, largest first."""
        return self.api.post(address("detect"), Detected, form([photo("image", image)], {}), idempotent=False)

    def embed(
        self, image: Photo, *, model: str | None = None, pick: Pick | str | None = None, all_faces: bool | None = None
    ) -> Steps[Embedded]:
        """Returns the embedding of the largest face of an image, or of those chosen by `pick` or `all_faces`."""
        body = form([photo("image", image)], {"model": model, "pick": pick, "all_faces": all_faces})
        return self.api.post(address("embed"), Embedded, body, idempotent=False)

    def compare(
        self,
        image_a: Photo,
        image_b: Photo,
        *,
        model: str | None = None,
        liveness: LivenessMode | str | None = None,
    ) -> Steps[Comparison]:
        """Returns whether the largest faces of two images are one person, at a false match rate of 1 in 1,000."""
        body = form([photo("image_a", image_a), photo("image_b", image_b)], {"model": model, "liveness": liveness})
        return self.api.post(address("compare"), Comparison, body, idempotent=False)

    def galleries(self) -> Pages[Gallery]:
        """Yields the galleries that the key may use, in the order of their creation."""
        return self.api.pages(address("galleries"), "galleries", Gallery)

    def jobs(self, *, gallery: str | None = None) -> Pages[Job]:
        """Yields bulk enrollments, latest first."""
        return self.api.pages(address("jobs"), "jobs", Job, without_none({"gallery": gallery}))

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
        """Yields the events that match all filters, in the order of recording, from `since` up to but not including
        `until`; times without a zone are UTC."""
        wanted = {
            "gallery": gallery,
            "since": iso_time(since),
            "until": iso_time(until),
            "external_id": external_id,
            "device": device,
            "decision": decision,
            "direction": direction,
        }
        return self.api.pages(address("events"), "events", Event, without_none(wanted))

    def event(self, event_id: int) -> Steps[Event]:
        return self.api.get(address("events", str(event_id)), Event)

    def forget_events(
        self, gallery: str, *, external_id: str | None = None, before: datetime | None = None
    ) -> Steps[int]:
        """Deletes the events of a person, or everybody's before a time, permanently. Returns their number."""
        params = without_none({"gallery": gallery, "external_id": external_id, "before": iso_time(before)})
        return self.api.send(Request("DELETE", address("events"), params), parser_of(int, "forgotten"))


@dataclass(frozen=True)
class GalleryCalls:
    api: Api
    name: str

    def create(self, *, model: str | None = None) -> Steps[Gallery]:
        """Creates the gallery, bound to a model pack, by default the service's own."""
        return self.api.post(address("galleries"), Gallery, json_body({"name": self.name, "model": model}))

    def show(self) -> Steps[GalleryDetail]:
        """Returns the gallery's counts and the state of its index."""
        return self.api.get(self._at(), GalleryDetail)

    def delete(self) -> Steps[Deleted]:
        """Deletes the gallery with all its identities."""
        return self.api.delete(self._at(), Deleted)

    def search(self, image: Photo, **query: Unpack[Query]) -> Steps[Answer]:
        """Searches the face of an image. Raises Rejected if it has no face to search."""
        return self._search(form([photo("image", image)], query), query, parser_of(Answer))

    def search_each(self, images: Iterable[Photo], **query: Unpack[Query]) -> Steps[tuple[Answer, ...]]:
        """Searches up to 16 images: one answer for each, in order, with an `error` where there is no face."""
        body = form(_images(images), query)
        return self._search(body, query, parser_of(tuple[Answer, ...], "answers"))

    def search_frames(self, images: Iterable[Photo], **query: Unpack[Query]) -> Steps[Answer]:
        """Searches up to 16 images of one person, such as video frames, weighted by quality: one answer.

        Frames that disagree are not a match.
        """
        return self._search(form(_images(images), {**query, "same_person": True}), query, parser_of(Answer))

    def search_embedding(self, embedding: Iterable[float], **query: Unpack[Query]) -> Steps[Answer]:
        """Searches an embedding computed with the gallery's model pack."""
        body = json_body({"embedding": [float(number) for number in embedding], **without_none(query)})
        return self._search(body, query, parser_of(Answer))

    def identities(self, query: str | None = None, *, metadata: Mapping[str, str] | None = None) -> Pages[Identity]:
        """Yields the identities, in the order of their creation.

        Args:
            query: Only those in whose external id or name each of these words occurs, regardless of case and accents.
            metadata: Only those with these values, as text, of top-level keys of their metadata.
        """
        pairs = None if metadata is None else [f"{key}={value}" for key, value in metadata.items()]
        wanted = without_none({"q": query, "metadata": pairs})
        return self.api.pages(self._at("identities"), "identities", Identity, wanted)

    def create_identity(
        self,
        external_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        valid_from: datetime | None = None,
        valid_until: datetime | None = None,
    ) -> Steps[Identity]:
        """Creates an identity without faces. Raises Conflict if it exists. Enrolling creates identities as well."""
        body = json_body({"external_id": external_id} | _person(name, metadata, valid_from, valid_until))
        return self.api.send(Request("POST", self._at("identities"), body=body, idempotent=True), _tagged)

    def enroll(self, external_id: str, image: Photo, **options: Unpack[EnrollOptions]) -> Steps[Enrolled]:
        """Enrolls a photo, creating the identity if needed. Raises Rejected, whose `code` is the reason."""
        body = form([photo("image", image)], options)
        return self.api.post(self._at("identities", external_id, "faces"), Enrolled, body)

    def enroll_each(
        self, external_id: str, images: Iterable[Photo], **options: Unpack[EnrollOptions]
    ) -> Steps[tuple[Enrolled, ...]]:
        """Enrolls up to 16 photos of one person: one result for each, in order."""
        path = self._at("identities", external_id, "faces")
        body = form(_images(images), options)
        request = Request("POST", path, body=body, idempotent=True)
        return self.api.send(request, parser_of(tuple[Enrolled, ...], "results"))

    def enroll_archive(self, path: str | os.PathLike[str], **options: Unpack[EnrollOptions]) -> Steps[Job]:
        """Enrolls a ZIP file of photos of many people, as `whosthere enroll` does. It is streamed from the disk."""
        return self._enrollment(file_body("application/zip", path), without_none(options))

    def enroll_many(
        self,
        images: Mapping[str, Photo],
        *,
        manifest: Photo | None = None,
        **options: Unpack[EnrollOptions],
    ) -> Steps[Job]:
        """Enrolls photos of many people by name: `ana/1.jpg` and `ana_1.jpg` are photos of `ana`.

        With a manifest (CSV), its row for a name gives the identity.
        """
        files = [photo("images", image, name) for name, image in images.items()]
        files += [photo("manifest", manifest, "manifest.csv")] if manifest is not None else []
        return self._enrollment(form(files, options), {})

    def face(self, face_id: int) -> Steps[StoredFace]:
        """Returns an enrolled face with its identity."""
        return self.api.get(self._at("faces", str(face_id)), StoredFace)

    def face_crop(self, face_id: int) -> Steps[bytes]:
        """Returns the kept crop of an enrolled face, a WebP image. Raises NotFound where crops were not kept."""
        return self.api.send(Request("GET", self._at("faces", str(face_id), "crop")), lambda reply: reply.body)

    def delete_face(self, face_id: int) -> Steps[Deleted]:
        """Deletes a face; its identity stays."""
        return self.api.delete(self._at("faces", str(face_id)), Deleted)

    def duplicates(self, *, threshold: float | None = None, limit: int | None = None) -> Steps[Duplicates]:
        """Returns identities that look alike, and photos that look more like another identity than their own."""
        return self.api.get(self._at("duplicates"), Duplicates, without_none({"threshold": threshold, "limit": limit}))

    def calibrate(self) -> Steps[Calibration]:
        """Computes the thresholds from the gallery's own identities, with their uncertainty."""
        return self.api.post(self._at("calibration"), Calibration)

    def _search(self, body: Body, query: Query, parse: Callable[[Reply], T]) -> Steps[T]:
        """Searches; the request changes something only if it records events."""
        request = Request("POST", self._at("search"), body=body, idempotent=bool(query.get("record")))
        return self.api.send(request, parse)

    def _enrollment(self, body: Body, params: Mapping[str, Any]) -> Steps[Job]:
        return self.api.send(Request("POST", self._at("enrollments"), params, body, idempotent=True), parser_of(Job))

    def _at(self, *parts: str) -> str:
        return address("galleries", self.name, *parts)


@dataclass(frozen=True)
class IdentityCalls:
    api: Api
    gallery: str
    external_id: str

    def show(self) -> Steps[Identity]:
        """Returns the identity with its `etag`."""
        return self.api.send(Request("GET", self._at()), _tagged)

    def changed(self, etag: str) -> Steps[Identity | None]:
        """Returns the identity if it changed since `etag`, else None."""
        request = Request("GET", self._at(), headers={"If-None-Match": etag}, accepted_statuses=(NOT_MODIFIED,))
        return self.api.send(request, lambda reply: None if reply.status == NOT_MODIFIED else _tagged(reply))

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
        """Creates the identity or replaces all its fields; its faces stay. `if_missing` only creates.

        Raises PreconditionFailed if `if_match` or `if_missing` does not hold.
        """
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
        """Changes the given fields; None removes a field, or a key of the metadata.

        Raises PreconditionFailed if the identity is not in the state of the etag `if_match`.
        """
        given = {"name": name, "metadata": metadata, "valid_from": valid_from, "valid_until": valid_until}
        change = {field: _sendable(value) for field, value in given.items() if value is not UNSET}
        return self._change("PATCH", change, if_match)

    def delete(self, *, if_match: str | Unset | None = UNSET) -> Steps[Deleted]:
        """Deletes the identity with all its faces. Searches never return it again.

        Raises NotFound if it does not exist, also if a first attempt deleted it and its answer was lost.
        """
        return self.api.send(self._conditional("DELETE", _condition(if_match)), parser_of(Deleted))

    def merge(self, other: str) -> Steps[Merged]:
        """Merges the identity `other` into this one: its faces move, and it is deleted."""
        return self.api.post(self._at("merge"), Merged, json_body({"other": other}))

    def faces(self) -> Pages[StoredFace]:
        """Yields the enrolled faces, in the order of enrollment."""
        return self.api.pages(self._at("faces"), "faces", StoredFace)

    def _change(
        self, method: str, change: Mapping[str, Any], if_match: str | Unset | None, if_missing: bool = False
    ) -> Steps[Identity]:
        headers = _condition(if_match) | ({"If-None-Match": "*"} if if_missing else {})
        return self.api.send(self._conditional(method, headers, json_body(change)), _tagged)

    def _conditional(self, method: str, headers: Mapping[str, str], body: Body | None = None) -> Request:
        return Request(method, self._at(), body=body, headers=headers, unrepeatable=bool(headers))

    def _at(self, *parts: str) -> str:
        return address("galleries", self.gallery, "identities", self.external_id, *parts)


def _images(images: Iterable[Photo]) -> list[Any]:
    """Returns the images as files of a form. Raises TypeError for a single image, an iterable of bytes."""
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
        "valid_from": iso_time(valid_from),
        "valid_until": iso_time(valid_until),
    }


def _condition(if_match: str | Unset | None) -> dict[str, str]:
    """Returns the If-Match header. Raises ValueError for None: a lost etag must not become no condition."""
    if if_match is None:
        raise ValueError("if_match is None; expected an etag, which `show` returns and lists do not")
    return {} if isinstance(if_match, Unset) else {"If-Match": if_match}


def _sendable(value: object) -> object:
    if isinstance(value, datetime):
        return iso_time(value)
    return dict(value) if isinstance(value, Mapping) else value


def _tagged(reply: Reply) -> Identity:
    return replace(parser_of(Identity)(reply), etag=reply.headers.get("etag"))
