"""A whole run, on Ray, in a store that refuses and dawdles in the middle of every stage."""

import re
from pathlib import Path

import pytest

import nlft_ray
from nlft_ray.cli.main import main
from nlft_ray.config import RunConfig
from nlft_ray.sandbox import QUICKSTART
from tests.rows import read_table
from tests.small_run import SMALL, SmallRun, small
from tests.stages.forced_failures import Running
from tests.storage.server import KEY, SECRET, SLOW_DOWN, Fault, Request, Store

pytestmark = pytest.mark.system

STAGES = {"questions", "responses", "examples", "scored", "trained", "models", "predictions"}
_LONGEST_SECONDS = 4.0  # pyarrow by default takes a connection without a byte for three seconds for broken


class RunningChain(Running):
    stage = "run"
    patience_seconds = 500.0


def bad_weather(request: Request) -> Fault | None:
    """Every stage meets a refusal early on, one of every table and tensor file that it uploads, and a slow answer."""
    is_upload = request.method == "PUT" and request.key.endswith((".parquet", ".safetensors"))
    if request.number == 4 or (is_upload and request.tries == 1):
        return SLOW_DOWN
    if request.number in (9, 10):  # one of them may be an upload
        return Fault(seconds=_LONGEST_SECONDS if request.folder == "scored" else 0.5)
    return None


@pytest.mark.timeout(700)
def test_a_run_in_a_store_gives_what_one_on_a_disk_gives(small_run: SmallRun, store: Store, tmp_path: Path) -> None:
    words = ["--config", str(QUICKSTART), *SMALL, "pool.backend=ray", "train.checkpoint_every_steps=1"]
    store.proxy.weather = bad_weather
    with RunningChain([*words, f"run_dir={store.uri('run')}"], tmp_path) as running:
        running.wait()
    assert running.returncode == 0, running.text
    print(f"{store.proxy.answered} requests answered, {len(store.proxy.refused)} refused, in {running.seconds:.0f} s")
    for met in (store.proxy.refused, store.proxy.delayed):
        assert {request.folder for request in met} >= STAGES
    there = store.downloaded("run", tmp_path / "copy")
    assert_same_run(there, small_run.untouched)
    secrets = (KEY.encode(), SECRET.encode())
    telling = [path for path in there.rglob("*") if path.is_file() and any(one in path.read_bytes() for one in secrets)]
    assert telling == []
    check_nothing_runs_twice(small(store.uri("run")), store)


def assert_same_run(there: Path, here: Path) -> None:
    for table in ("questions", "responses", "examples", "scored", "predictions/before", "predictions/nlft"):
        assert read_table(there / table) == read_table(here / table), table
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (there / "models/nlft" / name).read_bytes() == (here / "models/nlft" / name).read_bytes()
    assert names_in(there) == names_in(here)
    cards = [(run / "models/nlft/README.md").read_text() for run in (there, here)]
    assert len({re.sub(r"\d[\d.]*", "0", card) for card in cards}) == 1, "but for seconds"


def names_in(run: Path) -> set[str]:
    """Paths of all files; those of TensorBoard and of checkpoints have names of their own."""
    paths = (path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())
    return {path for path in paths if "tfevents" not in path and "/checkpoints/" not in path}


def check_nothing_runs_twice(config: RunConfig, store: Store) -> None:
    before = store.objects()
    again = nlft_ray.run(config)
    outcome = again.outcomes[0]
    stages = [again.examples, again.scored, again.before, outcome.train, outcome.export, outcome.evaluate]
    assert all(stage is not None and stage.reused for stage in stages)
    assert store.objects().keys() == before.keys()
    main(["inspect", store.uri("run/scored")])
    main(["report", store.uri("run"), f"output={store.uri('elsewhere/page.html')}"])
    assert {"elsewhere/page.html", "elsewhere/page.md"} <= store.objects().keys()
