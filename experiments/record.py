"""The record of a grid, in its folder: results.md with two plots, and the tables they were made of as Parquet."""

import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from experiments.config import Experiment
from experiments.methods import METHODS
from experiments.results import BEFORE, Tables
from experiments.statistics import Interval, compare, over_seeds
from nlft_ray.analysis.markdown import escaped, table
from nlft_ray.execution.process import usable_cpus
from nlft_ray.storage.folder import Folder

RECORD, BY_EXAMPLES, BY_SECONDS = "results.md", "accuracy-by-examples.png", "accuracy-by-seconds.png"
_STAGES = ("sample", "hint", "judge", "score", "train")


def write_record(experiment: Experiment, tables: Tables, command: Sequence[str], seconds: float) -> Path:
    """Write the record; the file of its text.

    Args:
        command: the words that made it, for others to repeat.
        seconds: what the command took; a grid that was complete already takes few.
    """
    folder = Folder(experiment.output)
    for name in ("outcomes", "answers"):
        with folder.atomic_file(f"{name}.parquet") as path:
            pq.write_table(getattr(tables, name), path)
    _plot(experiment, tables, folder)
    folder.write_text(RECORD, "\n\n".join(_sections(experiment, tables, command, seconds)) + "\n")
    return Path(folder.path) / RECORD


def _sections(experiment: Experiment, tables: Tables, command: Sequence[str], seconds: float) -> Iterable[str]:
    yield f"# {escaped(experiment.title)}"
    seeds = ", ".join(map(str, experiment.seeds))
    yield (
        f"Made by `{shlex.join(command)}` in {seconds:,.0f} s, at commit {_commit()}, on {_machine()}; seeds {seeds}. "
        f"Every method took {experiment.steps_per_question:g} optimizer steps per training question."
    )
    yield "## Accuracy, %\n\nMean over seeds, with Student's 95 % interval.\n\n" + _accuracy(experiment, tables)
    yield f"![accuracy by training questions]({BY_EXAMPLES})"
    for examples in sorted(experiment.examples):
        yield f"## {examples} training questions\n\n" + _comparisons(experiment, tables, examples)
        yield _costs(experiment, tables, examples)
    yield f"![accuracy by seconds]({BY_SECONDS})"


def _accuracy(experiment: Experiment, tables: Tables) -> str:
    sizes = sorted(experiment.examples)
    rows = [(BEFORE, "the model as it was", *[f"{100 * tables.before:.1f}"] * len(sizes))]
    for method in experiment.methods:
        cells = [_percent(over_seeds(tables.accuracies(method, size))) for size in sizes]
        rows.append((method, METHODS[method].what, *cells))
    return table(("method", "learns from", *(f"{size} questions" for size in sizes)), rows)


def _comparisons(experiment: Experiment, tables: Tables, examples: int) -> str:
    """Every method against the reference, question by question."""
    reference = tables.correct(experiment.reference, examples)
    rows = []
    for method in [BEFORE, *experiment.methods]:
        if method == experiment.reference:
            continue
        found = compare(tables.correct(method, examples), reference)
        rows.append((method, _percent(found.difference, sign=True), f"{found.won}", f"{found.lost}", f"{found.p:.2g}"))
    against = experiment.reference
    headings = ("method", f"accuracy minus {against}'s", "right where it is wrong", "wrong where it is right", "p")
    return (
        f"Against `{against}`, on the same questions and seeds: difference with its paired bootstrap interval (95 %, "
        f"over questions), and McNemar's exact test.\n\n" + table(headings, rows)
    )


def _costs(experiment: Experiment, tables: Tables, examples: int) -> str:
    rows = []
    for method in experiment.methods:
        seconds = [tables.stage_seconds(stage, method, examples) for stage in _STAGES]
        rows.append(
            (
                method,
                f"{tables.mean('rows_trained', method, examples):.0f}",
                *(f"{value:.1f}" if value else "–" for value in seconds),
                f"{sum(seconds):.1f}",
                f"{tables.mean('generated_tokens', method, examples):,.0f}",
                f"{tables.mean('peak_bytes', method, examples) / 2**20:,.0f}",
            )
        )
    headings = ("method", "rows trained", *(f"{stage}, s" for stage in _STAGES), "sum, s", "tokens", "peak, MiB")
    return (
        "Costs, mean over seeds: the stages that the method needs; tokens through the model to sample and to judge; "
        "the largest process.\n\n" + table(headings, rows)
    )


def _plot(experiment: Experiment, tables: Tables, folder: Folder) -> None:
    import matplotlib

    matplotlib.use("agg")  # no window
    from matplotlib import pyplot

    sizes = sorted(experiment.examples)
    for name, label in ((BY_EXAMPLES, "training questions"), (BY_SECONDS, "seconds, all stages that the method needs")):
        figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
        axes.axhline(100 * tables.before, color="grey", linestyle=":", label=BEFORE)
        for method in experiment.methods:
            found = [over_seeds(tables.accuracies(method, size)) for size in sizes]
            across = sizes if name == BY_EXAMPLES else [tables.mean("seconds", method, size) for size in sizes]
            (line,) = axes.plot(across, [100 * one.mean for one in found], marker="o", label=method)
            low, high = ([100 * getattr(one, end) for one in found] for end in ("low", "high"))
            if name == BY_EXAMPLES:
                axes.fill_between(across, low, high, alpha=0.12, color=line.get_color())
        axes.set(xlabel=label, ylabel="accuracy, %", title=experiment.title)
        if name == BY_EXAMPLES:
            axes.set_xticks(sizes)
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        with folder.atomic_file(name) as path:
            figure.savefig(path, format="png", dpi=150)
        pyplot.close(figure)


def _percent(found: Interval, *, sign: bool = False) -> str:
    form = "+.1f" if sign else ".1f"
    mean, low, high = (format(100 * value, form) for value in (found.mean, found.low, found.high))
    return mean if found.low != found.low else f"{mean} ({low} to {high})"  # of one seed, nobody knows the interval


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _machine() -> str:
    return f"{platform.system()} {platform.machine()}, {usable_cpus()} cores, Python {platform.python_version()}"
