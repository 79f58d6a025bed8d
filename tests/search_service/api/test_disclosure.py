"""What keys with the scope `search` get of searches and comparisons, and what those with `investigate` get."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from indexer.settings import read_settings
from indexer.types import Liveness
from search_service.api.disclosure import restricted_answer
from search_service.matching.decision import Decision
from search_service.search import Answer, FaceAnswer, FrameAnswer
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests import photos as sources
from tests.search_service.api.serving import image, ok, refused, running
from tests.variants import SETTINGS

SEARCH = "/v1/galleries/staff/search"


@dataclass(frozen=True)
class Keyed:
    """A service whose gallery `staff` holds the demo's people, and a client for each scope."""

    context: ServiceContext
    clients: Mapping[Scope, httpx.Client]

    def faces(self, scope: Scope, photo: bytes, **fields: str) -> list[dict[str, Any]]:
        faces: list[dict[str, Any]] = ok(self.clients[scope].post(SEARCH, files=image(photo), data=fields))["faces"]
        return faces

    def both(self, photo: bytes, **fields: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Returns the faces of the same search with the scopes `search` and `investigate`."""
        return self.faces(Scope.SEARCH, photo, **fields), self.faces(Scope.INVESTIGATE, photo, **fields)


@pytest.fixture(scope="module")
def keyed(two_packs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    home = shutil.copytree(two_packs, tmp_path_factory.mktemp("keyed") / "home", symlinks=True)
    context = ServiceContext(read_settings(SETTINGS, home=home))
    with running(context) as service:
        clients = {}
        for scope in (Scope.SEARCH, Scope.INVESTIGATE, Scope.ADMIN):
            clients[scope] = service.client()
            clients[scope].headers["X-API-Key"] = context.keys.create(scope, [scope])[1]
        yield Keyed(context, clients)
        for client in clients.values():
            client.close()


def narrowed(face: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the candidates that the scope `search` may see of a full answer."""
    return [
        one | {"score": pytest.approx(round(one["score"], 2), abs=0.0101)}
        for one in face["candidates"]
        if one["score"] >= face["threshold"]
    ][:10]


@pytest.mark.parametrize("fields", [{}, {"top_k": "100"}, {"same_person": "true"}, {"all_faces": "true"}], ids=str)
@pytest.mark.parametrize("photo", ["astronaut", "six_people", "stranger"])
def test_search_key_gets_decisions_and_candidates_above_the_threshold(
    keyed: Keyed, stranger: bytes, photo: str, fields: dict[str, str]
) -> None:
    data = stranger if photo == "stranger" else getattr(sources, photo)()
    restricted, full = keyed.both(data, **fields)
    for one, all_of_it in zip(restricted, full, strict=True):
        assert one["candidates"] == narrowed(all_of_it)
        assert all(candidate["score"] == round(candidate["score"], 2) for candidate in one["candidates"])
        for field in ("decision", "reasons", "threshold", "fpir"):
            assert one[field] == all_of_it[field]
    assert all(len(face["candidates"]) >= min(5, int(fields.get("top_k", 5))) for face in full)
    assert photo != "astronaut" or restricted[0]["candidates"][0]["external_id"] == "collins"
    assert photo != "stranger" or restricted[0]["candidates"] == []


def test_search_key_cannot_lower_the_threshold(keyed: Keyed, stranger: bytes) -> None:
    (usual,) = keyed.faces(Scope.SEARCH, stranger)
    for fields in ({"threshold": "-1"}, {"threshold": "0.1"}, {"fpir": "0.9"}):
        (face,) = keyed.faces(Scope.SEARCH, stranger, **fields)
        assert (face["threshold"], face["fpir"], face["candidates"]) == (usual["threshold"], 0.01, [])
    (face,) = keyed.faces(Scope.INVESTIGATE, stranger, threshold="-1")
    assert (face["threshold"], len(face["candidates"])) == (-1, 5)


def test_thresholds_of_a_search_key_are_rounded_up(keyed: Keyed) -> None:
    for wished, used in (("0.7101", 0.72), ("0.72", 0.72), ("1", 1.0)):
        (face,) = keyed.faces(Scope.SEARCH, sources.astronaut(), threshold=wished)
        assert (face["threshold"], face["fpir"]) == (used, None)
    stricter, usual = keyed.both(sources.astronaut(), fpir="0.001")
    assert stricter[0]["fpir"] == 0.001
    assert stricter[0]["threshold"] == round(stricter[0]["threshold"], 2)
    assert usual[0]["threshold"] <= stricter[0]["threshold"] < usual[0]["threshold"] + 0.0101


def test_embeddings_need_the_scope_investigate(keyed: Keyed) -> None:
    door, investigator = keyed.clients[Scope.SEARCH], keyed.clients[Scope.INVESTIGATE]
    refused(door.post("/v1/embed", files=image(sources.astronaut())), 403, "forbidden_scope")
    (face,) = ok(investigator.post("/v1/embed", files=image(sources.astronaut())))["faces"]
    body = {"embedding": face["embedding"]}
    assert "expected investigate" in refused(door.post(SEARCH, json=body), 403, "forbidden_scope")["message"]
    assert len(ok(investigator.post(SEARCH, json=body))["faces"][0]["candidates"]) == 5


def test_comparisons_of_a_search_key_have_two_decimals(keyed: Keyed) -> None:
    files = {"image_a": sources.astronaut(), "image_b": sources.six_people()}
    rounded, exact = (
        ok(keyed.clients[scope].post("/v1/compare", files=files)) for scope in (Scope.SEARCH, Scope.INVESTIGATE)
    )
    assert rounded == exact | {"score": pytest.approx(round(exact["score"], 2), abs=0.0101)}
    assert rounded["score"] == round(rounded["score"], 2)


@pytest.mark.parametrize("headers", [{}, {"Idempotency-Key": "{photo}"}], ids=str)
def test_events_that_a_search_key_records_show_it_no_exact_score(
    keyed: Keyed, stranger: bytes, headers: dict[str, str]
) -> None:
    for name, photo in (("match", sources.astronaut()), ("no_match", stranger)):
        device = f"{name} {len(headers)}"
        sent = {key: value.format(photo=name) for key, value in headers.items()}
        data = {"record": "true", "device": device}
        for _ in range(2):  # again, from the cooldown or from the stored answer
            answer = ok(keyed.clients[Scope.SEARCH].post(SEARCH, files=image(photo), data=data, headers=sent))
            event = answer["faces"][0]["event"]
            (stored,) = ok(keyed.clients[Scope.ADMIN].get("/v1/events", params={"device": device}))["events"]
            shown = None if name == "no_match" else round(np.float64(stored["score"]), 2)
            assert (event["id"], event["decision"], event["score"]) == (stored["id"], name, shown)
            assert stored["score"] is not None


def test_liveness_scores_have_two_decimals(keyed: Keyed) -> None:
    """More would guide an attacker who improves a forgery."""
    keys = {scope: key for key in keyed.context.keys.list() for scope in key.scopes}
    liveness = Liveness(0.12345, live=False, model="light", threshold=0.5)
    face = FaceAnswer(None, None, Decision.NO_MATCH, 0.4, 0.01, (), liveness=liveness)
    answer = Answer("staff", "sface", (face,), frames=(FrameAnswer(liveness=liveness), FrameAnswer()))
    narrow, full = (restricted_answer(answer, keys[scope]) for scope in (Scope.SEARCH, Scope.INVESTIGATE))
    for seen, score in ((narrow, 0.12), (full, 0.12345)):
        assert seen.frames is not None
        found = [seen.faces[0].liveness, *(frame.liveness for frame in seen.frames)]
        assert [one and one.score for one in found] == [score, score, None]
