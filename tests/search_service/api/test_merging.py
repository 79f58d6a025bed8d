"""One person under two ids: listed as duplicates, merged, and left out of the calibration."""

from __future__ import annotations

import threading
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.enrollment import duplicates
from search_service.api.routes import galleries
from tests.indexer.gallery.faces import new_face, vector
from tests.indexer.gallery.together import in_threads
from tests.search_service.api.serving import Running, command, ok, refused
from tests.waiting import DEADLINE

DIM = 128


def near(a: int, b: int, share: float) -> NDArray[np.float32]:
    """Between the embeddings of two people."""
    both = (1 - share) * vector(a, DIM) + share * vector(b, DIM)
    return np.asarray(both / np.linalg.norm(both), dtype=np.float32)


@pytest.fixture
def doubled(client: httpx.Client, service: Running, gallery: str) -> str:
    """The path of a gallery with Ana under two ids, as two processes that enrol at one moment may leave it, somebody
    else, and a photo of Ana that is enrolled as theirs."""
    store = service.context.store
    store.faces.enroll(
        store.galleries.get(gallery.rpartition("/")[2]),
        [
            new_face("ana", 1, embedding=vector(1, DIM), metadata={"door": "A"}),
            new_face("ana/2", 2, embedding=near(1, 5, 0.1), name="Ana", metadata={"door": "B", "desk": 7}),
            new_face("ben", 3, embedding=vector(3, DIM), name="Ben"),
            new_face("ben", 4, embedding=near(1, 6, 0.3)),
        ],
    )
    return gallery


def names(pair: dict[str, object]) -> list[str]:
    sides = pair["identities"]
    assert isinstance(sides, list)
    return [side["external_id"] for side in sides]


def test_duplicates_equal_those_of_the_command_line(client: httpx.Client, service: Running, doubled: str) -> None:
    reported = ok(client.get(f"{doubled}/duplicates"))
    assert [names(pair) for pair in reported["pairs"]] == [["ana", "ana/2"], ["ana", "ben"], ["ana/2", "ben"]]
    assert [pair["score"] for pair in reported["pairs"]] == sorted(
        (p["score"] for p in reported["pairs"]), reverse=True
    )
    (wrong,) = reported["wrong_photos"]
    assert (wrong["face"]["external_id"], wrong["face"]["name"]) == ("ben", "Ben")
    assert {one["face"]["external_id"] for one in reported["outliers"]} == {"ben"}
    assert (reported["faces"], reported["exact"], reported["complete"]) == (4, True, True)
    code, printed = command(service.context.settings.home, "gallery", "duplicates", doubled.rpartition("/")[2])
    assert (code, printed) == (0, reported)


def test_limit_and_threshold_keep_the_best_duplicates(client: httpx.Client, doubled: str) -> None:
    everything = ok(client.get(f"{doubled}/duplicates"))
    first = ok(client.get(f"{doubled}/duplicates", params={"limit": 1}))
    cut = {name: everything[name][:1] for name in ("pairs", "outliers")}
    assert first == {**everything, **cut, "complete": False}
    bound = everything["pairs"][0]["score"] - 0.001
    some = ok(client.get(f"{doubled}/duplicates", params={"threshold": bound}))
    assert some["pairs"] == everything["pairs"][:1]
    assert (some["threshold"], some["complete"]) == (bound, True)


def test_empty_gallery_has_no_duplicates(client: httpx.Client, gallery: str) -> None:
    reported = ok(client.get(f"{gallery}/duplicates"))
    assert (reported["pairs"], reported["wrong_photos"], reported["faces"], reported["complete"]) == ([], [], 0, True)


@pytest.mark.parametrize("query", ["threshold=2", "threshold=x", "limit=0", "limit=1001"])
def test_wrong_duplicates_parameter_is_rejected(client: httpx.Client, gallery: str, query: str) -> None:
    refused(client.get(f"{gallery}/duplicates?{query}"), 400, "invalid_request")
    refused(client.get(f"{gallery}x/duplicates"), 404, "gallery_not_found")


