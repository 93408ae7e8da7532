"""The end of a command in a terminal: a table, one coloured example, and where things lie."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from nlft_ray.chain import PolicyOutcome, RunResult
from nlft_ray.cli.tables import result_console, result_table
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Manifest, StageResult

if TYPE_CHECKING:
    from nlft_ray.planning.plan import Plan


def show(result: "StageResult | RunResult | Plan", console: Console | None = None) -> None:
    """Print a result for a person. Only what the result needs is imported: torch alone takes seconds."""
    console = console or result_console()
    if isinstance(result, StageResult):
        _show_stage(result, console)
    elif isinstance(result, RunResult):
        _show_run(result, console)
    else:
        from nlft_ray.cli.plan import show_plan

        show_plan(result, console)


def _show_stage(result: StageResult, console: Console) -> None:
    manifest = result.manifest
    title = manifest.identity.stage + " (already complete)" * result.reused
    table = result_table(title, ("", ""), show_header=False)
    for name, value in _rows(manifest):
        table.add_row(name, value)
    console.print(table)
    console.print(f"written to {result.output}")


def _rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "rows in", f"{manifest.rows_in:,}"
    yield "rows out", f"{manifest.rows_out:,}"
    yield "rows rejected", f"{manifest.rows_rejected:,}"
    for reason, count in sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]):
        yield f"  {reason}", f"{count:,}"
    for reason, count in manifest.set_aside_reasons.items():
        yield f"set aside: {reason}", f"{count:,}"
    if manifest.tokens and "tokens_run" not in manifest.counts:
        yield "tokens through the model", f"{manifest.tokens:,}"
    yield "seconds", f"{manifest.seconds:.1f}"
    for name, note in manifest.notes.items():
        yield name.replace("_", " "), escape(note)
    for name, value in manifest.counts.items():
        yield name.replace("_", " "), f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def _show_run(result: RunResult, console: Console) -> None:
    title = "Accuracy on the test questions, with 95 % intervals" if result.before else "Trained models"
    rounds = ("round",) if result.config.rounds > 1 else ()
    headings = ("policy", *rounds, "examples", "correct + incorrect", "before", "after", "training, s")
    table = result_table(title, headings)
    for outcome in result.outcomes:
        table.add_row(*_outcome_row(result, outcome))
    console.print(table)
    _show_losing_example(result, console)
    console.print(f"The whole run took {result.seconds:.0f} s. It wrote:")
    for name, path in _paths(result):
        console.print(f"  {name:<12} {path}")


def _show_losing_example(result: RunResult, console: Console) -> None:
    from nlft_ray.analysis.saliency import losing_example
    from nlft_ray.cli.tokens import show_response
    from nlft_ray.models.loading import load_tokenizer

    tokenizer = load_tokenizer(result.config.model)
    scored, examples = Folder(result.scored.output), Folder(result.examples.output)
    view = losing_example(scored, examples, tokenizer, result.config.policies[0])
    if view:
        show_response(view, console)


def _outcome_row(result: RunResult, outcome: PolicyOutcome) -> tuple[str, ...]:
    training = outcome.train.manifest
    counts = training.counts
    return (
        outcome.policy,
        *([str(outcome.round)] if result.config.rounds > 1 else []),
        f"{counts['examples']:.0f} of {training.rows_in}",
        f"{counts['correct']:.0f} + {counts['incorrect']:.0f}",
        _accuracy(outcome.before),
        _accuracy(outcome.evaluate),
        f"{outcome.training_seconds:.0f}",
    )


def _accuracy(result: StageResult | None) -> str:
    if result is None:
        return "not measured"
    counts = result.manifest.counts
    low, high = (100 * counts[name] for name in ("accuracy_low", "accuracy_high"))
    return f"{100 * counts['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


def _paths(result: RunResult) -> Iterator[tuple[str, str]]:
    yield "examples", result.examples.output
    yield "scored", result.scored.output
    for outcome in result.outcomes:
        suffix = f" {outcome.round}" if result.config.rounds > 1 else ""
        yield f"model {outcome.policy}{suffix}", outcome.export.output
    if result.outcomes and result.outcomes[0].evaluate:
        yield "predictions", result.outcomes[0].evaluate.output
    yield "report", result.report.output
