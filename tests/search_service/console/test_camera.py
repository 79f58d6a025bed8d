"""The pages with a camera, whose picture is a video of the demo's people."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Request, expect

from search_service.store.api_keys import Scope
from search_service.store.event_pages import EventFilter
from tests.search_service.console.conftest import Site, Tab
from tests.search_service.console.video import write_video
from tests.waiting import wait_for


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    return write_video(tmp_path_factory.mktemp("camera") / "left-2.y4m", [photos / "photos" / "left-2" / "1.jpg"])


def test_a_person_before_the_camera_is_recognized_and_recorded(camera: Path, site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH], "live")
    under_way, most = 0, 0

    def sent(request: Request) -> None:
        nonlocal under_way, most
        under_way += request.url.endswith("/search")
        most = max(most, under_way)

    def answered(request: Request) -> None:
        nonlocal under_way
        under_way -= request.url.endswith("/search")

    page.on("request", sent)
    page.on("requestfinished", answered)
    page.get_by_test_id("camera-start").click()
    expect(page.get_by_test_id("camera-view")).to_be_visible()
    expect(page.get_by_test_id("decision")).to_have_attribute("data-decision", "match")
    expect(page.locator(".boxes .label")).to_have_text("left-2")
    expect(page.get_by_test_id("answer-time")).to_contain_text("ms")
    page.get_by_label("Record events").check()
    page.get_by_label("Name of this place").fill("front desk")
    expect(
        page.get_by_text("Recorded.", exact=True).or_(page.get_by_text("Recorded a short while ago."))
    ).to_be_visible()
    at_desk = EventFilter(device="front desk")
    wait_for(lambda: site.context.events.find(at_desk), "a frame is searched after the place was named")
    (event, *_) = site.context.events.find(at_desk)
    assert (event.external_id, event.decision) == ("left-2", "match")
    assert most == 1
    page.get_by_test_id("camera-start").click()
    expect(page.get_by_test_id("camera-view")).not_to_be_visible()


def test_a_person_is_enrolled_by_camera_with_guidance(camera: Path, site: Site, tab: Tab) -> None:
    gallery = site.new_gallery()
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("camera-start").click()
    expect(page.get_by_test_id("guidance")).to_have_text("Good: take the photo")
    page.get_by_test_id("camera-take").click()
    page.get_by_test_id("enroll-id").fill("e-7")
    page.get_by_test_id("enroll-name").fill("Ana")
    page.get_by_test_id("enroll-submit").click()
    expect(page.get_by_test_id("enroll-result").locator("[data-outcome]")).to_have_attribute("data-outcome", "enrolled")
    expect(page.get_by_test_id("person")).to_have_attribute("data-external-id", "e-7")
    assert site.api.get(f"/v1/galleries/{gallery}/identities/e-7").json()["name"] == "Ana"
