"""Searches that record events, and /v1/events."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from search_service.store.events import Sighting
from tests import photos as sources
from tests.indexer.gallery.together import in_threads
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, base64_of, command, image, ok, refused, running, serving
from tests.variants import SETTINGS

DOOR = {"record": "true", "device": "north-door"}


@pytest.fixture
def staff(client: httpx.Client, gallery: str) -> str:
    """The path of a gallery in which collins is."""
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(sources.astronaut())), 201)
    ok(client.put(f"{gallery}/identities/collins", json={"name": "Eileen"}))
    return gallery


def search(client: httpx.Client, gallery: str, photo: bytes | None = None, /, **fields: str) -> Any:
    """Returns the event of a search of a photo, by default of collins."""
    answer = ok(client.post(f"{gallery}/search", files=image(photo or sources.astronaut()), data=fields))
    (face,) = answer["faces"]
    return face["event"]


def listed(client: httpx.Client, gallery: str, **wanted: str) -> list[int]:
    asked = {"gallery": gallery.rpartition("/")[2], **wanted}
    return [event["id"] for event in ok(client.get("/v1/events", params=asked))["events"]]


def test_search_records_nothing_by_default(client: httpx.Client, staff: str) -> None:
    assert search(client, staff) is None
    assert search(client, staff, record="false", device="north-door", direction="in") is None
    assert listed(client, staff) == []


@pytest.mark.numeric
def test_search_records_an_event(client: httpx.Client, staff: str) -> None:
    answer = ok(
        client.post(
            f"{staff}/search",
            files=image(sources.astronaut()),
            data={**DOOR, "direction": "in"},
            headers={"X-Request-ID": "door-1"},
        )
    )
    (face,) = answer["faces"]
    event = dict(face["event"])
    assert event.pop("recorded") is True
    best = face["candidates"][0]
    assert event == {
        "id": event["id"],
        "gallery": staff.rpartition("/")[2],
        "at": event["at"],
        "identity_id": best["identity_id"],
        "external_id": "collins",
        "name": "Eileen",
        "device": "north-door",
        "direction": "in",
        "decision": "match",
        "score": best["score"],
        "threshold": face["threshold"],
        "request_id": "door-1",
        "reasons": [],
        "liveness": None,
    }
    assert ok(client.get(f"/v1/events/{event['id']}")) == event
    assert ok(client.get("/v1/events", params={"gallery": event["gallery"]})) == {"events": [event], "cursor": None}


def test_person_is_recorded_once_during_the_cooldown(client: httpx.Client, staff: str) -> None:
    first = search(client, staff, **DOOR)
    again = search(client, staff, **DOOR)
    assert again == {**first, "recorded": False}
    assert search(client, staff, **DOOR, cooldown="0")["recorded"]
    assert search(client, staff, record="1", device="gate")["recorded"]
    assert search(client, staff, **DOOR, direction="out")["recorded"]
    assert len(listed(client, staff)) == 4


def test_simultaneous_searches_record_one_event(client: httpx.Client, staff: str) -> None:
    events = in_threads([lambda: search(client, staff, **DOOR)] * 4)
    assert sorted(event["recorded"] for event in events) == [False, False, False, True]
    assert len({event["id"] for event in events}) == 1


@pytest.mark.numeric
def test_event_of_an_unknown_person_names_nobody(
    client: httpx.Client, staff: str, gallery: str, stranger: bytes
) -> None:
    """It has the score of the best candidate, but not whose score it is."""
    (face,) = ok(client.post(f"{staff}/search", files=image(stranger), data=DOOR))["faces"]
    event = face["event"]
    assert (event["decision"], event["external_id"], event["identity_id"], event["name"]) == ("no_match",) + (None,) * 3
    assert event["score"] == face["candidates"][0]["score"] < event["threshold"]
    ok(client.delete(f"{gallery}/identities/collins"))
    event = search(client, staff, record="true", device="gate")
    assert (event["decision"], event["external_id"], event["score"]) == ("no_match", None, None)


def test_every_face_has_its_event(client: httpx.Client, staff: str) -> None:
    files = image(sources.six_people())
    answer = ok(client.post(f"{staff}/search", files=files, data={**DOOR, "all_faces": "true"}))
    events = [face["event"] for face in answer["faces"]]
    assert len(events) == 6
    assert [event["recorded"] for event in events] == [True] + [False] * 5  # strangers share a cooldown
    images = [("images", ("1.jpg", sources.astronaut())), ("images", ("2.jpg", b"none"))]
    several = ok(client.post(f"{staff}/search", files=images, data=DOOR))["answers"]
    assert several[0]["faces"][0]["event"]["external_id"] == "collins"
    assert several[1]["faces"] == []
    frames = {"same_person": "true", "record": "true", "device": "gate"}
    images = [("images", ("1.jpg", sources.astronaut())), ("images", ("2.jpg", sources.astronaut()))]
    (face,) = ok(client.post(f"{staff}/search", files=images, data=frames))["faces"]
    assert face["event"]["recorded"]


def test_json_search_records_an_event(client: httpx.Client, staff: str) -> None:
    body = {"image": base64_of(sources.astronaut()), "record": True, "device": "a", "direction": "out", "cooldown": 5}
    (face,) = ok(client.post(f"{staff}/search", json=body))["faces"]
    assert (face["event"]["device"], face["event"]["direction"]) == ("a", "out")
    embedding = ok(client.post("/v1/embed", files=image(sources.astronaut())))["faces"][0]["embedding"]
    body = {"embedding": embedding, "record": True, "device": "a", "direction": None}
    (face,) = ok(client.post(f"{staff}/search", json=body))["faces"]
    assert (face["event"]["external_id"], face["event"]["direction"]) == ("collins", None)


def test_image_without_a_face_records_nothing(client: httpx.Client, staff: str) -> None:
    refused(client.post(f"{staff}/search", files=image(sources.no_faces()[0]), data=DOOR), 422, "no_face")
    assert listed(client, staff) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"record": "yes"}, "record is 'yes'; expected true or false"),
        ({"record": "true"}, "record needs a device"),
        ({"record": "true", "device": ""}, "device must be 1 to 200 printable characters"),
        ({"record": "true", "device": "a\tb"}, "device must be 1 to 200 printable characters"),
        ({"record": "true", "device": "d" * 201}, "device must be 1 to 200 printable characters"),
        ({**DOOR, "direction": "up"}, "direction is 'up'; expected in or out"),
        ({**DOOR, "cooldown": "-1"}, "cooldown is -1; expected 0 to 86400 seconds"),
        ({**DOOR, "cooldown": "86401"}, "cooldown is 86401; expected 0 to 86400 seconds"),
        ({**DOOR, "cooldown": "nan"}, "cooldown is nan; expected 0 to 86400 seconds"),
        ({**DOOR, "cooldown": "soon"}, "cooldown is 'soon'; expected a number"),
        ({**DOOR, "devise": "x"}, "body.devise: is unknown; did you mean device?"),
    ],
)
def test_wrong_recording_field_is_rejected(
    client: httpx.Client, people: str, fields: dict[str, str], message: str
) -> None:
    answer = client.post(f"{people}/search", files=image(sources.astronaut()), data=fields)
    assert message in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize("direction", [1, True, ["in"], {"in": 1}])
def test_direction_that_is_not_text_is_rejected(client: httpx.Client, people: str, direction: object) -> None:
    body = {"image": base64_of(sources.astronaut()), "record": True, "device": "a", "direction": direction}
    refused(client.post(f"{people}/search", json=body), 400, "invalid_request")
    refused(client.post(f"{people}/search", json={**body, "device": direction}), 400, "invalid_request")


def test_events_are_filtered_and_listed_in_pages(client: httpx.Client, staff: str) -> None:
    made = [
        search(client, staff, record="true", device=device, direction=direction, cooldown="0")
        for device, direction in (("a", "in"), ("b", "in"), ("a", "out"), ("b", "out"))
    ]
    ids = [event["id"] for event in made]
    assert listed(client, staff) == ids
    assert listed(client, staff, device="a") == [ids[0], ids[2]]
    assert listed(client, staff, direction="out") == ids[2:]
    assert listed(client, staff, external_id="collins", decision="match") == ids
    assert listed(client, staff, external_id="ana") == listed(client, staff, decision="review") == []
    assert listed(client, staff, since=made[1]["at"], until=made[3]["at"]) == ids[1:3]
    local = datetime.fromisoformat(made[1]["at"]).replace(tzinfo=None).isoformat()
    assert listed(client, staff, since=local) == ids[1:]
    asked = {"gallery": made[0]["gallery"], "limit": "3"}
    page = ok(client.get("/v1/events", params=asked))
    assert [event["id"] for event in page["events"]] == ids[:3]
    page = ok(client.get("/v1/events", params={**asked, "cursor": page["cursor"]}))
    assert ([event["id"] for event in page["events"]], page["cursor"]) == (ids[3:], None)
    everywhere = ok(client.get("/v1/events", params={"limit": "1000", "since": made[0]["at"]}))["events"]
    assert [event["id"] for event in everywhere] == ids


@pytest.mark.parametrize(
    ("wanted", "status", "code"),
    [
        ({"gallery": "none"}, 404, "gallery_not_found"),
        ({"since": "yesterday"}, 400, "invalid_request"),
        ({"decision": "maybe"}, 400, "invalid_request"),
        ({"direction": "up"}, 400, "invalid_request"),
        ({"cursor": "made up"}, 400, "invalid_request"),
        ({"limit": "0"}, 400, "invalid_request"),
    ],
)
def test_wrong_filter_is_rejected(client: httpx.Client, wanted: dict[str, str], status: int, code: str) -> None:
    refused(client.get("/v1/events", params=wanted), status, code)


def test_unknown_event_is_rejected(client: httpx.Client) -> None:
    refused(client.get(f"/v1/events/{2**62}"), 404, "event_not_found")
    refused(client.get(f"/v1/events/{2**64}"), 400, "invalid_request")
    refused(client.get("/v1/events/first"), 400, "invalid_request")


@pytest.mark.numeric
def test_events_of_a_deleted_person_stay_until_they_are_deleted(
    client: httpx.Client, staff: str, stranger: bytes
) -> None:
    gallery = staff.rpartition("/")[2]
    event = search(client, staff, **DOOR)
    other = search(client, staff, stranger, **DOOR)
    ok(client.delete(f"{staff}/identities/collins"))
    assert listed(client, staff) == [event["id"], other["id"]]
    refused(client.delete("/v1/events", params={"gallery": gallery}), 400, "invalid_request")
    refused(client.delete("/v1/events", params={"external_id": "collins"}), 400, "invalid_request")
    refused(client.delete("/v1/events", params={"gallery": "none", "external_id": "collins"}), 404, "gallery_not_found")
    asked = {"gallery": gallery, "external_id": "collins"}
    assert ok(client.delete("/v1/events", params=asked)) == {"forgotten": 1}
    assert listed(client, staff) == [other["id"]]
    before = (datetime.fromisoformat(other["at"]) + timedelta(seconds=1)).isoformat()
    assert ok(client.delete("/v1/events", params={"gallery": gallery, "before": before})) == {"forgotten": 1}
    assert listed(client, staff) == []


def test_command_line_prints_the_same_events(
    service: Running, client: httpx.Client, staff: str, tmp_path: Path
) -> None:
    place, gallery = service.context.settings.home, staff.rpartition("/")[2]
    came = search(client, staff, **DOOR, direction="in")
    search(client, staff, **DOOR, direction="out")
    code, reported = command(place, "events", "list", "--gallery", gallery, "--direction", "in")
    del came["recorded"]
    assert (code, reported) == (0, [came])
    day = datetime.fromisoformat(came["at"]).date()
    out = tmp_path / "attendance.csv"
    days = ["--from", day.isoformat(), "--to", (day + timedelta(days=2)).isoformat()]
    code, rows = command(place, "events", "export", "--gallery", gallery, *days, "--out", out)
    assert code == 0
    assert [(row["day"], row["external_id"], row["name"], row["remarks"]) for row in rows] == [
        (day.isoformat(), "collins", "Eileen", [])
    ]
    assert out.stat().st_mode & 0o777 == 0o600
    assert len(out.read_text().splitlines()) == 2
    code, reported = command(place, "events", "forget", "collins", "--gallery", gallery, "--yes")
    assert (code, reported) == (0, {"forgotten": 2})
    assert listed(client, staff) == []


def test_two_services_record_a_simultaneous_event_once(tmp_path: Path, models_folder: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    new_home(home, models_folder)
    with serving(home, tmp_path / "one.log") as one, serving(home, tmp_path / "other.log") as other:
        ok(one.client.post("/v1/galleries", json={"name": "staff"}), 201)
        staff = "/v1/galleries/staff"
        ok(one.client.post(f"{staff}/identities/collins/faces", files=image(sources.astronaut())), 201)
        one.ready(), other.ready()
        for n in range(3):
            fields = {"record": "true", "device": f"door-{n}"}
            events = in_threads([lambda s=s: search(s.client, staff, **fields) for s in (one, other)])  # type: ignore[misc]  # noqa: B023
            assert sorted(event["recorded"] for event in events) == [False, True]
            assert len({event["id"] for event in events}) == 1
        assert len(listed(one.client, staff)) == 3


def test_key_of_one_gallery_sees_its_events_and_webhooks(tmp_path: Path) -> None:
    home = ServiceContext(read_settings(SETTINGS, home=tmp_path))
    made = {}
    for name in ("staff", "other"):
        gallery = home.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)
        stranger = Sighting("door", None, "no_match", False, None, None, 0.4)
        made[name] = home.events.record(gallery, stranger, timedelta()).event.id
    home.webhooks.create("http://a.invalid", None, ["review"])
    elsewhere = home.webhooks.create("http://b.invalid", gallery, ["review"])[0].id
    _, shown = home.keys.create("staff's", [Scope.ADMIN], ["staff"])
    with running(home) as service, service.client() as client:
        client.headers["Authorization"] = f"Bearer {shown}"
        assert [event["id"] for event in ok(client.get("/v1/events"))["events"]] == [made["staff"]]
        assert listed(client, "staff") == [made["staff"]]
        assert ok(client.get(f"/v1/events/{made['staff']}"))["gallery"] == "staff"
        refused(client.get(f"/v1/events/{made['other']}"), 404, "event_not_found")
        refused(client.get("/v1/events", params={"gallery": "other"}), 403, "forbidden_gallery")
        before = {"before": "9999-01-01T00:00:00Z"}
        refused(client.delete("/v1/events", params={"gallery": "other", **before}), 403, "forbidden_gallery")

        assert ok(client.get("/v1/webhooks")) == {"webhooks": []}
        for asked in ("", "/deliveries"):
            refused(client.get(f"/v1/webhooks/{elsewhere}{asked}"), 404, "webhook_not_found")
        refused(client.delete(f"/v1/webhooks/{elsewhere}"), 404, "webhook_not_found")
        refused(client.post(f"/v1/webhooks/{elsewhere}/replay"), 404, "webhook_not_found")
        new = {"url": "http://c.invalid"}
        refused(client.post("/v1/webhooks", json=new), 403, "forbidden_gallery")
        refused(client.post("/v1/webhooks", json={**new, "gallery": "other"}), 403, "forbidden_gallery")
        own = ok(client.post("/v1/webhooks", json={**new, "gallery": "staff"}), 201)
        assert [hook["id"] for hook in ok(client.get("/v1/webhooks"))["webhooks"]] == [own["id"]]
        assert ok(client.delete("/v1/events", params={"gallery": "staff", **before})) == {"forgotten": 1}
        assert ok(client.get("/v1/events")) == {"events": [], "cursor": None}
