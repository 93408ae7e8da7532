"""The file of an experiment: the grid, and the settings of `nlft-ray run` that all its cells share."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from experiments.methods import METHODS
from nlft_ray.config import ImportOptions, RunConfig, Strict
from nlft_ray.config.shared import FolderPath


class Experiment(Strict):
    """Methods × numbers of training questions × seeds."""

    title: str
    """Heading of the record."""
    output: FolderPath
    """Folder on this machine: a folder for each cell of the grid, and the record."""
    run: dict[str, Any]
    """Settings of `nlft-ray run` that all cells share; the grid sets folder, policies, seeds, steps, and how many
    questions."""
    test_questions: ImportOptions
    """The questions that every model answers."""
    methods: Annotated[list[str], Field(min_length=1)]
    """Names of methods (`experiments/methods.py`), in the order in which the record shows them."""
    reference: str = "nlft"
    """The method that the others are compared with, question by question."""
    examples: Annotated[list[PositiveInt], Field(min_length=1)]
    """Numbers of training questions."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1)]
    """Each draws other responses and another order of training, and other questions where the source is the sandbox."""
    steps_per_question: PositiveFloat = 1.25
    """Optimizer steps of every method, per training question: all have the same budget, however many questions gave
    them something to train on. 1.25 is five epochs in batches of four."""
    learning_rates: dict[str, PositiveFloat] = {}
    """Method → its learning rate, where it is another than that of `run`."""
    worked: Literal["sandbox", "standard_answer"] = "standard_answer"
    """Where the worked solution of a question stands: the sandbox writes one; other data have it in their answers."""

    @model_validator(mode="after")
    def _methods_are_known(self) -> "Experiment":
        named = [*self.methods, self.reference, *self.learning_rates]
        unknown = sorted({name for name in named if name not in METHODS})
        if unknown:
            raise ValueError(f"no method is called {', '.join(unknown)}; there are {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods: each may stand once, got {self.methods}")
        if self.reference not in self.methods:
            raise ValueError(f"reference: {self.reference} is none of the methods {', '.join(self.methods)}")
        if taken := sorted({"run_dir", "policies", "test_questions"} & set(self.run)):
            raise ValueError(f"run: the grid sets {', '.join(taken)} itself")
        return self

    @model_validator(mode="after")
    def _runs_are_runs(self) -> "Experiment":
        self.settings(Cell(examples=self.examples[0], seed=self.seeds[0]), self.methods[0])
        return self

    def settings(self, cell: "Cell", method: str, **sections: Any) -> RunConfig:
        """The settings of `nlft-ray run` for a method in a cell; `sections` replace whole sections.

        Raises:
            pydantic.ValidationError: `run` and `sections` are no settings of a run.
        """
        steps = max(1, round(self.steps_per_question * cell.examples))
        training: dict[str, Any] = {"seed": cell.seed, "max_steps": steps, "epochs": steps}  # an epoch has a step
        if method in self.learning_rates:
            training["learning_rate"] = self.learning_rates[method]
        changed = {
            "questions": {"limit": cell.examples, "seed": cell.seed},
            "sample": {"seed": cell.seed},
            "judge": {"seed": cell.seed},
            "train": training,
        }
        values = self.run | {name: self.run.get(name, {}) | change for name, change in changed.items()}
        values |= {"run_dir": f"{cell.folder(self)}/{METHODS[method].data}", "policies": [METHODS[method].policy]}
        return RunConfig.model_validate(values | sections)

    @property
    def cells(self) -> list["Cell"]:
        """Every cell of the grid, small ones first."""
        return [Cell(examples=examples, seed=seed) for examples in sorted(self.examples) for seed in self.seeds]


class Cell(Strict):
    """A number of training questions and a seed, which all methods share."""

    examples: PositiveInt
    seed: NonNegativeInt

    def folder(self, experiment: Experiment) -> str:
        return f"{experiment.output}/cells/{self.examples}-questions/seed-{self.seed}"
