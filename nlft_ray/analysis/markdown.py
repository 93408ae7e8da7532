"""The run in Markdown: the tables of the report without its pictures, fit for a model card."""

from collections.abc import Iterable, Sequence

from nlft_ray.analysis.accuracy import accuracies, readable
from nlft_ray.analysis.run import Run

_LOSSES = ("loss_likelihood", "loss_unlikelihood", "loss_anchor")


def summary(run: Run) -> str:
    """A page of its own: `sections` below the run's name."""
    return "\n\n".join([f"# {escaped(run.name)}", *sections(run)]) + "\n"


def sections(run: Run) -> list[str]:
    """Accuracy, training, what changed, and the stages; each with a heading, and only where there is something."""
    return [*_accuracy(run), *_training(run), *_changes(run), _stages(run)]


def _accuracy(run: Run) -> Iterable[str]:
    bars = accuracies(run.of_stage("evaluate"))
    if bars:
        rows = [
            (bar.name, f"{bar.value:.1f} %", f"{bar.low:.1f} to {bar.high:.1f} %", f"{bar.correct} of {bar.total}")
            for bar in bars
        ]
        yield "## Accuracy\n\n" + table(("model", "accuracy", "95 % interval (Wilson)", "right"), rows)


def _training(run: Run) -> Iterable[str]:
    rows = [
        (
            name,
            str(len(lines)),
            *(readable(lines[-1][part]) if part in lines[-1] else "–" for part in _LOSSES),
            f"{sum(line['weighted_tokens'] for line in lines):,}",
            f"{sum(line['seconds'] for line in lines):.0f}",
        )
        for name, lines in run.metrics.items()
    ]
    if rows:
        losses = ("last loss: raising tokens", "lowering tokens", "anchor")
        headings = ("policy", "steps", *losses, "weighted tokens", "seconds of steps")
        yield "## Training\n\n" + table(headings, rows)


def _changes(run: Run) -> Iterable[str]:
    rows = [
        (change.policy, *(str(len(changes)) for changes in change.kinds.values()), str(change.unchanged))
        for change in run.changes
    ]
    if rows:
        yield "## Test questions\n\n" + table(("policy", "fixed", "broken", "still wrong", "still right"), rows)


def _stages(run: Run) -> str:
    rows = []
    for record in run.stages:
        manifest = record.manifest
        reasons = {**manifest.reject_reasons, **manifest.set_aside_reasons}
        rows.append(
            (
                manifest.identity.stage,
                record.name,
                f"{manifest.rows_in:,}",
                f"{manifest.rows_out:,}",
                f"{manifest.rows_rejected:,}",
                f"{manifest.seconds:.1f}",
                "; ".join(f"{count} × {reason}" for reason, count in reasons.items()),
            )
        )
    return "## Stages\n\n" + table(("stage", "folder", "rows in", "out", "rejected", "seconds", "left out"), rows)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, whatever its cells hold."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(escaped(text) for text in line) + " |" for line in lines)


def escaped(text: str) -> str:
    """Text that can stand in a sentence or a table: one line, no column breaks, no markup."""
    one_line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\|*_`[]" else character for character in one_line)


def fenced(text: str, language: str = "") -> str:
    """A block of code, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
