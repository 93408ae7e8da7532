"""An object is whole or not there, and every refusal of a store is one message."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest

from nlft_ray.cli.main import main
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from tests.storage.server import DENIED, SLOW_DOWN, Fault, Store

LARGE = 32 << 20  # bytes: more than one part of an upload


class Stopped(Exception):
    """Here it ends, as it may anywhere."""


def stopped_by_an_exception(folder: Folder) -> None:
    with folder.atomic_file("a") as path:
        path.write_bytes(bytes(LARGE))
        raise Stopped


def stopped_in_a_table(folder: Folder) -> None:
    """The second of two columns cannot be written, when the first stands in the file already."""
    folder.write_table("a", pa.table({"a": [1, 2], "b": pa.array([{}, {}], pa.struct([]))}))


def stopped_among_files(folder: Folder) -> None:
    with folder.atomic_files() as local:
        (local / "a").write_bytes(bytes(LARGE))
        raise Stopped


def refused_in_the_middle(folder: Folder) -> None:
    with folder.atomic_file("a") as path:
        path.write_bytes(bytes(LARGE))


def stopped_while_uploading(folder: Folder, by: signal.Signals) -> int:
    """Parts are slow, and the signal comes before the last of them. The process's exit code."""
    code = (
        "import sys; from nlft_ray.storage.folder import Folder\n"
        "with Folder(sys.argv[1]).atomic_file('a') as path:\n"
        f"    path.write_bytes(bytes({LARGE})); print('written', flush=True)"
    )
    words = [sys.executable, "-c", code, str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    time.sleep(0.7)
    process.send_signal(by)
    return process.wait()


def killed_while_uploading(folder: Folder) -> None:
    if stopped_while_uploading(folder, signal.SIGKILL) == -signal.SIGKILL:
        raise Stopped


@pytest.mark.parametrize(
    ("stop", "ends_with", "second_part"),
    [
        (stopped_by_an_exception, Stopped, None),
        (stopped_in_a_table, pa.ArrowException, None),
        (stopped_among_files, Stopped, None),
        (refused_in_the_middle, UserError, DENIED),
        (killed_while_uploading, Stopped, Fault(seconds=3)),
    ],
)
def test_half_an_upload_leaves_the_old_object(
    store: Store, stop: Callable[[Folder], None], ends_with: type[Exception], second_part: Fault | None
) -> None:
    folder = Folder(store.uri("run/data"))
    folder.write_text("a", "old")
    store.proxy.weather = lambda request: second_part if "partNumber=2" in request.query else None
    with pytest.raises(ends_with):
        stop(folder)
    assert folder.read_text("a") == "old"
    assert store.objects() == {"run/data/a": 3}
    assert len(store.proxy.refused + store.proxy.delayed) == (second_part is not None)


def test_an_interrupt_waits_for_the_upload_that_is_under_way(store: Store) -> None:
    folder = Folder(store.uri("run/data"))
    store.proxy.weather = lambda request: Fault(seconds=2) if "partNumber=2" in request.query else None
    assert stopped_while_uploading(folder, signal.SIGINT) != 0
    assert len(store.proxy.delayed) == 1
    assert store.objects() == {"run/data/a": LARGE}


def test_a_file_that_cannot_be_read_to_its_end_leaves_no_object(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_of_it(source: BinaryIO, target: BinaryIO, _: int) -> None:
        target.write(source.read(LARGE // 2))
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(shutil, "copyfileobj", half_of_it)
    with pytest.raises(UserError, match="the disk is broken"):
        refused_in_the_middle(Folder(store.uri("run/data")))
    assert store.objects() == {}


def test_a_large_object_comes_back_whole_in_bad_weather(store: Store) -> None:
    content = os.urandom(LARGE)
    store.proxy.weather = lambda request: SLOW_DOWN if request.number in (2, 3, 5) else None
    folder = Folder(store.uri("run/weights"))
    with folder.atomic_files() as local:
        (local / "model.safetensors").write_bytes(content)
    with folder.local_files(["model.safetensors"]) as local:
        assert (local / "model.safetensors").read_bytes() == content
    assert len(store.proxy.refused) == 3


REFUSED = "the store refuses these credentials. Set those .*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
READING = {
    "input": ["score", "input=s3://bucket/x", "output=out", "model.path=sandbox"],
    "output": ["import", "source=sandbox", "format=sandbox", "limit=1", "output=s3://bucket/x"],
    "source": ["import", "source=s3://bucket/x.jsonl", "format=gsm8k", "output=out"],
    "model": ["plan", "s3://bucket/x"],
    "run": ["report", "s3://bucket/x"],
    "scored": ["inspect", "s3://bucket/x"],
    "settings": ["score", "--config", "s3://bucket/x.yaml"],
}


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("words", READING.values(), ids=READING)
def test_credentials_that_are_refused_are_one_line(
    words: list[str], store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store.proxy.weather = lambda request: DENIED
    line = said(words, capsys)
    assert line.startswith("nlft-ray: s3://bucket/x")
    assert len(store.proxy.refused) <= 2, "they are not tried again and again"
    assert re.search(REFUSED, line), line


def test_a_store_that_stays_overloaded_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    store.proxy.weather = lambda request: SLOW_DOWN
    line = said(READING["output"], capsys)
    assert "s3://bucket/x: the store is overloaded or out of order, after 3 tries (AWS_MAX_ATTEMPTS). Wait" in line
    assert len(store.proxy.refused) in (3, 4)


def test_a_store_that_is_not_there_is_one_line(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = said(READING["output"], capsys)
    assert "s3://bucket/x: the store does not answer. Check that this machine and every node reach it" in line


def test_a_bucket_that_is_not_there_is_one_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*READING["output"][:-1], "output=s3://no-such-bucket/x"]
    assert "there is no such bucket. Create it, or correct the name" in said(words, capsys)


def test_what_may_follow_a_uri_is_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    here = f"s3://bucket/x?endpoint_override={store.proxy.endpoint}&region=us-east-1"
    (Folder(here) / "deep").write_text("a.txt", "text")
    assert store.objects() == {"x/deep/a.txt": 4}
    with pytest.raises(UserError, match=r"unknown options \['access_key'\]; .* endpoint_override, region, scheme"):
        Folder("s3://bucket/x?access_key=1").exists()
    with pytest.raises(UserError, match=r"s3://…: it holds credentials\. Give those in the environment"):
        Folder("s3://key:sesame@bucket/x").exists()
    with pytest.raises(UserError, match="names no bucket; write s3://bucket/folder"):
        Folder("s3:///x").exists()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(UserError, match="AWS_MAX_ATTEMPTS: 'many' is no number of tries"):
        Folder(here).exists()
