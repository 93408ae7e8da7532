"""`core` imports the standard library, numpy and torch; its policies not even torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nlft_ray.core

CORE = Path(nlft_ray.core.__file__).parent
FILES = sorted(CORE.rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module


def test_there_is_something_to_check():
    assert {"loss.py", "growing.py", "nlft.py"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_imports(path):
    for module in imported(path):
        top = module.split(".")[0]
        ours = module.startswith("nlft_ray.core.")
        assert ours or top in sys.stdlib_module_names | {"numpy", "torch"}, module


def test_the_package_only_has_a_docstring():
    body = ast.parse((CORE / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_policies_and_answers_do_without_torch():
    check = "import sys, nlft_ray.core.policies, nlft_ray.core.answers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
