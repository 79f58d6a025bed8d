"""A gallery is re-embedded while a service answers from it: no request fails, none mixes packs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.enrollment.reembed import Reembedder
from indexer.gallery.store import Store
from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from tests.search_service.api.serving import Running, Serve, command, image, ok, refused, running, serving
from tests.variants import SETTINGS
from tests.waiting import wait_for

PROBE = "left-3-turned.jpg"
SEARCHES = 3
"""Consecutive searches that each pack must answer."""


class Searching:
    """Searches one probe repeatedly from two threads."""

    def __init__(self, serve: Serve, probe: bytes) -> None:
        self.models: list[list[str]] = [[], []]
        """Of the packs that answered, in the order of each thread's requests."""
        self.wrong: list[Any] = []
        self._serve = serve
        self._probe = probe
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._search, args=(models,)) for models in self.models]

    def __enter__(self) -> Searching:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_until_answered_by(self, model: str) -> None:
        """Waits until that pack has answered each of the threads a few times."""
        wait_for(
            lambda: all(models[-SEARCHES:] == [model] * SEARCHES for models in self.models) or self.wrong != [], model
        )
        assert self.wrong == []

    def _search(self, models: list[str]) -> None:
        while not self._stop.is_set():
            response = self._serve.client.post("/v1/galleries/staff/search", files=image(self._probe))
            body = response.json()
            if response.status_code != 200 or body["faces"][0]["candidates"][0]["external_id"] != "left-3":
                self.wrong.append(body)
                return
            models.append(body["model"])


def test_service_answers_during_reembedding_and_follows_without_restart(
    place: Path, photos: Path, tmp_path: Path
) -> None:
    with serving(place, tmp_path / "serve.log") as serve:
        serve.ready()
        with Searching(serve, (photos / "probes" / PROBE).read_bytes()) as searching:
            searching.wait_until_answered_by("sface")
            code, body = command(place, "gallery", "reembed", "staff", "--model", "other")
            assert (code, body["switched"], body["missing"]) == (0, True, [])
            searching.wait_until_answered_by("other")
            code, body = command(place, "gallery", "reembed", "staff", "--rollback")
            assert (code, body["model"]) == (0, "sface")
            searching.wait_until_answered_by("sface")
        assert ok(serve.client.get("/v1/galleries/staff"))["model"] == "sface"
    for models in searching.models:
        turns = [model for i, model in enumerate(models) if i == 0 or model != models[i - 1]]
        assert turns == ["sface", "other", "sface"]


@pytest.fixture
def local(place: Path) -> Iterator[Running]:
    """The service in this process, ready."""
    with running(ServiceContext(read_settings(SETTINGS, home=place))) as service:
        yield service.ready()


def switching_after(monkeypatch: pytest.MonkeyPatch, service: Running, call: str) -> Callable[[], int]:
    """Binds the gallery to `other` after the first call of a method like `galleries.get`, and counts the calls."""
    noun, name = call.split(".")
    repository = getattr(service.context.store, noun)
    original, calls = getattr(repository, name), []

    def answer_and_switch(*args: Any) -> Any:
        answer = original(*args)
        calls.append(args)
        if len(calls) == 1:
            switch(service.context)
        return answer

    monkeypatch.setattr(repository, name, answer_and_switch)
    return lambda: len(calls)


def switch(home: ServiceContext) -> None:
    store = Store(home.engine)  # another one than the patched one
    run = Reembedder(store, home.pipeline(home.packs.find_installed("other")), store.galleries.get("staff"))
    assert run.switch().switched


def test_search_during_the_switch_is_repeated_with_the_new_pack(
    local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image((photos / "probes" / PROBE).read_bytes())
    with local.client() as client:

        def score(model: str) -> float:
            body = ok(client.post("/v1/galleries/staff/search", files=files))
            best = body["faces"][0]["candidates"][0]
            assert (body["model"], best["external_id"]) == (model, "left-3")
            return float(best["score"])

        before = score("sface")
        calls = switching_after(monkeypatch, local, "galleries.get")
        in_flight = score("other")
        assert calls() == 2
        assert in_flight == pytest.approx(score("other"), abs=1e-3)
        assert in_flight != pytest.approx(before, abs=2e-3)


def test_enrollment_during_the_switch_is_rejected_and_can_be_repeated(
    local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is embedded with the former pack."""
    calls = switching_after(monkeypatch, local, "galleries.get")
    files = image((photos / "probes" / "stranger.jpg").read_bytes())
    path = "/v1/galleries/staff/identities/new/faces"
    with local.client() as client:
        error = refused(client.post(path, files=files), 409, "model_mismatch")
        assert "re-embedded meanwhile" in error["message"]
        assert "run it again" in error["message"]
        assert calls() == 1
        assert ok(client.get("/v1/galleries/staff"))["faces"] == 7
        enrolled = ok(client.post(path, files=files), 201)
        body = ok(client.post("/v1/galleries/staff/search", files=files))
    assert body["model"] == "other"
    best = body["faces"][0]["candidates"][0]
    assert (best["external_id"], best["face_id"]) == ("new", enrolled["face_id"])
    assert best["score"] == pytest.approx(1, abs=1e-3)
    store, staff = local.context.store, local.context.store.galleries.get("staff")
    [former] = store.reembeddings.packs(staff.id)
    assert (former.model, store.reembeddings.count(staff.id, former.fingerprint)) == ("sface", 7)


@pytest.mark.parametrize(("name", "path"), [("faces.delete", "faces/1"), ("identities.delete", "identities/left-3")])
def test_deletion_just_before_the_switch_succeeds(
    local: Running, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    switching_after(monkeypatch, local, name)
    with local.client() as client:
        ok(client.delete(f"/v1/galleries/staff/{path}"))
        body = ok(client.get("/v1/galleries/staff"))
    assert (body["model"], body["faces"], body["index"]["faces"]) == ("other", 6, 6)


def test_face_enrolled_just_before_the_switch_is_moved(
    local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeated request reports it as unchanged."""
    switching_after(monkeypatch, local, "faces.enroll")
    monkeypatch.setattr(local.context, "settings", local.context.settings.model_copy(update={"keep_crops": True}))
    files = image((photos / "probes" / "stranger.jpg").read_bytes())
    path = "/v1/galleries/staff/identities/new/faces"
    with local.client() as client:
        ok(client.post(path, files=files), 201)
        again = ok(client.post(path, files=files))
        assert again["outcome"] == "unchanged"
        body = ok(client.post("/v1/galleries/staff/search", files=files))
    assert body["model"] == "other"
    assert body["faces"][0]["candidates"][0]["face_id"] == again["face_id"]
