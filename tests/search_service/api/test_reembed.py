"""A gallery moves to another pack while a service answers from it: no request fails, none mixes packs."""

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
"""That must be answered by each pack."""


class Searching:
    """Searches one probe again and again, from two threads, until told to stop."""

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

    def answered(self, model: str) -> None:
        """Waits until that pack has answered each of the threads a few times."""
        wait_for(
            lambda: all(models[-SEARCHES:] == [model] * SEARCHES for models in self.models) or self.wrong != [], model
        )
        assert self.wrong == []

    def _search(self, models: list[str]) -> None:
        while not self._stop.is_set():
            response = self._serve.client.post("/v1/galleries/staff/search", files=image(self._probe))
            said = response.json()
            if response.status_code != 200 or said["faces"][0]["candidates"][0]["external_id"] != "left-3":
                self.wrong.append(said)
                return
            models.append(said["model"])


def test_it_answers_all_the_while_and_follows_without_a_restart(place: Path, photos: Path, tmp_path: Path) -> None:
    with serving(place, tmp_path / "serve.log") as serve:
        serve.ready()
        with Searching(serve, (photos / "probes" / PROBE).read_bytes()) as searching:
            searching.answered("sface")
            code, said = command(place, "gallery", "reembed", "staff", "--model", "other")
            assert (code, said["switched"], said["missing"]) == (0, True, [])
            searching.answered("other")
            code, said = command(place, "gallery", "reembed", "staff", "--rollback")
            assert (code, said["model"]) == (0, "sface")
            searching.answered("sface")
        assert ok(serve.client.get("/v1/galleries/staff"))["model"] == "sface"
    for models in searching.models:
        turns = [model for i, model in enumerate(models) if i == 0 or model != models[i - 1]]
        assert turns == ["sface", "other", "sface"]


@pytest.fixture
def local(place: Path) -> Iterator[Running]:
    """The service in this process, ready."""
    with running(ServiceContext(read_settings(SETTINGS, home=place))) as service, service.client() as client:
        wait_for(lambda: client.get("/readyz").status_code == 200, "the service is ready")
        yield service


def switching_after(monkeypatch: pytest.MonkeyPatch, service: Running, call: str) -> Callable[[], int]:
    """Binds the gallery to `other` after the first call of a method like `galleries.get`, and counts the calls."""
    noun, name = call.split(".")
    repository = getattr(service.context.store, noun)
    original, asked = getattr(repository, name), []

    def answer_and_switch(*args: Any) -> Any:
        answer = original(*args)
        asked.append(args)
        if len(asked) == 1:
            switch(service.context)
        return answer

    monkeypatch.setattr(repository, name, answer_and_switch)
    return lambda: len(asked)


def switch(home: ServiceContext) -> None:
    store = Store(home.engine)  # not the one that is listened to
    run = Reembedder(store, home.pipeline(home.packs.find_installed("other")), store.galleries.get("staff"))
    assert run.switch().switched


def test_a_search_in_flight_at_the_switch_is_asked_again(
    local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = image((photos / "probes" / PROBE).read_bytes())
    with local.client() as client:

        def score(model: str) -> float:
            said = ok(client.post("/v1/galleries/staff/search", files=files))
            best = said["faces"][0]["candidates"][0]
            assert (said["model"], best["external_id"]) == (model, "left-3")
            return float(best["score"])

        before = score("sface")
        asked = switching_after(monkeypatch, local, "galleries.get")
        in_flight = score("other")
        assert asked() == 2
        assert in_flight == pytest.approx(score("other"), abs=1e-3)
        assert in_flight != pytest.approx(before, abs=2e-3)


def test_an_enrolment_at_the_switch(local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, and in when asked for again; nothing is embedded by the pack before."""
    asked = switching_after(monkeypatch, local, "galleries.get")
    files = image((photos / "probes" / "stranger.jpg").read_bytes())
    path = "/v1/galleries/staff/identities/new/faces"
    with local.client() as client:
        error = refused(client.post(path, files=files), 409, "model_mismatch")
        assert "re-embedded meanwhile" in error["message"]
        assert "run it again" in error["message"]
        assert asked() == 1
        assert ok(client.get("/v1/galleries/staff"))["faces"] == 7
        enrolled = ok(client.post(path, files=files), 201)
        said = ok(client.post("/v1/galleries/staff/search", files=files))
    assert said["model"] == "other"
    best = said["faces"][0]["candidates"][0]
    assert (best["external_id"], best["face_id"]) == ("new", enrolled["face_id"])
    assert best["score"] == pytest.approx(1, abs=1e-3)
    store, staff = local.context.store, local.context.store.galleries.get("staff")
    [former] = store.reembeddings.packs(staff.id)
    assert (former.model, store.reembeddings.count(staff.id, former.fingerprint)) == ("sface", 7)


@pytest.mark.parametrize(("name", "path"), [("faces.delete", "faces/1"), ("identities.delete", "identities/left-3")])
def test_what_is_deleted_just_before_the_switch_is_told_and_gone(
    local: Running, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    switching_after(monkeypatch, local, name)
    with local.client() as client:
        ok(client.delete(f"/v1/galleries/staff/{path}"))
        said = ok(client.get("/v1/galleries/staff"))
    assert (said["model"], said["faces"], said["index"]["faces"]) == ("other", 6, 6)


def test_a_face_enrolled_just_before_the_switch_is_moved_with_the_others(
    local: Running, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, and the answer says so; the same request again says that it is there."""
    switching_after(monkeypatch, local, "faces.enroll")
    monkeypatch.setattr(local.context, "settings", local.context.settings.model_copy(update={"keep_crops": True}))
    files = image((photos / "probes" / "stranger.jpg").read_bytes())
    path = "/v1/galleries/staff/identities/new/faces"
    with local.client() as client:
        ok(client.post(path, files=files), 201)
        again = ok(client.post(path, files=files))
        assert again["outcome"] == "unchanged"
        said = ok(client.post("/v1/galleries/staff/search", files=files))
    assert said["model"] == "other"
    assert said["faces"][0]["candidates"][0]["face_id"] == again["face_id"]
