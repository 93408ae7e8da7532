"""Files appear whole or not at all, on any filesystem."""

import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from nlft_ray.errors import UserError
from nlft_ray.storage import Folder, side_by_side


@pytest.fixture(params=["local", "fsspec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "f") if request.param == "local" else f"fsspec+memory://{tmp_path}/f")


def test_what_is_written_is_read_back(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.files(".txt") == []
    (folder / "deep").write_text("a.txt", "grüße")
    folder.write_text("b.txt", "x")
    assert (folder / "deep").read_text("a.txt") == "grüße"
    assert folder.files(".txt") == ["b.txt"]
    assert folder.has("b.txt")
    assert not folder.has("deep")
    folder.remove()
    assert not folder.exists()


def test_a_table_keeps_its_footer(folder: Folder) -> None:
    table = pa.table({"a": [1, 2, 3]})
    folder.write_table("part.parquet", table, {"note": "n"})
    file = folder.open_parquet("part.parquet")
    assert file.metadata.metadata[b"note"] == b"n"
    assert file.read().to_pydict() == {"a": [1, 2, 3]}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_text("a.txt", "old")

    def write_half() -> None:
        with folder._committed("a.txt") as path:
            Path(path).write_text("half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert folder.read_text("a.txt") == "old"


def test_an_unknown_scheme_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match="nosuch"):
        Folder("nosuch://bucket/x").exists()


def test_files_are_looked_at_side_by_side_and_reported_in_order() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def look(number: int) -> int:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01 if number % 2 else 0.001)
        with lock:
            under_way -= 1
        return number

    assert list(side_by_side(look, range(2000))) == list(range(2000))
    assert most > 1
