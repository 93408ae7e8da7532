"""Size of a report, time until it opens, and how it follows the hand, in a real Chromium.

    python benchmarks/report.py --examples 1000 --tokens 300

Writes made-up facts as a scored table of the sandbox's model, a report on it, and one on its first 200 examples. Then a
headless Chromium opens them: time to the first drawing of the map; to the picture that follows a slider's move; and
between two pictures while the page scrolls, a screen's third at a time. Prints a table and writes report.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
from playwright.sync_api import Page, sync_playwright

from nlft_ray.config import ReportConfig
from nlft_ray.stages.report.job import report
from nlft_ray.tables.manifest import input_fingerprint
from nlft_ray.tables.schema import EXAMPLES, SCORED

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
SLIDER_EXAMPLES, OPENINGS, MOVES, SCROLLS = 200, 3, 20, 40
WORDS, WINDOW = 130, 8  # ids of the sandbox's words; stored neighbours

# From the move to when the next picture is out: the second frame begins after the first was painted.
MOVE = """async (share) => {
  const slider = document.querySelector('input[aria-label="judge_base_ratio, slider"]');
  const painted = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  await painted();
  const began = performance.now();
  slider.value = String(Number(slider.min) + share * (Number(slider.max) - Number(slider.min)));
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await painted();
  return performance.now() - began;
}"""
SCROLL = """async (times) => {
  const gaps = [];
  let last = await new Promise(requestAnimationFrame);
  for (let i = 0; i < times; i++) {
    window.scrollBy({ top: innerHeight / 3, behavior: "instant" });
    const now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    last = now;
  }
  return gaps;
}"""


def write_scored(folder: Path, examples: int, tokens: int) -> str:
    """A scored table with facts on all sides of every threshold, beside the examples that it is made from."""
    random = np.random.default_rng(0)
    texts = [_example(index) for index in range(examples)]
    manifest = harness.write_table(folder / "examples", [harness.table_of(texts, EXAMPLES)], "examples")
    scored = [harness.table_of((_facts(random, row, tokens) for row in texts), SCORED)]
    identity: dict[str, Any] = {"config": {"model": {"path": "sandbox"}}, "input": input_fingerprint(manifest)}
    harness.write_table(folder / "scored", scored, "scored", stage="score", **identity)
    return str(folder / "scored")


def _example(index: int) -> dict[str, Any]:
    correct = index % 2 == 0
    return {
        "id": f"example-{index}",
        "question": "How many pens does Anna have, when Bert gives her twice as many as she had? " * 4,
        "standard_answer": "#### 42",
        "verdict": "correct" if correct else "incorrect",
        "judgment": None if correct else "It adds what should be doubled, in the second of its steps. " * 2,
        "instruction": "",
        "response": "",
        "source": "made up",
    }


def _facts(random: np.random.Generator, row: dict[str, Any], tokens: int) -> dict[str, Any]:
    def logp() -> Any:
        return (-np.exp(random.normal(-2, 2.5, tokens))).astype(np.float32)

    return {
        "id": row["id"],
        "verdict": row["verdict"],
        "input_ids": random.integers(3, WORDS, tokens + 3).astype(np.int32),
        "response_start": 3,
        "logp_base": logp(),
        "logp_judge": None if row["judgment"] is None else logp(),
        "logp_standard": logp(),
        "top_standard": random.integers(3, WORDS, tokens).astype(np.int32),
        "top_logp_standard": logp(),
        "hidden_norm": random.uniform(5, 9, tokens).astype(np.float32),
        "hidden_cos": random.uniform(-0.2, 0.9, tokens * WINDOW).astype(np.float32),
    }


@contextmanager
def open_page(browser: Any, file: Path) -> Iterator[Page]:
    """The page as soon as the map is drawn, in a context of its own: nothing is cached."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_function("() => document.documentElement.dataset.ready")
    yield page
    context.close()


def measure(folder: Path, examples: int, tokens: int) -> dict[str, Any]:
    scored = write_scored(folder, examples, tokens)
    began = time.monotonic()
    whole = _report(scored, f"{folder}/whole", examples)
    seconds = time.monotonic() - began
    some = _report(scored, f"{folder}/some", SLIDER_EXAMPLES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        openings = []
        for _ in range(OPENINGS):
            with open_page(browser, whole) as page:
                openings.append(float(page.evaluate("document.documentElement.dataset.ready")))
        moves, gaps = _use(browser, some)
        moves_of_all, gaps_of_all = _use(browser, whole)
        version = browser.version
        browser.close()
    return {
        "chromium": version,
        "examples": examples,
        "tokens": tokens,
        "bytes": whole.stat().st_size,
        "seconds_to_write": seconds,
        "first_drawing_ms": openings,
        f"slider_ms_{SLIDER_EXAMPLES}_examples": moves,
        "slider_ms_all_examples": moves_of_all,
        f"scroll_ms_{SLIDER_EXAMPLES}_examples": gaps,
        "scroll_ms_all_examples": gaps_of_all,
    }


def _report(scored: str, output: str, examples: int) -> Path:
    config = {"input": scored, "output": output, "max_examples": examples}
    return Path(report(ReportConfig.model_validate(config)).output)


def _use(browser: Any, file: Path) -> tuple[list[float], list[float]]:
    """Milliseconds of each move of a slider, and between the pictures of a scrolled page."""
    with open_page(browser, file) as page:
        page.locator("#shown-count").scroll_into_view_if_needed()
        page.locator("#examples .t").first.wait_for()
        moves = [page.evaluate(MOVE, (move % 10 + 1) / 12) for move in range(MOVES)]
        return moves, page.evaluate(SCROLL, SCROLLS)


def show(figures: dict[str, Any]) -> None:
    rows = [("file, MB", f"{figures['bytes'] / 1e6:.1f}", "")]
    rows.append(("written in, s", f"{figures['seconds_to_write']:.1f}", ""))
    for name, values in figures.items():
        if isinstance(values, list):
            rows.append((name.replace("_", " "), f"{statistics.median(values):.0f}", f"{max(values):.0f}"))
    title = f"{figures['examples']:,} examples of {figures['tokens']} tokens, Chromium {figures['chromium']}"
    harness.show(title, ("", "median", "largest"), rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--output", default="report.json")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="report-") as scratch:
        figures = measure(Path(scratch), settings.examples, settings.tokens)
    Path(settings.output).write_text(json.dumps(figures, indent=1))
    show(figures)
