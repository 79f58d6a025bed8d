"""One of several workers is killed while the service writes."""

from __future__ import annotations

import os
import re
import signal

from tests.faults.place import STARTED, Ask, Place, calling, check
from tests.search_service.api.serving import PATIENCE, until


def test_one_worker_is_killed(place: Place, enrol: Ask) -> None:
    """Its callers lose their connections and no more; another one takes its place, and the service ends as ever."""
    with place.serving(workers=2) as serve:
        workers = {int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", serve.log())}
        with calling(str(serve.client.base_url), enrol, count=6) as callers:
            callers.wait(8, 201)
            os.kill(min(workers), signal.SIGKILL)
            until(lambda: serve.log().count(STARTED) == 3, "another worker took its place")
            callers.wait(8, 201)
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(PATIENCE) == 0
    assert callers.statuses() == {201}
    assert len(callers.asked) - len(callers.answered) <= 6, "one a connection"
    check(place, {told["face_id"]: f"staff/{told['external_id']}" for told in callers.bodies(201).values()})
