"""A policy of one's own is one file: a seventh one, which has no formulas in the page, works wherever the others do."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from nlft_ray.analysis.saliency import losing_example
from nlft_ray.cli.tokens import show_response
from nlft_ray.config import ModelConfig
from nlft_ray.core.policies import POLICIES, Policy
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.scored import facts_of

SHOWN = """() => nlft.List.all().map(({ id, result }) => ({
    id, weight: [...result.weight], sign: [...result.sign], role: [...result.role], anchor: [...result.anchor] }))"""
PACKAGE = Path(__file__).parents[3] / "nlft_ray"
SURPRISE = '''
"""Surprise alone decides."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import Policy, TokenWeights, option


@dataclass(frozen=True)
class Surprise(Policy):
    """Raises the unlikely tokens of a correct response, and lowers those of an incorrect one."""

    name: Literal["surprise"] = "surprise"
    below: float = option(0.5, "A token counts where p_base is below this.", gt=0, le=1)
    times: int = option(2, "Weight of a token that counts.", ge=0)
    falling: bool = option(True, "Whether the plain likelihood term falls from token to token.")

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        counts = facts.p_base < self.below
        weights = TokenWeights.build(
            np.where(counts, float(self.times), 0.0), saliency=counts, lowered=None if facts.correct else counts
        )
        if facts.correct and self.falling:
            weights.anchor[:] = 1 / np.arange(1, facts.n + 1)
        return weights
'''
SETTINGS = ["policy.name=surprise", "policy.below=0.25"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more; the folder to start Python in."""
    folder = tmp_path_factory.mktemp("own-policy")
    shutil.copytree(PACKAGE, folder / "nlft_ray", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "nlft_ray" / "core" / "policies" / "surprise.py").write_text(SURPRISE)
    return folder


@pytest.fixture(scope="module")
def surprise(installed: Path) -> Policy:
    """The policy in this process."""
    file = installed / "nlft_ray" / "core" / "policies" / "surprise.py"
    spec = importlib.util.spec_from_file_location("surprise", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["surprise"] = module  # where dataclasses look up the annotations
    spec.loader.exec_module(module)
    return module.Surprise(below=0.25)


def nlft_ray(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "120"}
    command = [sys.executable, "-m", "nlft_ray", *words]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.system
@pytest.mark.smoke
def test_it_is_configured_like_any_other(installed: Path) -> None:
    training = ["train", "input=scored", "output=trained", "model.path=sandbox", *SETTINGS]
    done = nlft_ray(installed, *training, "--print-config")
    wanted = {"name": "surprise", "loss_scale": 1.0, "below": 0.25, "times": 2, "falling": True}
    assert yaml.safe_load(done.stdout)["policy"] == wanted
    assert "Weight of a token that counts. [2]" in nlft_ray(installed, "train", "--help").stdout
    refused = nlft_ray(installed, *training, "policy.belo=1", "policy.times=-1")
    assert refused.returncode == 2
    assert "policy.surprise.belo: unknown key. Did you mean 'below'?" in refused.stderr
    assert "policy.surprise.times: Input should be greater than or equal to 0 (got -1)" in refused.stderr


@pytest.mark.system
@pytest.mark.smoke
def test_inspect_shows_it(installed: Path, run: str, scored_rows: list[dict[str, Any]], surprise: Policy) -> None:
    figures = nlft_ray(installed, "inspect", f"{run}/scored", "--policy", "surprise").stdout
    lowered = sum(int((type(surprise)().weigh(facts_of(row)).sign < 0).sum()) for row in scored_rows)
    assert f"lowered {lowered:,}" in " ".join(figures.replace("\n", " ").split())
    one = nlft_ray(installed, "inspect", f"{run}/scored", "--policy", "surprise", "--id", "wrong").stdout
    assert "An incorrect response, as policy surprise sees it" in one


def test_the_end_of_a_run_shows_it(
    run: str, random_llama: str, surprise: Policy, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))
    view = losing_example(Folder(f"{run}/scored"), Folder(f"{run}/examples"), tokenizer, surprise)
    assert view is not None
    show_response(view, Console())
    assert "An incorrect response, as policy surprise sees it" in capsys.readouterr().out


@pytest.fixture(scope="module")
def page_of_own_policy(installed: Path, run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("own-policy-page") / "report.html"
    done = nlft_ray(installed, "report", run, *SETTINGS, f"output={file}")
    assert done.returncode == 0, done.stderr
    return file


def test_the_page_shows_pythons_weights(
    visit: Any, page_of_own_policy: Path, scored_rows: list[dict[str, Any]], surprise: Policy
) -> None:
    page = visit(file=page_of_own_policy).page
    shown = {row["id"]: row for row in page.evaluate(SHOWN)}
    for row in scored_rows:
        wanted, found = surprise.weigh(facts_of(row)), shown[row["id"]]
        np.testing.assert_array_equal(found["weight"], wanted.weight)
        np.testing.assert_array_equal(found["sign"], wanted.sign)
        np.testing.assert_array_equal(found["role"], wanted.roles)
        np.testing.assert_allclose(found["anchor"], wanted.anchor, rtol=1e-6)
    assert page.locator("#hero .t.losing").count() >= 1, "it tells the mistake that this policy finds"


def test_the_page_says_that_its_numbers_are_fixed(visit: Any, page_of_own_policy: Path) -> None:
    page = visit(file=page_of_own_policy, address="#policy=surprise&below=0.9").page
    assert "The page has no formulas for this policy" in page.locator("#fixed-note").inner_text()
    assert page.locator("#policy-fields input, #policy-rest input, #policy-reset:visible").count() == 0
    assert page.evaluate("nlft.Panel.policy().below") == 0.25, "a link cannot turn them either"
    stated = page.locator("#policy-rest").text_content()
    assert "below: 0.25A token counts where p_base is below this." in stated
    assert yaml.safe_load(page.locator("#yaml").input_value())["policy"]["below"] == 0.25
    page.locator("#shown-count").scroll_into_view_if_needed()
    page.locator("#examples .t.losing").first.hover()
    assert "Policy surprise lowers this token." in page.locator("#details").text_content()


def test_the_other_policies_stay_live_beside_it(visit: Any, page_of_own_policy: Path) -> None:
    page = visit(file=page_of_own_policy).page
    assert set(page.locator("#policy-name option").all_text_contents()) == {*POLICIES, "surprise"}
    page.locator("#policy-name").select_option("cut")
    assert page.locator("#fixed-note").is_hidden()
    assert page.locator("#field-unlikelihood_weight").count() == 1
    page.locator("#policy-name").select_option("surprise")
    assert page.evaluate("location.hash") == "#policy=surprise"