def test_duplicates_of_too_large_a_gallery_are_rejected(
    client: httpx.Client, doubled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(galleries, "ALL_PAIRS", 3)
    message = refused(client.get(f"{doubled}/duplicates"), 409, "gallery_too_large")["message"]
    assert "whosthere gallery duplicates" in message


def test_one_gallery_is_compared_at_a_time(service: Running, doubled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> duplicates.Duplicates:
        begun.set()
        assert go_on.wait(DEADLINE)
        return duplicates.find_duplicates(*arguments, **options)

    monkeypatch.setattr(galleries, "find_duplicates", slow)

    def first() -> httpx.Response:
        with service.client() as client:
            return client.get(f"{doubled}/duplicates")

    def second() -> httpx.Response:
        assert begun.wait(DEADLINE)
        try:
            with service.client() as client:
                return client.get(f"{doubled}/duplicates")
        finally:
            go_on.set()

    taken, sent_away = in_threads([first, second])
    assert len(ok(taken)["pairs"]) == 3
    refused(sent_away, 429, "overloaded")
    assert sent_away.headers["retry-after"]


def test_merge_moves_faces_and_deletes_the_other_identity(client: httpx.Client, doubled: str) -> None:
    reported = ok(client.post(f"{doubled}/identities/ana/merge", json={"other": "ana/2"}))
    assert (reported["merged"], reported["faces"]) == ("ana/2", 1)
    kept = reported["identity"]
    assert (kept["name"], kept["metadata"], kept["faces"]) == ("Ana", {"door": "A", "desk": 7}, 2)
    assert kept == ok(client.get(f"{doubled}/identities/ana"))
    refused(client.get(f"{doubled}/identities/{quote('ana/2', safe='')}"), 404, "identity_not_found")
    probe = {"embedding": near(1, 5, 0.1).tolist(), "top_k": 2}
    (face,) = ok(client.post(f"{doubled}/search", json=probe))["faces"]
    assert [candidate["external_id"] for candidate in face["candidates"]] == ["ana", "ben"]
    assert ok(client.get(doubled))["identities"] == 2


def test_merge_keeps_the_properties_of_the_named_identity(client: httpx.Client, doubled: str) -> None:
    reported = ok(client.post(f"{doubled}/identities/{quote('ana/2', safe='')}/merge", json={"other": "ana"}))
    assert (reported["identity"]["external_id"], reported["merged"]) == ("ana/2", "ana")
    assert reported["identity"]["metadata"] == {"door": "B", "desk": 7}


@pytest.mark.parametrize(
    ("into", "body", "status", "code"),
    [
        ("ana", {"other": "ana"}, 400, "invalid_request"),
        ("ana", {"other": "nobody"}, 404, "identity_not_found"),
        ("nobody", {"other": "ana"}, 404, "identity_not_found"),
        ("ana", {}, 400, "invalid_request"),
        ("ana", {"other": 5}, 400, "invalid_request"),
        ("ana", {"other": "ben", "also": "x"}, 400, "invalid_request"),
    ],
)
def test_impossible_merge_changes_nothing(
    client: httpx.Client, doubled: str, into: str, body: dict[str, object], status: int, code: str
) -> None:
    before = ok(client.get(f"{doubled}/identities"))
    refused(client.post(f"{doubled}/identities/{into}/merge", json=body), status, code)
    assert ok(client.get(f"{doubled}/identities")) == before


def test_calibration_equals_that_of_the_command_line(client: httpx.Client, service: Running, people: str) -> None:
    reported = ok(client.post(f"{people}/calibration"))
    assert [row["fpir"] for row in reported["thresholds"]] == sorted(
        (row["fpir"] for row in reported["thresholds"]), reverse=True
    )
    code, printed = command(service.context.settings.home, "gallery", "calibrate", "people")
    assert (code, printed) == (0, reported)
    refused(client.post(f"{people}x/calibration"), 404, "gallery_not_found")


def test_empty_gallery_has_the_thresholds_of_its_pack(client: httpx.Client, gallery: str) -> None:
    reported = ok(client.post(f"{gallery}/calibration"))
    assert (reported["people"], reported["supported_fpir"], reported["duplicates"]) == (0, None, [])
    assert {row["basis"] for row in reported["thresholds"]} == {"pack"}
