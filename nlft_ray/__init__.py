"""Natural Language Fine-Tuning (arXiv 2412.20382), distributed on Ray.

Each stage is a function of its configuration: `nlft_ray.score(ScoreConfig(input=…, output=…, model=…))`, and likewise
`import_data`, `sample`, `judge`, `train`, `export`, `evaluate`, `report`; `nlft_ray.run(RunConfig(…))` chains them, and
`nlft_ray.plan(PlanConfig(…))` says what fits on which machines.
A stage's code is imported when it is first named, so that `import nlft_ray` costs nothing.
"""

import importlib
from typing import Any

from nlft_ray._version import __version__ as __version__


def _modules() -> dict[str, str]:
    """Name of each public function → the module that holds it."""
    from nlft_ray.stages import STAGES

    of_stages = {name: module for module, name in (stage.function.split(":") for stage in STAGES.values())}
    return of_stages | {"run": "nlft_ray.chain", "plan": "nlft_ray.planning.plan"}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in (modules := _modules()):
        raise AttributeError(f"module 'nlft_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(modules[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_modules()])
