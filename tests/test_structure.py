"""What no linter checks: the import contracts hold, drivers start light, and every test checks something."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_the_import_contracts_hold() -> None:
    """The contracts stand in pyproject.toml, under [tool.importlinter]."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("stage", ["evaluate", "judge", "sample", "score", "train"])
def test_a_driver_has_no_transformers_before_it_starts_ray(stage: str) -> None:
    """Imported while Ray starts, it costs no time. So it is with torch, but that Ray Train imports it itself."""
    late = ["transformers"] if stage == "train" else ["torch", "transformers"]
    code = f"import sys, nlft_ray.stages.{stage}.job; print({set(late)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_policies_and_answers_do_without_torch() -> None:
    code = "import sys, nlft_ray.core.policies, nlft_ray.core.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
