"""The pages #events and #gallery."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from search_service.store.event_pages import Direction
from search_service.store.events import Sighting
from tests.search_service.api.bulk import packed
from tests.search_service.console.conftest import Site, Tab
from tests.waiting import wait_for


def test_events_of_another_process_appear_and_survive_a_lost_connection(site: Site, tab: Tab, tmp_path: Path) -> None:
    gallery = site.context.store.galleries.get(site.new_gallery())
    with closing(ServiceContext(site.context.settings)) as other:

        def record(device: str) -> None:
            other.events.record(
                gallery, Sighting(device, Direction.IN, "no_match", False, None, 0.1, 0.4), timedelta(0)
            )

        record("<b>first</b>")
        page = tab.sign_in(site.keys[Scope.ADMIN], "events")
        page.get_by_test_id("gallery").select_option(gallery.name)
        events = page.get_by_test_id("event")
        expect(events).to_have_count(1)
        expect(events.first).to_contain_text("<b>first</b>")
        expect(page.get_by_test_id("stream-state")).to_have_text("Live")
        record("second")
        expect(events).to_have_count(2)
        page.context.set_offline(True)
        expect(page.get_by_test_id("stream-state")).to_contain_text("lost")
        for device in ("third", "fourth", "fifth"):
            record(device)
        page.context.set_offline(False)
        expect(events).to_have_count(5)
        expect(events.first).to_contain_text("fifth")
        page.get_by_label("Place").fill("third")
        expect(events).to_have_count(1)
        page.get_by_label("Place").fill("nowhere")
        expect(page.get_by_text("No events")).to_be_visible()
    tab.errors[:] = [error for error in tab.errors if "ERR_INTERNET_DISCONNECTED" not in error]


@pytest.mark.numeric
def test_attendance_is_shown_and_saved(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    photo = photos / "photos" / "left-1" / "1.jpg"
    site.enroll(gallery, "ana", photo, name="=Ana")
    fields = {"record": "true", "device": "door", "direction": "in"}
    site.api.post(f"/v1/galleries/{gallery}/search", files={"image": photo.read_bytes()}, data=fields)
    page = tab.sign_in(site.keys[Scope.ADMIN], "events")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("attendance-show").click()
    expect(page.get_by_test_id("attendance")).to_contain_text("=Ana")
    with page.expect_download() as download:
        page.get_by_test_id("attendance-csv").click()
    assert ",ana,'=Ana," in Path(download.value.path()).read_text(encoding="utf-8-sig")


def test_a_zip_is_uploaded_and_its_report_is_read(site: Site, tab: Tab, photos: Path, tmp_path: Path) -> None:
    gallery = site.new_gallery()
    file = tmp_path / "people.zip"
    file.write_bytes(
        packed({"ana/1.jpg": (photos / "photos" / "left-1" / "1.jpg").read_bytes(), "ben/<b>.jpg": b"no image"})
    )
    page = tab.sign_in(site.keys[Scope.ENROLL], "gallery")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("job-file").set_input_files(file)
    expect(page.get_by_test_id("job")).to_have_attribute("data-state", "done")
    expect(page.get_by_test_id("identities")).to_have_text("1")
    page.get_by_test_id("job-report").click()
    expect(page.get_by_test_id("job-results")).to_contain_text("ben/<b>.jpg")


def test_a_gallery_is_created_and_checked(site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.ADMIN], "gallery")
    page.get_by_test_id("lookalikes").click()
    expect(page.get_by_text("Nothing suspicious")).to_be_visible()
    page.get_by_test_id("calibrate").click()
    expect(page.get_by_role("columnheader", name="Threshold", exact=True)).to_be_visible()
    page.get_by_test_id("gallery-create").click()
    page.get_by_test_id("gallery-name").fill("Besucher & Gäste")
    page.get_by_test_id("dialog-confirm").click()
    expect(page.get_by_test_id("gallery")).to_have_value("Besucher & Gäste")


def test_a_key_is_created_shown_once_and_revoked(site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.ADMIN], "gallery")
    page.get_by_test_id("key-create").click()
    page.get_by_test_id("key-name").fill("front desk")
    page.get_by_test_id("key-scope").select_option("search")
    page.get_by_test_id("dialog-confirm").click()
    secret = page.get_by_test_id("secret").inner_text()
    key = site.context.keys.authenticate(secret)
    assert key is not None
    assert (key.name, key.scopes) == ("front desk", frozenset([Scope.SEARCH]))
    page.get_by_test_id("dialog-confirm").click()
    page.get_by_role("button", name="Revoke front desk").click()
    page.get_by_test_id("dialog-confirm").click()
    wait_for(lambda: site.context.keys.get(key.id).revoked_at is not None)
