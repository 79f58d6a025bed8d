"""Workers are killed while the service writes, one of several and all of them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select
from sqlalchemy.orm import Session

from indexer.types import Outcome
from search_service.client import Client
from search_service.store.schema import AnswerRow
from tests.faults.installation import STARTED, Installation, Photo, SendRequest, calling, check, owners
from tests.waiting import DEADLINE, wait_for

SEVERAL = 16
"""Photos of one request, which takes a while."""


def test_killed_worker_is_replaced(installation: Installation, enroll: SendRequest) -> None:
    """Its callers only lose their connections, another worker replaces it, and the service stops normally."""
    with installation.serving(workers=2) as serve:
        workers = serve.workers()
        with calling(str(serve.client.base_url), enroll, count=6) as callers:
            callers.wait(8, 201)
            os.kill(min(workers), signal.SIGKILL)
            wait_for(lambda: serve.log().count(STARTED) >= 3, "another worker replaces it")
            callers.wait(8, 201)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(DEADLINE) == 0
    assert callers.statuses() == {201}
    assert len(callers.sent) - len(callers.answered) <= 6, "one request for each connection"
    check(installation, owners(callers.bodies(201).values()))


def test_request_of_a_killed_worker_is_completed_by_another(installation: Installation, photo: Photo) -> None:
    """The client retries with the same key until the lease of the dead worker has ended.

    The photos show several people, so faces are not compared with their own identity.
    """
    photos = [photo(number)[1] for number in range(SEVERAL)]
    context = installation.context()

    def answers() -> list[AnswerRow]:
        with Session(context.engine) as session:
            return list(session.scalars(select(AnswerRow)))

    with (
        installation.serving(workers=2, WHOSTHERE_LOOKALIKES="off") as serve,
        Client(str(serve.client.base_url)) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.gallery("staff").enroll_each, "ana", photos)
        wait_for(lambda: bool(answers()), "the request claims its key")
        (key,) = [(row.key, row.status) for row in answers()]
        for worker in serve.workers():
            os.kill(worker, signal.SIGKILL)
        assert not answer.done()
        results = answer.result(2 * DEADLINE)
        enrolled = [face.face_id for face in client.gallery("staff").identity("ana").faces()]
        assert [(row.key, row.status) for row in answers()] == [(key[0], 200)]
    assert key[1] is None, "the worker was killed before it answered"
    assert {result.outcome for result in results} <= {Outcome.ENROLLED, Outcome.UNCHANGED}
    assert set(enrolled) == {result.face_id for result in results}
    assert len(enrolled) == SEVERAL
    context.close()
    check(installation, dict.fromkeys(enrolled, "staff/ana"))
