"""The run in Markdown: the tables of the report without its pictures, fit for a model card."""

from collections.abc import Iterable, Sequence

from nlft_ray.stages.report.charts import accuracies, readable
from nlft_ray.stages.report.run_folder import Run


def summary(run: Run) -> str:
    """Accuracy, training, what changed, and the stages."""
    return "\n\n".join([f"# {_cell(run.name)}", *_accuracy(run), *_training(run), *_changes(run), _stages(run)]) + "\n"


def _accuracy(run: Run) -> Iterable[str]:
    bars = accuracies(run.of_stage("evaluate"))
    if bars:
        rows = [
            (bar.name, f"{bar.value:.1f} %", f"{bar.low:.1f} to {bar.high:.1f} %", f"{bar.correct} of {bar.total}")
            for bar in bars
        ]
        yield "## Accuracy\n\n" + _table(("model", "accuracy", "95 % interval (Wilson)", "right"), rows)


def _training(run: Run) -> Iterable[str]:
    rows = [
        (
            name,
            str(len(lines)),
            readable(lines[-1]["loss_likelihood"]),
            readable(lines[-1]["loss_unlikelihood"]),
            f"{sum(line['weighted_tokens'] for line in lines):,}",
            f"{sum(line['seconds'] for line in lines):.0f}",
        )
        for name, lines in run.metrics.items()
    ]
    if rows:
        headings = ("policy", "steps", "last loss, raising", "lowering", "weighted tokens", "seconds of steps")
        yield "## Training\n\n" + _table(headings, rows)


def _changes(run: Run) -> Iterable[str]:
    rows = [
        (change.policy, *(str(len(found)) for found in change.kinds.values()), str(change.unchanged))
        for change in run.changes
    ]
    if rows:
        yield "## Test questions\n\n" + _table(("policy", "fixed", "broken", "still wrong", "still right"), rows)


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
    return "## Stages\n\n" + _table(("stage", "folder", "rows in", "out", "rejected", "seconds", "left out"), rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that can stand in a table: one line, no column breaks, no markup."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{character}" if character in "\\|*_`[]" else character for character in escaped)
