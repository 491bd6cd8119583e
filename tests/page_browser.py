"""Fixtures of the tests of the page in a real Chromium, opened from the file system.

Test modules name this one in ``pytest_plugins`` and import nothing from it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_page import all_scores, crowd

from icl_bench.leaderboard.page import page_html

Page = Any  # playwright.sync_api.Page, which there may not be

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, of the system's own packages."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder with the page of a suite of every kind, and one of 200 entries (many.html)."""
    base = tmp_path_factory.mktemp("site")
    scores = all_scores()
    for name, shown in (("index.html", scores), ("many.html", [crowd(scores[0], 200)])):
        (base / name).write_text(page_html(shown), encoding="utf-8", newline="\n")
    return base


@pytest.fixture
def page(browser, site) -> Iterator[Page]:
    """A page that may ask for nothing but itself, and has nothing to complain of."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    opened = context.new_page()
    complaints: list[str] = []
    requests: set[str] = set()
    opened.on("console", lambda told: complaints.append(told.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    opened.on("request", lambda request: requests.add(request.url.split("#")[0]))
    yield opened
    context.close()
    allowed = {path.as_uri() for path in site.iterdir()}
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} <= allowed
