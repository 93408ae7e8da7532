"""A scored folder in a terminal: figures of the whole, or one example token by token."""

from rich.console import Console

from nlft_ray.analysis.figures import BINS, TableFigures, figures_of
from nlft_ray.analysis.saliency import SaliencyView, find_row, token_views
from nlft_ray.cli.tables import percent, result_console, result_table
from nlft_ray.cli.tokens import show_response
from nlft_ray.config import ModelConfig
from nlft_ray.core.policies import POLICIES, Policy
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Manifest, read_manifest
from nlft_ray.tables.shards import REJECTED

_BAR_COLUMNS = 40


def inspect(
    path: str,
    row_id: str | None = None,
    examples: str | None = None,
    policy: str = "nlft",
    console: Console | None = None,
) -> None:
    """Print the figures of a scored folder, or with `row_id` one example of it.

    Raises:
        UserError: the folder holds no complete scored table, or no such example; or there is no such policy.
    """
    console = console or result_console()
    folder, policies = Folder(path), {name: kind() for name, kind in POLICIES.items() if kind.target == "response"}
    if policy not in policies:
        raise UserError(f"policy: '{policy}' weighs no responses. Choose one of {', '.join(policies)}.")
    manifest = read_manifest(folder, table="scored")
    if row_id is not None:
        _show_one(folder, manifest, row_id, examples, policies[policy], console)
        return
    figures = figures_of(folder, list(policies.values()))
    _show_table(manifest, figures, console)
    _show_policies(figures, console)
    _show_histogram(figures, policy, console)


def _show_table(manifest: Manifest, figures: TableFigures, console: Console) -> None:
    table = result_table("scored", ("", "", ""), show_header=False)
    rows = figures.rows
    table.add_row("rows", f"{rows:,}", f"of {manifest.rows_in:,} read")
    for verdict, count in sorted(figures.verdicts.items()):
        table.add_row(f"  {verdict}", f"{count:,}", percent(count, rows))
    if figures.without_standard_answer:
        count = figures.without_standard_answer
        table.add_row("  without standard answer", f"{count:,}", percent(count, rows))
    table.add_row("rejected", f"{manifest.rows_rejected:,}", percent(manifest.rows_rejected, manifest.rows_in))
    for reason, count in sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]):
        table.add_row(f"  {reason}", f"{count:,}", percent(count, manifest.rows_in))
    table.add_row(
        "response tokens", f"{figures.response_tokens:,}", f"{figures.response_tokens / max(rows, 1):.1f} a row"
    )
    table.add_row("tokens through the model", f"{manifest.tokens:,}", "")
    console.print(table)


def _show_policies(figures: TableFigures, console: Console) -> None:
    headings = ("policy", "scoring", "losing", "saliency", "without weight")
    table = result_table("Saliency tokens by policy", headings)
    tokens = figures.response_tokens
    for name, counts in figures.by_policy.items():
        parts = (counts.scoring, counts.losing, counts.scoring + counts.losing, counts.without_weight)
        table.add_row(name, *(percent(part, tokens) for part in parts))
    console.print(table)


def _show_histogram(figures: TableFigures, policy: str, console: Console) -> None:
    table = result_table(f"Weights of policy {policy}", ("weight", "tokens", "share", ""), left=("",))
    histogram = figures.by_policy[policy].histogram
    for name, count in zip(BINS, histogram.tolist(), strict=True):
        bar = "█" * round(_BAR_COLUMNS * count / max(histogram.max(), 1))
        table.add_row(name, f"{count:,}", percent(count, figures.response_tokens), bar)
    console.print(table)


def _show_one(
    folder: Folder, manifest: Manifest, row_id: str, examples: str | None, policy: Policy, console: Console
) -> None:
    with process.starting():  # the model's libraries, which the figures do without
        from nlft_ray.models.loading import load_tokenizer

    row = find_row(folder, row_id)
    if row is None:
        reject = find_row(folder, row_id, REJECTED)
        raise UserError(
            f"--id {row_id}: " + (f"rejected: {reject['reason']}" if reject else f"no such id in {folder}.")
        )
    source = Folder(examples) if examples else folder.parent / "examples"
    read_manifest(source, table="examples")
    example = find_row(source, row_id)
    if example is None:
        raise UserError(f"--examples: {source} has no id {row_id}. Name the folder that was scored.")
    model = manifest.identity.config.get("model")
    if model is None:
        raise UserError(f"{folder}: its manifest names no model, so its tokens cannot be shown as text.")
    tokens = token_views(row, policy, load_tokenizer(ModelConfig(**model)))
    view = SaliencyView(example, policy.name, tokens)
    show_response(view, console, every_token=True)
