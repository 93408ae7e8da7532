"""What no linter checks: drivers start light, and every test checks something."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.system
@pytest.mark.smoke
@pytest.mark.parametrize("stage", ["evaluate", "judge", "sample", "score", "train"])
def test_a_driver_has_no_transformers_before_it_starts_ray(stage: str) -> None:
    """Imported while Ray starts, it costs no time. So it is with torch, but that Ray Train imports it itself."""
    late = ["transformers"] if stage == "train" else ["torch", "transformers"]
    code = f"import sys, nlft_ray.stages.{stage}.job; print({set(late)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.system
@pytest.mark.smoke
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
