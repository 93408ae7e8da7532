"""Files appear whole or not at all, on any filesystem."""

import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder, map_concurrently


@pytest.fixture(params=["local", "fsspec"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "f") if request.param == "local" else f"fsspec+memory://{tmp_path}/f")


def test_what_is_written_is_read_back(folder: Folder) -> None:
    assert not folder.exists()
    assert folder.files(".txt") == []
    (folder / "deep").write_text("a.txt", "grüße")
    folder.write_text("b.txt", "an earlier, longer text")
    folder.write_text("b.txt", "x")
    assert folder.read_text("b.txt") == "x"
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


def test_a_failed_write_leaves_the_old_file_and_nothing_else(folder: Folder) -> None:
    folder.write_text("a.txt", "old")

    def write_half() -> None:
        with folder.atomic_file("a.txt") as path:
            path.write_text("half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_half()
    assert [info.base_name for info in folder._infos()] == ["a.txt"]
    assert folder.read_text("a.txt") == "old"


def test_files_written_side_by_side_stand_in_the_folder_at_the_end(folder: Folder) -> None:
    folder.write_text("plan.json", "{}")

    def fill(*, killed: bool) -> None:
        with folder.atomic_files() as local:
            (local / "a").write_bytes(b"1" * 10)
            (local / "b").write_bytes(b"2")
            if killed:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        fill(killed=True)
    assert [info.base_name for info in folder._infos()] == ["plan.json"]
    fill(killed=False)
    assert folder.files("") == ["a", "b", "plan.json"]
    with folder.local_files(["a", "b"]) as local:
        assert [(local / name).read_bytes() for name in "ab"] == [b"1" * 10, b"2"]
    assert list(folder.read_blocks("a", [0, 8], 4)) == [b"1111", b"11"]
    with folder.open("a") as stream:
        assert stream.read() == b"1" * 10


@pytest.mark.parametrize(
    ("uri", "child", "parent", "name"),
    [
        ("/a/b/", "/a/b/c", "/a", "b"),
        ("b", "b/c", ".", "b"),
        ("/b", "/b/c", "/", "b"),
        ("s3://bucket/a/b", "s3://bucket/a/b/c", "s3://bucket/a", "b"),
        ("s3://bucket/a?region=eu-west-1", "s3://bucket/a/c?region=eu-west-1", "s3://bucket?region=eu-west-1", "a"),
        ("s3://bucket", "s3://bucket/c", "s3://bucket", "bucket"),
        ("/what?/a", "/what?/a/c", "/what?", "a"),
    ],
)
def test_options_of_a_uri_stay_at_its_end(uri: str, child: str, parent: str, name: str) -> None:
    folder = Folder(uri)
    assert ((folder / "c").uri, folder.parent.uri, folder.name) == (child, parent, name)


def test_google_cloud_is_known_without_being_asked() -> None:
    folder = Folder("gs://bucket/run") / "scored"
    assert isinstance(folder.filesystem, pafs.GcsFileSystem)
    assert folder.path == "bucket/run/scored"


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

    assert list(map_concurrently(look, range(2000))) == list(range(2000))
    assert most > 1
