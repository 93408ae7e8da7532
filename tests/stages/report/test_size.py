"""A thousand examples of three hundred tokens: small enough to send, quick to open, live to the touch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stages.report.conftest import Visit
from tests.stages.report.support import random_rows, write_report, write_scored

pytestmark = pytest.mark.slow


def slack() -> float:
    """How much slower than alone this machine is now: running processes per core, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture(scope="module")
def large(random_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return write_report(write_scored(folder / "scored", random_rows(1000, tokens=300), random_llama))


@pytest.fixture(scope="module")
def opened(browser: Any, large: Path) -> Iterator[Visit]:
    visit = Visit(browser, large, viewport={"width": 1280, "height": 900})
    yield visit
    visit.close()


def test_it_takes_at_most_25_mb(large: Path) -> None:
    assert large.stat().st_size <= 25e6


def test_it_opens_within_three_seconds(opened: Visit) -> None:
    milliseconds = float(opened.page.evaluate("document.documentElement.dataset.ready"))
    print(f"first drawing after {milliseconds:.0f} ms")
    assert milliseconds < 3000 * slack()


def test_only_what_is_near_the_screen_is_drawn(opened: Visit) -> None:
    page = opened.page
    page.locator("#shown-count").scroll_into_view_if_needed()
    page.locator("#examples .t").first.wait_for()
    assert 1 <= page.locator("#examples .card:not(:empty)").count() < 30
    page.evaluate("window.scrollTo({ top: document.body.scrollHeight / 2, behavior: 'instant' })")
    page.wait_for_function("""() => [...document.querySelectorAll('#examples .card:not(:empty)')].some(card => {
        const { top, bottom } = card.getBoundingClientRect(); return top < innerHeight && bottom > 0; })""")
    assert page.locator("#examples .card:not(:empty)").count() < 30


def test_two_hundred_examples_follow_a_slider_within_a_tenth_of_a_second(
    browser: Any, large: Path, tmp_path: Path
) -> None:
    scored = str(large.parents[1])
    visit = Visit(browser, write_report(scored, max_examples=200, output=str(tmp_path / "some.html")))
    visit.page.locator("#shown-count").scroll_into_view_if_needed()
    visit.page.locator("#examples .t").first.wait_for()
    taken = []
    for tau in (0.5, 0.7, 0.9, 1.1, 1.3):
        visit.page.evaluate("document.documentElement.dataset.updateMs = ''")
        visit.page.locator("#field-tau").fill(str(tau))
        visit.page.wait_for_function("() => document.documentElement.dataset.updateMs")
        taken.append(float(visit.page.evaluate("document.documentElement.dataset.updateMs")))
    visit.close()
    print(f"updates took {taken} ms")
    assert min(taken) < 100 * slack()
