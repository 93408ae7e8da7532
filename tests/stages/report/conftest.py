"""One headless browser for all tests of the page, and one run for it to show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.report.support import EXAMPLE_ROWS, HOSTILE_ROWS, random_rows, score, write_report, write_run

CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM} (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def scored_rows(random_llama: str) -> list[dict[str, Any]]:
    """What the scorer finds out about ordinary and hostile examples, and rows at random."""
    return score(random_llama, EXAMPLE_ROWS + HOSTILE_ROWS) + random_rows(60)


@pytest.fixture(scope="session")
def run(random_llama: str, scored_rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("report") / "run", random_llama, EXAMPLE_ROWS + HOSTILE_ROWS, scored_rows)


@pytest.fixture(scope="session")
def html(run: str) -> Path:
    return write_report(run)


class Visit:
    """A page that is open in the browser, and all that it complained about or asked for."""

    def __init__(self, browser: Any, file: Path, address: str = "", **context: Any) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._context = browser.new_context(**context)
        self._context.set_default_timeout(10_000)
        self.page = self._context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = f"{file.as_uri()}{address}"
        self.page.goto(self.url)
        self.page.wait_for_function("() => document.documentElement.dataset.ready")

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def visit(browser: Any, html: Path) -> Iterator[Any]:
    """Opens the report (or another file); complaints fail the test."""
    visits: list[Visit] = []

    def open_page(address: str = "", file: Path | None = None, **context: Any) -> Visit:
        visits.append(Visit(browser, file or html, address, **context))
        return visits[-1]

    yield open_page
    complaints = [complaint for visited in visits for complaint in visited.complaints]
    for visited in visits:
        visited.close()
    assert complaints == []
