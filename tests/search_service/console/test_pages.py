"""Every page: on a phone, in the dark, for screen readers, and in every language."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from indexer.types import Outcome, Reason
from search_service.api.routes.console import FOLDER
from search_service.calibration.report import Basis
from search_service.matching.decision import Decision, DecisionReason
from search_service.store.api_keys import Scope
from search_service.store.event_pages import Direction
from search_service.store.jobs import JobState
from tests.search_service.console.conftest import Site, Tab

PHONE = {"width": 390, "height": 844}

PAGES = ["live", "search", "people", "people/left-1", "events", "gallery"]

SERIOUS = ("serious", "critical")

TEXTS = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "texts").glob("*.json")}

ENUMERATIONS = {
    "decision": Decision,
    "reason": DecisionReason,
    "reject": Reason,
    "outcome": Outcome,
    "direction": Direction,
    "job": JobState,
    "scope": Scope,
    "basis": Basis,
}


@pytest.mark.parametrize("where", PAGES)
@pytest.mark.parametrize("look", [{"viewport": PHONE}, {"color_scheme": "dark"}], ids=["phone", "dark"])
def test_a_page_fits_and_has_no_serious_finding(
    site: Site, open_tab: Callable[..., Tab], where: str, look: dict[str, object]
) -> None:
    page = open_tab(**look).sign_in(site.keys[Scope.ADMIN], where)
    expect(page.locator("h1")).to_be_visible()
    expect(page.locator(".loading")).to_have_count(0)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    found = Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found if one["impact"] in SERIOUS] == []


def test_the_sign_in_has_no_serious_finding(tab: Tab) -> None:
    page = tab.open()
    expect(page.get_by_test_id("sign-in")).to_be_visible()
    assert [one["id"] for one in Axe().run(page).response["violations"] if one["impact"] in SERIOUS] == []


def test_every_language_has_the_same_texts() -> None:
    assert len(TEXTS) == 2
    for texts in TEXTS.values():
        assert {key: _places(text) for key, text in texts.items()} == {
            key: _places(text) for key, text in TEXTS["en"].items()
        }


def test_every_value_has_a_text() -> None:
    for kind, values in ENUMERATIONS.items():
        assert {f"{kind}.{value}" for value in values} <= set(TEXTS["en"])


def test_every_text_is_used_and_every_used_text_exists() -> None:
    scripts = "\n".join(path.read_text() for path in FOLDER.rglob("*.js"))
    used = {
        key for key in re.findall(r'"([a-z_]+(?:\.[a-z_]+)+)"', scripts) if not key.endswith((".js", ".json", ".jpg"))
    }
    known = {re.sub(r"\.(one|other)$", "", key) for key in TEXTS["en"]}
    enumerated = {f"{kind}.{value}" for kind, values in ENUMERATIONS.items() for value in values}
    computed = re.compile(r"(page|index|quality|reason|remark|scope)\.")
    assert {key for key in known - used - enumerated if not computed.match(key)} == set()
    assert {key for key in used if key.partition(".")[0] in {one.partition(".")[0] for one in known}} <= known


def test_nothing_is_parsed_as_markup() -> None:
    for path in FOLDER.rglob("*.js"):
        text = path.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert len(text.splitlines()) < 400


def _places(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def test_the_files_name_no_other_host() -> None:
    for path in Path(FOLDER).rglob("*"):
        if path.is_file():
            hosts = set(re.findall(r"https?://([\w.-]+)", path.read_text()))
            assert hosts <= {"www.w3.org"}, path  # the name of SVG's namespace
