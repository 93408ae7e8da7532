"""Scoring survives force: whatever is killed, the same command ends with every id once and the same values.

The ordinary run kills an actor, the driver and the cluster. All the kills, at no fewer than 20 random moments:

    pytest -s -m exhaustive tests/stages/test_exactly_once.py

NLFT_KILL_SEED chooses the moments; they are printed.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import nlft_ray
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import MANIFEST, begin, finish
from tests.stages.forced_failures import (
    ROWS,
    SHARDS,
    UNUSABLE,
    Moments,
    Running,
    Scoring,
    assert_same,
    example_rows,
    nothing_left_behind,
    rejects_of,
    table_of,
    write_examples,
)
from tests.tables.test_manifest import identity, manifest

SEED = int(os.environ.get("NLFT_KILL_SEED", "1"))
pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("ray_local"), pytest.mark.system]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_examples(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, examples: str) -> Path:
    """What a run gives that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    nlft_ray.score(Scoring(folder, examples, folder / "scored").config("pool.backend=inline"))
    return folder / "scored"


@pytest.fixture(scope="module")
def seconds(tmp_path_factory: pytest.TempPathFactory, examples: str, undisturbed: Path) -> float:
    """How long the whole command takes where nobody disturbs it."""
    folder = tmp_path_factory.mktemp("command")
    finished = Scoring(folder, examples, folder / "scored").run()
    assert finished.returncode == 0, finished.text
    assert_same(folder / "scored", undisturbed)
    return finished.seconds


@pytest.fixture
def scoring(tmp_path: Path, examples: str) -> Iterator[Scoring]:
    with nothing_left_behind():
        yield Scoring(tmp_path, examples, tmp_path / "scored")


def assert_finishes_the_same(scoring: Scoring, undisturbed: Path, seen: dict[str, int]) -> None:
    """The same command once more ends well, repeats nothing that was done, and gives what it should."""
    finished = scoring.run()
    assert finished.returncode == 0, finished.text
    assert_same(scoring.output, undisturbed)
    written = scoring.files()
    assert {name: written[name] for name in seen} == seen, "finished shards were done again"


def disturb(running: Running, scoring: Scoring, victims: list[str], moments: Moments, most_shards: int) -> int:
    """Kill actors of one start at random moments; the number of kills that came before its end."""
    kills = 0
    for victim in victims:
        moment = moments.wait_within_work(running, most_shards)
        if moment is None or not running.wait_until(partial(_have_started, running, 1 + (victim == "all actors"))):
            break
        pids = running.actors()
        chosen = pids if victim == "all actors" else moments.one_of(pids)
        running.kill_actors(chosen)
        kills += 1
        print(f"killed {victim} ({len(chosen)}) after {moment}; {len(scoring.files())} of {SHARDS} shards done")
    return kills


def kill_starts(scoring: Scoring, victim: str, moments: Moments, times: int, most_shards: int) -> dict[str, int]:
    """Start the command and kill it, again and again. The shards that were done, and when they were written."""
    seen: dict[str, int] = {}
    kills = 0
    while kills < times:
        with scoring.start() as running:
            moment = moments.wait_for_one(running, most_shards)
            if moment is not None:
                (running.kill_driver if victim == "driver" else running.kill_cluster)()
        if moment is None:
            assert running.returncode == 0 or running.ray_did_not_start, running.text
            if running.returncode == 0:  # it was done before: begin a new series in an empty folder
                shutil.rmtree(scoring.output)
                seen = {}
            continue
        files = scoring.files()
        assert {name: files[name] for name in seen} == seen, "finished shards were done again"
        seen, kills = files, kills + 1
        print(f"killed {victim} after {moment}; {len(seen)} of {SHARDS} shards done")
    return seen


@pytest.mark.smoke
def test_a_kill_of_each_kind_loses_and_repeats_nothing(scoring: Scoring, undisturbed: Path) -> None:
    moments = Moments(SEED)
    with scoring.start() as running:
        assert disturb(running, scoring, ["an actor"], moments, most_shards=6) == 1
        assert moments.wait_within_work(running, most_shards=4)
        before_end = scoring.files()
        running.kill_driver()
    assert len(before_end) < SHARDS
    seen = scoring.files()
    with scoring.start() as running:
        assert moments.wait_within_work(running, most_shards=4)
        running.kill_cluster()
    assert_finishes_the_same(scoring, undisturbed, before_end | seen)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("victim", "kills"), [("an actor", 8), ("all actors", 4)])
def test_actors_killed_at_random_moments(
    scoring: Scoring, undisturbed: Path, seconds: float, victim: str, kills: int
) -> None:
    moments, done = Moments(SEED + kills, seconds), 0
    while done < kills:
        shutil.rmtree(scoring.output, ignore_errors=True)
        with scoring.start() as running:
            done += disturb(running, scoring, [victim] * min(kills - done, 4), moments, most_shards=8)
            seen = scoring.files()
            running.wait()
        if not running.ray_did_not_start:
            assert running.returncode == 0, running.text
            assert_finishes_the_same(scoring, undisturbed, seen)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("victim", "kills"), [("driver", 5), ("cluster", 5)])
def test_starts_killed_at_random_moments(
    scoring: Scoring, undisturbed: Path, seconds: float, victim: str, kills: int
) -> None:
    moments = Moments(SEED + 100 * len(victim), seconds)
    seen = kill_starts(scoring, victim, moments, kills, most_shards=9)
    assert_finishes_the_same(scoring, undisturbed, seen)


