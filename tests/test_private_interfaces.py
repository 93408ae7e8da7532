"""What the package leans on that its libraries do not promise. A new release is tried against this list first.

| library | name | what for | without it |
|---|---|---|---|
| Ray | `ray._private.ray_constants.ENABLE_RAY_CLUSTER` | a local cluster keeps to loopback | refused, not exposed |
| Ray | `ray._raylet`, its C++ core's level of logging | no warnings that a user could only wonder about | they show |
| Ray | the text `timed out during startup` | a message instead of a trace | a trace |
| Ray Train | the name `WorkerHealthCheckFailedError` | a lost worker is told from one that raised | a trace |
| DeepSpeed | `ops.__compatible_ops__` | no C++ compiler at the first start on a CPU | training does not start |
| DeepSpeed | its optimizers' groups and states, `ds_numel` | checkpoints that fit every stage | checkpoints fail |
| transformers | `_attn_implementation`, `_supports_attention_backend` | whether texts can be packed | AttributeError |
| transformers | `_supports_flash_attn` | which families name their layers the windows | windows go unpacked |
| transformers | `eager_attention_forward` in a model's own file | packed soft caps and sinks | AttributeError |
| transformers | `_weight_conversions` | a quantised model is written merged | a merged folder does not load |
| transformers | `DynamicCache.layers` of `DynamicLayer` | states of a common beginning run once | AttributeError |

What DeepSpeed keeps is tested where it is used: `stages/train/test_checkpoints.py` and `test_loop.py`, over every ZeRO
stage; packing and common beginnings in `models/` and `stages/test_score.py`; quantised models that are merged in
`stages/export/test_export.py`.
"""

import ast
import ctypes
import inspect
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest
import ray._raylet
import ray.data
import torch
from ray._private import ray_constants
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from nlft_ray.execution import ray_actors, ray_cluster

PACKAGE = Path(__file__).parents[1] / "nlft_ray"
USED = {
    "_private",
    "_raylet",
    "__compatible_ops__",
    "_hp_optimizer_states_linked",
    "_lazy_init_hp_params_optimizer_state",
    "_attn_implementation",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_weight_conversions",
}
PYTHONS_OWN = {f"__{name}__" for name in ["cause", "context", "doc", "file", "future", "module", "name", "version"]}
PYTHONS_OWN |= {"_exit"}


def private_names(tree: ast.AST) -> set[str]:
    """What begins with an underscore, of all that is imported or asked of an object."""
    dotted = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            dotted.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            dotted += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted += [alias.name for alias in node.names]
    return {part for name in dotted for part in name.split(".") if part.startswith("_")}


def own_names(tree: ast.AST) -> set[str]:
    """What is defined or assigned in a file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
    return names


def test_no_other_private_name_is_used() -> None:
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    used, own = (set().union(*map(names, trees)) for names in (private_names, own_names))
    assert used - own - PYTHONS_OWN - {path.stem for path in PACKAGE.rglob("*.py")} == USED


def test_a_local_cluster_can_be_kept_on_loopback() -> None:
    """That it is, `clusters/test_security.py` tests."""
    assert ray_constants.ENABLE_RAY_CLUSTER in (True, False)


def test_rays_core_prints_nothing_here(ray_local: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither warnings nor the line by which it announces RAY_BACKEND_LOG_LEVEL."""
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ
    ray_actors._configure_ray_data()
    rows = ray.data.from_items([{"number": 1}]).map_batches(
        _Same, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1
    )
    assert rows.take_all() == [{"number": 1}]
    said = capfd.readouterr()
    assert "core_worker" not in said.out + said.err
    level = ctypes.c_int.in_dll(ctypes.CDLL(ray._raylet.__file__), ray_cluster._CORE_LOG_LEVEL)
    assert level.value == ray_cluster._FATAL


class _Same:
    def __call__(self, batch: dict[str, object]) -> dict[str, object]:
        return batch


def test_a_start_that_takes_too_long_says_so() -> None:
    assert "timed out during startup" in inspect.getsource(import_module("ray._private.node"))


def test_a_lost_worker_has_its_name() -> None:
    from nlft_ray.execution.ray_workers import _LOST

    assert issubclass(getattr(import_module("ray.train.v2._internal.exceptions"), _LOST), Exception)


def test_deepspeed_asks_what_it_may_compile() -> None:
    ops = import_module("deepspeed").ops
    assert "deepspeed_shm_comm" in ops.__compatible_ops__


def test_a_model_says_how_it_attends_and_keeps_its_states(random_llama: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(random_llama)
    assert model.config._attn_implementation == "sdpa"
    assert model._supports_attention_backend
    assert model._supports_flash_attn
    assert callable(sys.modules[type(model).__module__].eager_attention_forward)
    states = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    assert isinstance(states, DynamicCache)
    for layer in states.layers:
        assert type(layer) is DynamicLayer
        assert layer.is_initialized
        assert layer.keys is not None
        assert layer.values is not None
        assert layer.keys.shape == layer.values.shape
