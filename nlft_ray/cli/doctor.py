"""`nlft-ray doctor`: what is installed, what there is to work with, what will be used and what is missing.

For oneself, and to go with a bug report: no value of a secret is shown, and nothing is started or downloaded.
"""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from pydantic_core import PydanticCustomError
from rich.console import Console
from rich.text import Text

import nlft_ray
from nlft_ray.cli.tables import result_console, result_table
from nlft_ray.config import ClusterConfig
from nlft_ray.config.shared import automatic_dtype, without_credentials
from nlft_ray.execution import process

GIB = 2**30
_OPTIONAL = {
    "openai": "a judge on a server: judge.server",
    "bitsandbytes": "quantised weights: model.quantization",
    "flash-attn": "model.attention=flash_attention_2",
    "wandb": "train.report_to=[wandb]",
    "mlflow": "train.report_to=[mlflow]; mlflow-skinny will do",
    "trackio": "train.report_to=[trackio]",
}
"""Package that only some settings need → which."""
_STANDS_FOR = {"mlflow": ("mlflow", "mlflow-skinny")}
_VARIABLES = (
    "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "WANDB_MODE",
    "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "TMPDIR",
)  # fmt: skip
_SECRETS = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS")
_LEAST_FREE_GIB = 1
_SECONDS_TO_CONNECT = 2.0


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what is there, and what that means; `wrong` where something needed is missing."""

    name: str
    value: str
    note: str = ""
    wrong: bool = False


def doctor(console: Console | None = None) -> bool:
    """Print all findings; whether everything that is needed is there."""
    console = console or result_console()
    wrong: list[Finding] = []
    for title, look in _SECTIONS.items():
        findings = list(look())
        table = result_table(title, ("", "", ""), left=("",), show_header=False)
        for finding in findings:
            style = "red" if finding.wrong else ""
            table.add_row(*(Text(text, style=style) for text in (finding.name, finding.value, finding.note)))
        console.print(table)
        wrong += [finding for finding in findings if finding.wrong]
    for finding in wrong:
        console.print(Text(f"Missing: {finding.name}: {finding.value}. {finding.note}", style="red"))
    if not wrong:
        console.print("Nothing that is needed is missing.")
    return not wrong


def _software() -> Iterator[Finding]:
    yield Finding("nlft-ray", nlft_ray.__version__, str(Path(nlft_ray.__file__).parent))
    yield Finding("Python", platform.python_version(), sys.executable)
    yield Finding("system", platform.platform())
    try:
        needed = [Requirement(line) for line in metadata.requires("nlft-ray") or ()]
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", "unknown", "nlft-ray is not installed here: `pip install -e .` in its folder", wrong=True
        )
        return
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _needed(requirement)


def _needed(requirement: Requirement) -> Finding:
    version = _version(requirement.name)
    if version is None:
        return Finding(requirement.name, "not installed", f"pip install '{requirement}'", wrong=True)
    fits = requirement.specifier.contains(version, prereleases=True)
    return Finding(requirement.name, version, "" if fits else f"pip install '{requirement}'", wrong=not fits)


def _optional() -> Iterator[Finding]:
    for package, use in _OPTIONAL.items():
        versions = filter(None, map(_version, _STANDS_FOR.get(package, (package,))))
        yield Finding(package, next(versions, "not installed"), use)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    with process.starting():
        import torch

        from nlft_ray.planning.devices import devices_of

    on_gpu, built_for = torch.cuda.is_available(), torch.version.cuda or torch.version.hip
    for number in range(torch.cuda.device_count() if on_gpu else 0):
        gpu = torch.cuda.get_device_properties(number)
        yield Finding(f"GPU {number}", gpu.name, f"{gpu.total_memory / GIB:.1f} GiB")
    if not on_gpu:
        hidden = "nvidia-smi is here: the driver is too old for it, or CUDA_VISIBLE_DEVICES hides all"
        note = f"torch is built for CUDA {built_for}" if built_for else "torch is built for CPUs alone"
        yield Finding("GPU", "none", f"{note}; {hidden}" if built_for and shutil.which("nvidia-smi") else note)
    cores = os.cpu_count() or 1
    yield Finding("CPU cores", f"{process.usable_cpus()} of {cores}", "that this process may use")
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    yield Finding("C compiler", compiler or "none", "" if compiler else "on a GPU, DeepSpeed and triton ask for one")
    yield Finding("will be used", str(devices_of(ClusterConfig())), f"weights in {automatic_dtype(on_gpu=on_gpu)}")


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        yield Finding("cluster", "none is named", "stages start one on this machine (RAY_ADDRESS names another)")
    elif address == "auto":
        yield Finding("cluster", address, "stages look for one on this machine")
    elif address.startswith("http"):
        note = (
            "that is a dashboard, for `ray job submit`: it belongs into RAY_API_SERVER_ADDRESS; stages need host:6379"
        )
        yield Finding("RAY_ADDRESS", address, note, wrong=True)
    else:
        answer = _answer_at(address)
        note = "start the cluster, mend the address, or unset RAY_ADDRESS" if answer else "it answers"
        yield Finding("RAY_ADDRESS", address + (f": {answer}" if answer else ""), note, wrong=answer is not None)


def _answer_at(address: str) -> str | None:
    """Why nobody can be reached at `host:port`, or `ray://host:port`; None where somebody can."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((place.hostname, place.port or 6379), timeout=_SECONDS_TO_CONNECT):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def _disks() -> Iterator[Finding]:
    from huggingface_hub import constants

    scratch = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    for name, place in (
        ("runs, if written here", Path("runs")),
        ("models of the hub", Path(constants.HF_HUB_CACHE)),
        ("Ray's files", Path(scratch) / "ray"),
    ):
        yield _disk(name, place.expanduser().absolute())
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield Finding("shared memory", f"{shutil.disk_usage(shared).free / GIB:.1f} GiB free", "Ray's tables lie there")


def _disk(name: str, place: Path) -> Finding:
    """Room where a folder is, or would be made."""
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(there, os.W_OK):
        return Finding(name, "may not be written to", str(place), wrong=True)
    free = shutil.disk_usage(there).free / GIB
    return Finding(name, f"{free:.1f} GiB free", str(place), wrong=free < _LEAST_FREE_GIB)


def _environment() -> Iterator[Finding]:
    for variable in _VARIABLES:
        if value := os.environ.get(variable):
            yield Finding(variable, _shown(value))
    for variable in _SECRETS:
        yield Finding(variable, "set" if os.environ.get(variable) else "not set")


def _shown(value: str) -> str:
    try:
        return without_credentials(value)
    except PydanticCustomError:
        return "set; it holds a secret"


_SECTIONS: dict[str, Callable[[], Iterator[Finding]]] = {
    "Software": _software,
    "Packages that some settings need": _optional,
    "Devices": _devices,
    "Ray": _ray,
    "Disk": _disks,
    "Environment": _environment,
}
