"""Natural Language Fine-Tuning (arXiv 2412.20382), distributed on Ray.

Each stage is a function of its configuration: `nlft_ray.score(ScoreConfig(input=…, output=…, model=…))`, and likewise
`import_data`, `sample`, `judge`, `train`, `export`, `evaluate`, `report`; `nlft_ray.run(RunConfig(…))` chains them, and
`nlft_ray.plan(PlanConfig(…))` says what fits on which machines.
A stage's code is imported when it is first named, so that `import nlft_ray` costs nothing.
"""

from typing import Any

from nlft_ray._version import __version__ as __version__

_FUNCTIONS = {
    "import_data": "import",
    "sample": "sample",
    "judge": "judge",
    "score": "score",
    "train": "train",
    "export": "export",
    "evaluate": "evaluate",
    "report": "report",
}


def __getattr__(name: str) -> Any:
    if name == "run":
        from nlft_ray.chain import run

        return run
    if name == "plan":
        from nlft_ray.planning.plan import plan

        return plan
    if name in _FUNCTIONS:
        from nlft_ray.stages import STAGES

        return STAGES[_FUNCTIONS[name]].load_function()
    raise AttributeError(f"module 'nlft_ray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "run", "plan", *_FUNCTIONS])
