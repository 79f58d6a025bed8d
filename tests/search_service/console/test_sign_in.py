"""Signing in, the end of a session, and what a key's scope shows."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from playwright.sync_api import expect

from search_service.store.api_keys import Scope
from tests.search_service.api.conftest import service as service
from tests.search_service.api.serving import Running
from tests.search_service.console.conftest import Site, Tab

PAGES = {
    "live": Scope.SEARCH,
    "search": Scope.SEARCH,
    "people": Scope.ENROLL,
    "events": Scope.ADMIN,
    "gallery": Scope.SEARCH,
}
"""The pages with the lowest scope that opens each."""

IDLE_MINUTES = 15


@pytest.mark.parametrize("scope", list(Scope))
def test_a_key_shows_the_pages_that_its_scope_allows(site: Site, tab: Tab, scope: Scope) -> None:
    page = tab.sign_in(site.keys[scope])
    shown = [link.get_attribute("data-page") for link in page.locator("nav.pages a").all()]
    ranks = list(Scope)
    assert shown == [name for name, needed in PAGES.items() if ranks.index(needed) <= ranks.index(scope)]
    for name, needed in PAGES.items():
        page.goto(f"{tab.url}/console/#{name}")
        allowed = ranks.index(needed) <= ranks.index(scope)
        expect(page.locator("nav.pages a[aria-current]")).to_have_attribute("data-page", name if allowed else "search")


def test_a_refused_key_is_explained_in_the_words_of_the_api(tab: Tab) -> None:
    page = tab.open()
    page.get_by_test_id("api-key").fill(f"wt_{'0' * 16}_{'A' * 43}")
    page.get_by_test_id("sign-in").click()
    expect(page.get_by_role("alert")).to_have_text("The API key is not known here")
    assert ["401" in error for error in tab.errors] == [True]  # Chromium logs every refused request
    tab.errors.clear()
    page.get_by_test_id("api-key").fill("not a key")
    page.get_by_test_id("api-key").press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("wt_")


def test_the_key_is_in_no_address_and_no_storage_and_a_reload_forgets_it(site: Site, tab: Tab) -> None:
    key = site.keys[Scope.ADMIN]
    addresses: list[str] = []
    tab.page.on("request", lambda request: addresses.append(request.url))
    page = tab.sign_in(key)
    for name in PAGES:
        page.goto(f"{tab.url}/console/#{name}")
        expect(page.locator("h1")).to_be_visible()
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, history.state])")
    assert key not in stored
    assert page.context.cookies() == []
    assert addresses
    assert not [address for address in addresses if key in address]
    page.reload()
    expect(page.get_by_test_id("api-key")).to_have_value("")


def test_signing_out_forgets_the_key(site: Site, tab: Tab) -> None:
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.get_by_test_id("sign-out").click()
    expect(page.get_by_test_id("api-key")).to_have_value("")
    page.evaluate("location.hash = '#gallery'")
    expect(page.get_by_test_id("gallery")).to_have_count(0)


def test_a_session_ends_when_nobody_uses_the_page(site: Site, tab: Tab) -> None:
    tab.page.clock.install()
    page = tab.sign_in(site.keys[Scope.SEARCH])
    page.clock.fast_forward(60_000 * (IDLE_MINUTES - 1))
    page.keyboard.press("Shift")
    page.clock.fast_forward(60_000 * (IDLE_MINUTES - 1))
    expect(page.get_by_test_id("gallery")).to_be_visible()
    page.clock.fast_forward(60_000 * 2)
    expect(page.get_by_test_id("api-key")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("15")


def test_a_revoked_key_ends_the_session(site: Site, tab: Tab) -> None:
    key, text = site.context.keys.create("short-lived", [Scope.SEARCH])
    page = tab.sign_in(text)
    site.context.keys.revoke(key.id)
    page.goto(f"{tab.url}/console/#gallery")
    expect(page.get_by_role("alert")).to_contain_text("was revoked")
    assert all("401" in error for error in tab.errors)
    tab.errors.clear()


def test_a_service_without_keys_asks_for_none(service: Running, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab()
    tab.url = service.url
    page = tab.open("search")
    expect(page.locator("h1")).to_have_text("Search")
    expect(page.get_by_test_id("sign-out")).to_have_count(0)


def test_texts_are_in_the_language_of_the_browser_or_the_chosen_one(site: Site, open_tab: Callable[..., Tab]) -> None:
    page = open_tab(locale="de-AT").sign_in(site.keys[Scope.SEARCH])
    expect(page.locator("h1")).to_have_text("Suche")
    page.get_by_label("Sprache").select_option("en")
    expect(page.locator("h1")).to_have_text("Search")
    expect(page.locator("html")).to_have_attribute("lang", "en")


@pytest.mark.parametrize("name", ["", "main.js", "style/base.css", "texts/en.json", "icon.svg"])
def test_every_file_is_served_with_strict_headers(site: Site, name: str) -> None:
    answer = httpx.get(f"{site.service.url}/console/{name}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = httpx.get(f"{site.service.url}/console/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_the_page_is_reached_without_a_slash_and_behind_a_prefix(site: Site) -> None:
    answer = httpx.get(f"{site.service.url}/console")
    assert (answer.status_code, answer.headers["location"]) == (308, "console/")
    assert httpx.head(f"{site.service.url}/console/").status_code == 200


@pytest.mark.parametrize("name", ["nosuch.js", "..%2f..%2fpyproject.toml", "%2e%2e/app.py", "pages"])
def test_nothing_else_is_served(site: Site, name: str) -> None:
    assert httpx.get(f"{site.service.url}/console/{name}").status_code == 404
