"""The page #search."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, expect

from search_service.demo import PROBES, Probe
from search_service.store.api_keys import Scope
from tests import photos as sources
from tests.search_service.console.conftest import Site, Tab

HOSTILE = {
    "markup": "<img src=x onerror=alert(1)><script>alert(2)</script>",
    "right-to-left": "\u05d0\u05d1\u05d2 \u0645\u0631\u062d\u0628\u0627",
    "long": "W" * 200,
}


@pytest.mark.parametrize("probe", [PROBES[0], PROBES[-1]], ids=lambda probe: probe.file)
def test_a_photo_is_answered_with_decision_and_candidates(site: Site, tab: Tab, photos: Path, probe: Probe) -> None:
    page = tab.sign_in(site.keys[Scope.ENROLL])
    page.get_by_test_id("probe-file").set_input_files(photos / "probes" / probe.file)
    decision, first = page.get_by_test_id("decision"), page.get_by_test_id("candidate").first
    expect(decision).to_have_attribute("data-decision", "match" if probe.expected else "no_match")
    if probe.expected:
        expect(first).to_have_attribute("data-external-id", probe.expected)
    expect(page.get_by_test_id("candidate")).to_have_count(5)


def test_a_search_key_shows_candidates_above_the_threshold_only(site: Site, tab: Tab, photos: Path) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.get_by_test_id("probe-file").set_input_files(photos / "probes" / "left-1-small.jpg")
    expect(page.get_by_test_id("decision")).to_have_attribute("data-decision", "match")
    expect(page.get_by_test_id("candidate")).to_have_count(1)
    page.get_by_test_id("probe-file").set_input_files(photos / "probes" / "stranger.jpg")
    expect(page.get_by_test_id("decision")).to_have_attribute("data-decision", "no_match")
    expect(page.get_by_test_id("candidate")).to_have_count(0)


def test_the_rate_moves_threshold_and_decision(site: Site, tab: Tab, photos: Path) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.get_by_test_id("probe-file").set_input_files(photos / "probes" / "collins-close.jpg")
    decision, slider = page.get_by_test_id("decision"), page.get_by_test_id("fpir")
    expect(decision).to_have_attribute("data-decision", "match")
    expect(page.locator("output")).to_contain_text("1 in 100 ")
    before = page.locator(".answer").inner_text()
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    expect(page.locator("output")).to_contain_text("1 in 10,000 ")
    expect(page.locator(".answer")).not_to_have_text(before)


def test_one_of_several_faces_is_chosen_by_keyboard(site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    group = FilePayload(name="group.jpg", mimeType="image/jpeg", buffer=sources.six_people())
    page.get_by_test_id("probe-file").set_input_files(group)
    faces = page.locator("button.face")
    expect(faces).to_have_count(6)
    expect(faces.first).to_have_attribute("aria-pressed", "true")
    faces.nth(1).focus()
    page.keyboard.press("Enter")
    expect(faces.nth(1)).to_have_attribute("aria-pressed", "true")


def test_a_photo_can_be_pasted(site: Site, tab: Tab, photos: Path) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "pasted.jpg", { type: "image/jpeg" }));
            dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        list((photos / "probes" / "left-1-small.jpg").read_bytes()),
    )
    expect(page.get_by_test_id("decision")).to_have_attribute("data-decision", "match")


def test_a_photo_without_a_face_is_explained_in_the_words_of_the_api(site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.get_by_test_id("probe-file").set_input_files(
        FilePayload(name="<b>cat</b>.png", mimeType="image/png", buffer=sources.no_faces()[-1])
    )
    expect(page.get_by_role("alert")).to_contain_text("face")
    tab.errors[:] = [error for error in tab.errors if "422" not in error]  # Chromium logs every refused request


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_name_is_shown_as_text(site: Site, tab: Tab, photos: Path, kind: str) -> None:
    name = HOSTILE[kind]
    gallery = site.new_gallery()
    site.enroll(gallery, "one", photos / "photos" / "left-1" / "1.jpg", name=name)
    page = tab.sign_in(site.keys[Scope.ENROLL])
    page.get_by_test_id("gallery").select_option(gallery)
    page.get_by_test_id("probe-file").set_input_files(photos / "probes" / "left-1-small.jpg")
    expect(page.get_by_test_id("candidate").locator(".name")).to_have_text(name)
    expect(page.get_by_test_id("decision")).to_contain_text(name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
