"""The end of a command in a terminal: a table, one coloured example, and where things lie."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from nlft_ray.chain import RunResult
from nlft_ray.cli.tables import result_console, result_table
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import StageResult

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
    table = result_table(result.title, ("", ""), show_header=False)
    for name, value in result.manifest.summary():
        table.add_row(escape(name), escape(value))
    console.print(table)
    console.print(f"written to {result.output}")


def _show_run(result: RunResult, console: Console) -> None:
    table = result_table(result.title, result.headings())
    for row in result.rows():
        table.add_row(*row)
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


def _paths(result: RunResult) -> Iterator[tuple[str, str]]:
    yield "examples", result.examples.output
    yield "scored", result.scored.output
    for outcome in result.outcomes:
        suffix = f" {outcome.round}" if result.config.rounds > 1 else ""
        yield f"model {outcome.policy}{suffix}", outcome.export.output
    if result.outcomes and result.outcomes[0].evaluate:
        yield "predictions", result.outcomes[0].evaluate.output
    yield "report", result.report.output
