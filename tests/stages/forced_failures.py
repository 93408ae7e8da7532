"""A command in processes of its own, with its own local cluster, and the means to kill parts of it.

Everything that the command starts stays in its session, so nothing else is ever killed, and nothing is left behind.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nlft_ray.cli.arguments import load_config
from nlft_ray.config import ScoreConfig
from nlft_ray.sandbox import QUICKSTART, world
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import MANIFEST, Manifest
from nlft_ray.tables.shards import DATA
from tests.rows import write_table

ROWS, ROWS_PER_SHARD = 320, 8
SHARDS = ROWS // ROWS_PER_SHARD
UNUSABLE = 17  # number of the row that cannot be used
_GRACE_SECONDS = 5.0


def example_rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Problems of the sandbox, answered rightly and wrongly in turn; one with token ids that the model has not."""
    rows = []
    for number, problem in enumerate(world.problems("train", count, seed=5)):
        mistake = problem.mistakes[0] if number % 2 else None
        rows.append(
            {
                "id": problem.id,
                "instruction": "",
                "question": problem.question,
                "standard_answer": problem.standard_answer,
                "response": mistake.response if mistake else problem.steps,
                "verdict": "incorrect" if mistake else "correct",
                "judgment": mistake.judgment if mistake else None,
                "response_ids": [1_000_000] if number == UNUSABLE else None,
                "source": "test",
            }
        )
    return rows


class Scoring:
    """`nlft-ray score` of one input into one output, to be started again and again with the same words."""

    def __init__(self, folder: Path, examples: str, output: Path | str):
        quickstart = yaml.safe_load(QUICKSTART.read_text())
        config = folder / "score.yaml"
        config.write_text(yaml.safe_dump({name: quickstart[name] for name in ("model", "prompts")}))
        self.output: Any = output
        # a row to a batch, so that the work takes long enough to be killed in
        self.words = [
            *("--config", str(config), f"input={examples}", f"output={output}"),
            *(f"pool.rows_per_shard={ROWS_PER_SHARD}", "max_tokens_per_batch=1"),
        ]

    def config(self, *words: str) -> ScoreConfig:
        """The same configuration, for this process."""
        return load_config(ScoreConfig, self.words[1], [*self.words[2:], *words])

    def start(self, *words: str) -> "Running":
        return Running([*self.words, *words], self.output)

    def run(self, *words: str) -> "Running":
        """Start it and let it end by itself; on a busy machine Ray may need more than one try to start."""
        for _ in range(4):
            with self.start(*words) as running:
                running.wait()
            if not running.ray_did_not_start:
                break
        return running

    def files(self) -> dict[str, int]:
        """Finished shards, and when they were written."""
        return {info.base_name: info.mtime_ns for info in _parts(self.output)}


def _parts(output: Path | str) -> list[Any]:
    return (Folder(str(output)) / DATA).file_infos()


class Running:
    """One start of a command. Leaving the `with` block kills whatever is left of it."""

    stage = "score"
    patience_seconds = 240.0
    actor = "_ShardActor"
    """What the processes that do the work have in their titles."""

    def __init__(self, words: list[str], output: Path | str):
        self._ray_folder = tempfile.mkdtemp(prefix="nlft-")  # short: a socket's path has at most 107 characters
        self._said = open(Path(self._ray_folder) / "said.txt", "w+")  # noqa: SIM115
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nlft_ray", self.stage, *words],
            stdout=self._said,
            stderr=subprocess.STDOUT,
            env=environment | {"RAY_TMPDIR": self._ray_folder},
            start_new_session=True,
        )
        self._began = time.monotonic()
        self._output = output
        self._pause = 0.2 if "://" in str(output) else 0.01  # a store has better things to do than to list files
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._members() and self.returncode is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        self.kill_cluster()
        self._said.seek(0)
        self.text = self._said.read()
        self._said.close()
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def returncode(self) -> int | None:
        return self._process.poll()

    @property
    def ray_did_not_start(self) -> bool:
        return "no local cluster came up" in self.text

    def wait(self) -> None:
        self._process.wait(timeout=self.patience_seconds)

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Whether something is reached before the command ends."""
        while not reached():
            if self.returncode is not None:
                return False
            assert self.seconds < self.patience_seconds
            time.sleep(self._pause)
        return True

    def done(self) -> int:
        """Units of work: here shards."""
        return len(_parts(self._output))

    def actors(self) -> list[int]:
        return [pid for pid in self._members() if self.actor in _title(pid)]

    def kill_actors(self, pids: list[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_driver(self) -> None:
        """Its cluster, which it had started, follows it by and by: the next start may meet the last of it."""
        self._process.kill()
        self._process.wait()

    def kill_cluster(self) -> None:
        """All at once: driver, control service, raylet, actors."""
        while members := self._members():
            self.kill_actors(members)
            self._process.poll()
            time.sleep(0.02)
        self._process.wait()

    def _members(self) -> list[int]:
        """Living processes of the command's session."""
        return [pid for pid in psutil.pids() if _session(pid) == self._process.pid and _lives(pid)]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