@pytest.mark.exhaustive
def _have_started(running: Running, number: int) -> bool:
    return len(running.actors()) >= number


def _changed(scoring: Scoring, before: dict[str, int]) -> bool:
    return scoring.files() != before


def test_killed_while_overwriting(scoring: Scoring, undisturbed: Path) -> None:
    """The first configuration's folder is replaced by the second's, whenever the replacing is killed."""
    moments = Moments(SEED)
    other = Scoring(scoring.output.parent, "", scoring.output)
    other.words = [*scoring.words, "hidden_window=4"]
    assert other.run().returncode == 0
    kills = 0
    while kills < 2:
        before = scoring.files()
        with scoring.start("overwrite=true") as running:
            begun = running.wait_until(partial(_changed, scoring, before))
            moment = moments.wait_a_little(running) if begun else None
            running.kill_cluster()
        if moment is not None:
            kills += 1
            print(f"killed cluster {moment} after it began to overwrite; {len(scoring.files())} files")
    finished = scoring.run("overwrite=true")
    assert finished.returncode == 0, finished.text
    assert_same(scoring.output, undisturbed)


def test_a_row_that_makes_the_model_raise_costs_only_itself(undisturbed: Path) -> None:
    bad = example_rows()[UNUSABLE]["id"]
    (reject,) = rejects_of(undisturbed)
    assert reject["id"] == bad
    assert reject["reason"].startswith("unknown token: id 1000000")
    assert len(table_of(undisturbed)) == ROWS - 1


def test_damaged_files_are_made_again_and_only_those(scoring: Scoring, undisturbed: Path) -> None:
    """Even in a folder that says it is complete."""
    shutil.copytree(undisturbed, scoring.output)
    kept = scoring.files()
    data, rejects = scoring.output / "data", scoring.output / "rejects"
    (with_rejects,) = rejects.iterdir()
    (data / "part-000005.parquet").write_bytes(b"")
    (data / "part-000006.parquet").write_bytes((data / "part-000006.parquet").read_bytes()[:-100])
    (data / "part-000007.parquet").unlink()
    shutil.copy(data / "part-000008.parquet", data / "part-000009.parquet")
    with_rejects.write_bytes(with_rejects.read_bytes()[:50])
    damaged = {f"part-{number:06d}.parquet" for number in (5, 6, 7, 9)} | {with_rejects.name}
    assert not nlft_ray.score(scoring.config()).reused
    assert_same(scoring.output, undisturbed)
    written = scoring.files()
    assert {name for name in kept if written[name] != kept[name]} == damaged


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said_in_a_line_and_the_rest_done_later(
    tmp_path: Path, examples: str, undisturbed: Path, small_disk: Path
) -> None:
    scoring = Scoring(tmp_path, examples, small_disk / "scored")
    with pytest.raises(UserError, match=r"the disk is full\. Free space, and run the same command again") as caught:
        nlft_ray.score(scoring.config())
    assert "\n" not in str(caught.value)
    assert str(small_disk) in str(caught.value)
    seen = scoring.files()
    assert 0 < len(seen) < SHARDS
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    nlft_ray.score(scoring.config())
    assert_same(scoring.output, undisturbed)
    written = scoring.files()
    assert {name: written[name] for name in seen} == seen
    # an actor that was writing when another met the full disk may leave half a file; the next start clears it
    assert not list((scoring.output / "data").glob(".*"))


def test_another_configuration_is_refused_by_field_and_changes_nothing(scoring: Scoring, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, scoring.output)
    other = scoring.config("hidden_window=4", "pool.rows_per_shard=16")
    with pytest.raises(UserError, match=r"hidden_window: 8 → 4\n *config\.rows_per_shard: 8 → 16"):
        nlft_ray.score(other)
    assert nlft_ray.score(scoring.config()).reused
    assert_same(scoring.output, undisturbed)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("steps", range(7))
def test_killed_while_a_folder_is_emptied(tmp_path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun anew and killed after any step: neither foreign, nor complete, nor mixed."""
    folder, old, new = Folder(str(tmp_path / "out")), identity(), identity(hidden_window=4)
    begin(folder, old, overwrite=False)
    for name in ("data", "rejects"):
        (folder / name).write_text("part-000000.parquet", "made with the old settings")
    (folder / "data").write_text("part-000001.parquet", "the same")
    finish(folder, manifest())
    left = steps

    def counted(work: Any) -> Any:
        def step(self: Folder, *arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise _Killed
            left -= 1
            work(self, *arguments)

        return step

    def file_by_file(self: Folder) -> None:
        for name in self.files(""):
            self.delete(name)

    with monkeypatch.context() as patched, contextlib.suppress(_Killed):
        patched.setattr(Folder, "delete", counted(Folder.delete))
        patched.setattr(Folder, "remove", file_by_file)
        patched.setattr(Folder, "write_text", counted(Folder.write_text))
        begin(folder, new, overwrite=True)
    complete = folder.has(MANIFEST)
    assert complete == (steps == 0)
    if folder.files("plan.json") and 'hidden_window": 4' not in folder.read_text("plan.json"):
        with pytest.raises(UserError, match="hidden_window: 8 → 4"):
            begin(folder, new, overwrite=False)
    assert begin(folder, new, overwrite=True) is None
    assert folder.entries() in (["plan.json"], ["data", "plan.json", "rejects"])
    assert (folder / "data").files("") == (folder / "rejects").files("") == []
