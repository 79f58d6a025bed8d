"""A real browser and one service with keys and the demo's people. Without Chromium, the tests are skipped."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from indexer.enrollment.sources import rows_of
from indexer.settings import read_settings
from indexer.types import Outcome
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.search_service.api.conftest import new_home
from tests.search_service.api.conftest import photos as photos
from tests.search_service.api.serving import Running, image, ok, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SLOWEST = DEADLINE * 1000
"""Milliseconds."""

expect.set_options(timeout=SLOWEST)


@dataclass(frozen=True)
class Site:
    """A service whose gallery `staff` holds the demo's people, with a key for each scope."""

    service: Running
    keys: Mapping[str, str]
    api: httpx.Client
    """Sends requests with an admin's key."""

    @property
    def context(self) -> ServiceContext:
        return self.service.context

    def new_gallery(self) -> str:
        """Creates an empty gallery and returns its name."""
        name = f"g-{uuid.uuid4().hex[:8]}"
        ok(self.api.post("/v1/galleries", json={"name": name}), 201)
        return name

    def enroll(self, gallery: str, external_id: str, photo: Path, **properties: Any) -> None:
        """Enrolls one photo of a person with these properties."""
        person = f"/v1/galleries/{gallery}/identities/{quote(external_id, safe='')}"
        ok(self.api.put(person, json=properties), 201)
        ok(self.api.post(f"{person}/faces", files=image(photo.read_bytes())), 201)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, photos: Path) -> Iterator[Site]:
    home = new_home(tmp_path_factory.mktemp("console"), models_folder)
    context = ServiceContext(read_settings(SETTINGS, home=home, keep_crops=True))
    results = context.enroller(context.open_gallery("staff")).enroll(rows_of([photos / "photos"]))
    assert [result.outcome for result in results] == [Outcome.ENROLLED] * 7
    keys = {str(scope): context.keys.create(str(scope), [scope])[1] for scope in Scope}
    with running(context) as service, service.client() as api:
        api.headers["X-API-Key"] = keys[Scope.ADMIN]
        yield Site(service, keys, api)


@dataclass
class Tab:
    """A page of the browser, with everything that must not have happened on it."""

    page: Page
    url: str
    errors: list[str] = field(default_factory=list)
    """Console errors and uncaught exceptions."""
    elsewhere: list[str] = field(default_factory=list)
    """Requests to other hosts."""

    def watch(self) -> None:
        self.page.set_default_timeout(SLOWEST)
        self.page.on("console", lambda one: self.errors.append(one.text) if one.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda one: self._check(one.url))

    def _check(self, url: str) -> None:
        if not url.startswith((self.url, f"blob:{self.url}")):
            self.elsewhere.append(url)

    def open(self, where: str = "search") -> Page:
        self.page.goto(f"{self.url}/console/#{where}")
        return self.page

    def sign_in(self, key: str, where: str = "search", gallery: str = "staff") -> Page:
        self.open()
        self.page.get_by_test_id("api-key").fill(key)
        self.page.get_by_test_id("sign-in").click()
        self.page.get_by_test_id("gallery").select_option(gallery)
        return self.open(where)


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    """Debian's Chromium. A module with a fixture `camera`, the path of a Y4M file, has that video as its camera."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: `apt-get install chromium` as root, which `make test` tries")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no user namespace to confine it to
    if "camera" in request.fixturenames:
        video = request.getfixturevalue("camera")
        arguments += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        arguments += [f"--use-file-for-fake-video-capture={video}"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=SLOWEST)
        yield started
        started.close()


@pytest.fixture
def open_tab(browser: Browser, site: Site) -> Iterator[Callable[..., Tab]]:
    """A function that opens a tab with options of a browser context. At the end, no tab may have had an error or have
    asked another host."""
    opened: list[Tab] = []

    def new(**options: Any) -> Tab:
        context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 800}, **options})
        opened.append(Tab(context.new_page(), site.service.url))
        opened[-1].watch()
        return opened[-1]

    yield new
    for one in opened:
        assert (one.errors, one.elsewhere) == ([], [])
        one.page.context.close()


@pytest.fixture
def tab(open_tab: Callable[..., Tab]) -> Tab:
    return open_tab()
