"""Workers are killed while the service writes, one of several and all of them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.orm import Session

from indexer.settings import read_settings
from indexer.types import Outcome
from search_service.client import Client
from search_service.service_context import ServiceContext
from search_service.store.schema import AnswerRow
from tests.faults.place import STARTED, Ask, Photo, Place, calling, check
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

SEVERAL = 16
"""Photos of one request: it is being answered for a while."""


def test_killed_worker_is_replaced(place: Place, enrol: Ask) -> None:
    """Its callers lose their connections and no more; another one takes its place, and the service ends as ever."""
    with place.serving(workers=2) as serve:
        workers = serve.workers()
        with calling(str(serve.client.base_url), enrol, count=6) as callers:
            callers.wait(8, 201)
            os.kill(min(workers), signal.SIGKILL)
            wait_for(lambda: serve.log().count(STARTED) >= 3, "another worker took its place")
            callers.wait(8, 201)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(DEADLINE) == 0
    assert callers.statuses() == {201}
    assert len(callers.asked) - len(callers.answered) <= 6, "one a connection"
    check(place, {told["face_id"]: f"staff/{told['external_id']}" for told in callers.bodies(201).values()})


def test_request_of_a_killed_worker_is_completed_by_another(place: Place, photo: Photo) -> None:
    """The client tries again, with the same key, until the dead worker's hold on it has run out."""
    photos = [photo(number)[1] for number in range(SEVERAL)]
    home = ServiceContext(read_settings(SETTINGS, home=place.home, database_url=place.database_url))

    def answers() -> list[AnswerRow]:
        with Session(home.engine) as session:
            return list(session.scalars(select(AnswerRow)))

    with (
        place.serving(workers=2) as serve,
        Client(str(serve.client.base_url)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(client.gallery("staff").enroll_each, "ana", photos)
        wait_for(lambda: bool(answers()), "the request has its key")
        (key,) = [(row.key, row.status) for row in answers()]
        for worker in serve.workers():
            os.kill(worker, signal.SIGKILL)
        assert not asked.done()
        results = asked.result(2 * DEADLINE)
        told = [face.face_id for face in client.gallery("staff").identity("ana").faces()]
        assert [(row.key, row.status) for row in answers()] == [(key[0], 200)]
    assert key[1] is None, "it was killed in the middle"
    assert {result.outcome for result in results} <= {Outcome.ENROLLED, Outcome.UNCHANGED}
    assert set(told) == {result.face_id for result in results}
    assert len(told) == SEVERAL
    home.close()
    check(place, {int(face_id): "staff/ana" for face_id in told})