class Moments:
    """Random moments, the same for the same seed: some on the clock, which may fall into start or end, and some
    within the work."""

    def __init__(self, seed: int, seconds: float = 30.0):
        self._random = random.Random(seed)
        self._seconds = seconds

    def wait_for_one(self, running: Running, most_shards: int) -> str | None:
        """Let a random time pass. Its description; None where the command ended before."""
        if self._random.random() < 0.25:
            seconds = self._random.uniform(0.2, self._seconds)
            return f"{seconds:.2f} s" if running.wait_until(lambda: running.seconds >= seconds) else None
        return self.wait_within_work(running, most_shards)

    def wait_a_little(self, running: Running) -> str | None:
        """Let up to three seconds pass."""
        seconds = self._random.uniform(0, 3)
        until = running.seconds + seconds
        return f"{seconds:.2f} s" if running.wait_until(lambda: running.seconds >= until) else None

    def wait_within_work(self, running: Running, most_shards: int) -> str | None:
        shards, pause = self._random.randint(1, most_shards), self._random.uniform(0, 0.3)
        wanted = running.done() + shards
        reached = running.wait_until(lambda: running.done() >= wanted)
        until = time.monotonic() + pause
        if reached and running.wait_until(lambda: time.monotonic() >= until):
            return f"{shards} shards and {pause:.2f} s"
        return None

    def one_of(self, pids: list[int]) -> list[int]:
        return self._random.sample(pids, min(1, len(pids)))


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """No process remains that was not there before, nor comes from one that was."""
    before = set(_descendants())
    yield
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [pid for pid, ancestors in _descendants().items() if not before & {pid, *ancestors}]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {[_title(pid) for pid in left]}")


def _descendants() -> dict[int, set[int]]:
    """Processes that this one has started, or they, and from whom each comes."""
    found = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found[child.pid] = {parent.pid for parent in child.parents()}
    return found


def table_of(output: Path) -> pa.Table:
    """The whole scored table by id, values as they stand in the files."""
    return pq.read_table(output / "data").sort_by("id")


def rejects_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "rejects").sort_by("id").to_pylist()


def manifest_of(output: Path) -> Manifest:
    """The manifest without what differs from run to run."""
    manifest = Manifest.model_validate_json((output / MANIFEST).read_text())
    return manifest.model_copy(update={"seconds": 0.0})


def assert_same(output: Path, undisturbed: Path) -> None:
    """Every id exactly once, and every value equal, bit for bit."""
    table, wanted = table_of(output), table_of(undisturbed)
    assert table["id"].to_pylist() == wanted["id"].to_pylist()
    assert table.equals(wanted)
    assert rejects_of(output) == rejects_of(undisturbed)
    assert manifest_of(output) == manifest_of(undisturbed)
    ids = [*table["id"].to_pylist(), *(reject["id"] for reject in rejects_of(output))]
    assert sorted(ids) == sorted(row["id"] for row in example_rows())
    hidden = [path.name for path in output.rglob(".*")]
    assert hidden == [], "half files remain"


def write_examples(folder: Path) -> str:
    return write_table(folder / "examples", "examples", example_rows(), rows_per_file=80)
