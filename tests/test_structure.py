"""The rules of who may import whom, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nlft_ray"
FILES = sorted(PACKAGE.rglob("*.py"))
STAGES = sorted(path.name for path in (PACKAGE / "stages").iterdir() if (path / "job.py").is_file())


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path: Path, package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imported(path))


def where(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_stage_is_found() -> None:
    assert STAGES == ["evaluate", "export", "importing", "judge", "report", "sample", "score", "train"]


@pytest.mark.parametrize("path", FILES, ids=where)
def test_ray_stands_only_in_jobs_and_the_runtime(path: Path) -> None:
    allowed = path.name == "job.py" or where(path) == "ray_runtime.py"
    assert allowed or not imports(path, "ray")


@pytest.mark.parametrize("path", FILES, ids=where)
def test_deepspeed_stands_only_in_training(path: Path) -> None:
    allowed = where(path).startswith(("stages/train/", "stages/export/"))
    assert allowed or not imports(path, "deepspeed")


@pytest.mark.parametrize("path", FILES, ids=where)
def test_core_imports_nothing_of_the_package(path: Path) -> None:
    if where(path).startswith("core/"):
        foreign = [
            name for name in imported(path) if name.startswith("nlft_ray") and not name.startswith("nlft_ray.core")
        ]
        assert foreign == []


@pytest.mark.parametrize("name", ["schema", "config", "manifest", "prompts", "storage", "shards", "settings"])
def test_contracts_import_no_stage_and_no_engine(name: str) -> None:
    paths = [path for path in FILES if where(path).partition("/")[0].removesuffix(".py") == name]
    assert paths
    for path in paths:
        for package in ("nlft_ray.stages", "nlft_ray.chain", "nlft_ray.ray_runtime", "ray", "deepspeed", "torch"):
            assert not imports(path, package)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    others = [f"nlft_ray.stages.{other}" for other in STAGES if other != stage]
    for path in (PACKAGE / "stages" / stage).rglob("*.py"):
        assert not any(imports(path, other) for other in [*others, "nlft_ray.chain", "nlft_ray.cli"])


@pytest.mark.parametrize("stage", ["evaluate", "judge", "sample", "score", "train"])
def test_a_driver_has_no_transformers_before_it_starts_ray(stage: str) -> None:
    """Imported while Ray starts, it costs no time. So it is with torch, but that Ray Train imports it itself."""
    late = ["transformers"] if stage == "train" else ["torch", "transformers"]
    code = f"import sys, nlft_ray.stages.{stage}.job; print({set(late)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_only_the_command_line_knows_all_stages() -> None:
    knowing = {where(path) for path in FILES if "nlft_ray.stages.STAGES" in set(imported(path))}
    knowing |= {where(path) for path in FILES if "nlft_ray.stages" in set(imported(path))}
    assert knowing <= {"__init__.py", "cli.py", "chain.py"}


TESTS = sorted((PACKAGE.parent / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_no_test_asserts_nothing(path: Path) -> None:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef) and function.name.startswith("test_"):
            assert any(_checks(node) for node in ast.walk(function)), f"{path.name}: {function.name} checks nothing"


def _checks(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    return called == "pytest.raises" or "assert" in called or called.startswith(("check_", "_check"))
