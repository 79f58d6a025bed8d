"""The page #people."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from search_service.store.api_keys import Scope
from tests.search_service.console.conftest import Site, Tab

STRANGE_ID = "a/b ?#%<i>ü"
MARKUP = "<img src=x onerror=alert(1)>"


def test_people_are_added_by_files_and_each_outcome_is_shown(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    expect(page.get_by_text("Nobody is enrolled yet")).to_be_visible()
    page.get_by_test_id("enroll-submit").click()
    expect(page.get_by_role("alert")).to_have_text("Enter an ID.")
    page.get_by_test_id("enroll-id").fill(STRANGE_ID)
    files = [photos / "photos" / "left-1" / "1.jpg", photos / "photos" / "left-2" / "1.jpg"]
    page.get_by_test_id("enroll-file").set_input_files(files[:1])
    page.get_by_test_id("enroll-file").set_input_files({"name": MARKUP, "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_test_id("enroll-submit").click()
    results = page.get_by_test_id("enroll-result").locator("[data-outcome]")
    expect(results).to_have_count(2)
    expect(results.nth(0)).to_have_attribute("data-outcome", "enrolled")
    expect(results.nth(1)).to_have_attribute("data-reason", "unreadable_image")
    expect(results.nth(1)).to_contain_text(MARKUP)
    expect(page.get_by_test_id("person")).to_have_attribute("data-external-id", STRANGE_ID)
    page.get_by_test_id("person").click()
    expect(page.locator("h1")).to_have_text(STRANGE_ID)
    expect(page.get_by_test_id("photo").locator("img")).to_be_visible()


def test_people_are_searched_as_one_types_and_paged(site: Site, tab: Tab) -> None:
    gallery = site.new_gallery()
    for number in range(60):
        site.api.post(
            f"/v1/galleries/{gallery}/identities", json={"external_id": f"e-{number}", "name": f"Łukasz {number}"}
        )
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    people = page.get_by_test_id("person")
    expect(people).to_have_count(50)
    page.get_by_role("button", name="Next").click()
    expect(people).to_have_count(10)
    page.get_by_test_id("person-search").fill("lukasz 42")
    expect(people).to_have_count(1)
    expect(people).to_have_attribute("data-external-id", "e-42")
    page.get_by_test_id("person-search").fill("nobody")
    expect(page.get_by_text("Nobody was found")).to_be_visible()


def test_a_person_is_edited_and_hostile_metadata_is_shown_as_text(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    metadata = {"note": MARKUP, "long": "x" * 3000, "floor": 3}
    site.enroll(gallery, "ana", photos / "photos" / "left-1" / "1.jpg", metadata=metadata)
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("person").click()
    expect(page.get_by_label("Value").first).to_have_value(MARKUP)
    page.get_by_test_id("person-name").fill("Ana Kovač")
    page.get_by_label("Value").last.fill("4")
    page.get_by_label("Remove long").click()
    page.get_by_test_id("person-save").click()
    expect(page.locator("h1")).to_have_text("Ana Kovač")
    person = site.api.get(f"/v1/galleries/{gallery}/identities/ana").json()
    assert (person["name"], person["metadata"]) == ("Ana Kovač", {"note": MARKUP, "floor": 4})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_change_by_somebody_else_is_not_overwritten(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    site.enroll(gallery, "ana", photos / "photos" / "left-1" / "1.jpg")
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("person").click()
    page.get_by_test_id("person-name").fill("Ana")
    site.api.patch(f"/v1/galleries/{gallery}/identities/ana", json={"name": "Anna"})
    page.get_by_test_id("person-save").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert site.api.get(f"/v1/galleries/{gallery}/identities/ana").json()["name"] == "Anna"
    tab.errors[:] = [error for error in tab.errors if "412" not in error]  # Chromium logs every refused request


def test_two_people_are_merged_after_a_preview(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    site.enroll(gallery, "ana", photos / "photos" / "left-1" / "1.jpg", name="Ana")
    site.enroll(gallery, "7", photos / "photos" / "left-2" / "1.jpg", name="Ben", metadata={"floor": 3})
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("person").first.click()
    page.get_by_role("button", name="Merge").click()
    page.get_by_test_id("merge-id").fill("ben")
    page.get_by_role("button", name="Ben (7)").click()
    expect(page.get_by_test_id("merge-preview")).to_contain_text("floor")
    page.get_by_test_id("dialog-confirm").click()
    expect(page.get_by_test_id("photo")).to_have_count(2)
    assert site.api.get(f"/v1/galleries/{gallery}/identities/7").status_code == 404


def test_a_person_is_deleted_after_a_question(site: Site, tab: Tab, photos: Path) -> None:
    gallery = site.new_gallery()
    site.enroll(gallery, "ana", photos / "photos" / "left-1" / "1.jpg")
    page = tab.sign_in(site.keys[Scope.ENROLL], "people")
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("person").click()
    page.get_by_test_id("person-delete").click()
    page.keyboard.press("Escape")
    page.get_by_test_id("person-delete").click()
    page.get_by_test_id("dialog-confirm").click()
    expect(page.get_by_text("Nobody is enrolled yet")).to_be_visible()
    assert site.api.get(f"/v1/galleries/{gallery}/identities/ana").status_code == 404
