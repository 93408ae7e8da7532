"""The table of families in docs/models.md says what random models of them do."""

from pathlib import Path

import pytest

from nlft_ray.config import LoraConfig, ModelConfig
from nlft_ray.models.abilities import only_the_head_follows, start_packing, stores_prefixes
from nlft_ray.models.adapters import with_adapters
from nlft_ray.models.loading import load_model, supported_attention
from tests.conftest import ROOT
from tests.random_models import FAMILIES, save_random_model

PAGE = ROOT / "docs" / "models.md"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_a_family_does(family: str, tmp_path: Path) -> None:
    config = ModelConfig(path=save_random_model(tmp_path, family))
    model = load_model(config)
    prefixes, packs, asks = stores_prefixes(model), start_packing(model), only_the_head_follows(model)
    adapted = with_adapters(load_model(config), config, LoraConfig())
    names = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    experts = any(".experts." in name for name, _ in model.named_parameters())
    places = "all linear"
    if experts:
        places += ", experts" if any(".experts" in name for name in names) else ", no experts"
    if names and all(name.endswith("in_proj") for name in names):
        places = "`in_proj`"
    yes = {True: "yes", False: "no"}
    cells = supported_attention(config), yes[packs], yes[prefixes], yes[asks], places
    assert f"| `{family}` | {' | '.join(cells)} |" in PAGE.read_text().splitlines()


def test_the_table_has_no_other_rows() -> None:
    rows = [line.split("`")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == FAMILIES
