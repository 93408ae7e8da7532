"""What a scored folder holds: figures of the whole, read row group by row group, and one example token by token."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table

from nlft_ray.core.policies import POLICIES, Policy, TokenWeights
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Manifest, read_manifest
from nlft_ray.tables.scored import facts_of
from nlft_ray.tables.shards import DATA, REJECTED

_ROWS_AT_ONCE = 256
_LOG_FILE_COLUMNS = 120
_BAR_COLUMNS = 40
_FACTS = ["verdict", "logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos"]
_EDGES = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
BINS = ("lowered", "0", "to 0.25", "to 0.5", "to 0.75", "to 1", "to 1.5", "to 2", "above 2")
"""What a token's weight is: lowered by any weight, none, or raised by up to so much."""


@dataclass
class Share:
    """What a policy makes of all response tokens."""

    scoring: int = 0
    """Tokens with the role scoring."""
    losing: int = 0
    """Tokens with the role losing."""
    without_weight: int = 0
    """Tokens that add nothing to the loss, neither by their weight nor by the anchor."""
    histogram: Any = field(default_factory=lambda: np.zeros(len(BINS), np.int64))
    """Tokens of each of the BINS."""

    def add(self, weights: TokenWeights) -> None:
        roles = weights.roles
        lowered = weights.sign < 0
        self.scoring += int((roles == "scoring").sum())
        self.losing += int((roles == "losing").sum())
        self.without_weight += int((weights.likelihood + weights.unlikelihood == 0).sum())
        bins = np.where(lowered, 0, np.where(weights.sign == 0, 1, 2 + np.searchsorted(_EDGES, weights.weight)))
        self.histogram += np.bincount(bins, minlength=len(BINS))


@dataclass
class Figures:
    """Sums over a scored table."""

    verdicts: dict[str, int]
    response_tokens: int
    without_standard_answer: int
    shares: dict[str, Share]


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
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_LOG_FILE_COLUMNS, file=console.file)
    folder, chosen = Folder(path), _policy(policy)
    manifest = read_manifest(folder, table="scored")
    if row_id is not None:
        _show_one(folder, manifest, row_id, examples, chosen, console)
        return
    figures = figures_of(folder, [kind() for kind in POLICIES.values() if kind.target == "response"])
    _show_table(manifest, figures, console)
    _show_policies(figures, console)
    _show_histogram(figures, policy, console)


def figures_of(folder: Folder, policies: Sequence[Policy]) -> Figures:
    """Read every row once, and hold a few at a time."""
    figures = Figures({}, 0, 0, {policy.name: Share() for policy in policies})
    for row in _rows(folder / DATA):
        facts = facts_of(row)
        figures.verdicts[row["verdict"]] = figures.verdicts.get(row["verdict"], 0) + 1
        figures.response_tokens += facts.n
        figures.without_standard_answer += facts.logp_standard is None
        for policy in policies:
            figures.shares[policy.name].add(policy.weigh(facts))
    return figures


def _rows(data: Folder) -> Iterator[Mapping[str, Any]]:
    """The facts of each row; lists as arrays without a copy."""
    for name in data.files(".parquet"):
        for batch in data.open_parquet(name).iter_batches(batch_size=_ROWS_AT_ONCE, columns=_FACTS):
            verdicts = batch["verdict"].to_pylist()
            lists = [(fact, batch[fact]) for fact in _FACTS[1:]]
            for index, verdict in enumerate(verdicts):
                yield {"verdict": verdict} | {fact: _array(values[index]) for fact, values in lists}


def _array(scalar: Any) -> Any:
    return scalar.values.to_numpy() if scalar.is_valid else None


def find_row(folder: Folder, row_id: str) -> dict[str, Any] | None:
    """The first row with this id, read from the one row group that holds it."""
    for name in folder.files(".parquet"):
        file = folder.open_parquet(name)
        for group in range(file.num_row_groups):
            at = pc.index(file.read_row_group(group, columns=["id"])["id"], pa.scalar(row_id)).as_py()
            if at >= 0:
                return file.read_row_group(group).slice(at, 1).to_pylist()[0]
    return None


def _policy(name: str) -> Policy:
    allowed = [kind.name for kind in POLICIES.values() if kind.target == "response"]
    if name not in allowed:
        raise UserError(f"policy: '{name}' weighs no responses. Choose one of {', '.join(allowed)}.")
    return POLICIES[name]()


def _show_table(manifest: Manifest, figures: Figures, console: Console) -> None:
    table = _table("scored", ("", "", ""))
    table.show_header = False
    rows = sum(figures.verdicts.values())
    table.add_row("rows", f"{rows:,}", f"of {manifest.rows_in:,} read")
    for verdict, count in sorted(figures.verdicts.items()):
        table.add_row(f"  {verdict}", f"{count:,}", _percent(count, rows))
    if figures.without_standard_answer:
        count = figures.without_standard_answer
        table.add_row("  without standard answer", f"{count:,}", _percent(count, rows))
    table.add_row("rejected", f"{manifest.rows_rejected:,}", _percent(manifest.rows_rejected, manifest.rows_in))
    for reason, count in sorted(manifest.reject_reasons.items(), key=lambda item: -item[1]):
        table.add_row(f"  {reason}", f"{count:,}", _percent(count, manifest.rows_in))
    table.add_row(
        "response tokens", f"{figures.response_tokens:,}", f"{figures.response_tokens / max(rows, 1):.1f} a row"
    )
    table.add_row("tokens through the model", f"{manifest.tokens:,}", "")
    console.print(table)


def _show_policies(figures: Figures, console: Console) -> None:
    table = _table("Saliency tokens by policy", ("policy", "scoring", "losing", "saliency", "without weight"))
    tokens = figures.response_tokens
    for name, share in figures.shares.items():
        parts = (share.scoring, share.losing, share.scoring + share.losing, share.without_weight)
        table.add_row(name, *(_percent(part, tokens) for part in parts))
    console.print(table)


def _show_histogram(figures: Figures, policy: str, console: Console) -> None:
    table = _table(f"Weights of policy {policy}", ("weight", "tokens", "share"))
    table.add_column("")
    histogram = figures.shares[policy].histogram
    for name, count in zip(BINS, histogram.tolist(), strict=True):
        bar = "█" * round(_BAR_COLUMNS * count / max(histogram.max(), 1))
        table.add_row(name, f"{count:,}", _percent(count, figures.response_tokens), bar)
    console.print(table)


def _show_one(
    folder: Folder, manifest: Manifest, row_id: str, examples: str | None, policy: Policy, console: Console
) -> None:
    from nlft_ray.analysis.saliency import SaliencyView, token_views
    from nlft_ray.cli.tokens import show_response
    from nlft_ray.config import ModelConfig  # with the model's libraries, which the figures do without
    from nlft_ray.models.loading import load_tokenizer

    row = find_row(folder / DATA, row_id)
    if row is None:
        reject = find_row(folder / REJECTED, row_id)
        raise UserError(
            f"--id {row_id}: " + (f"rejected: {reject['reason']}" if reject else f"no such id in {folder}.")
        )
    source = Folder(examples) if examples else folder.parent / "examples"
    read_manifest(source, table="examples")
    example = find_row(source / DATA, row_id)
    if example is None:
        raise UserError(f"--examples: {source} has no id {row_id}. Name the folder that was scored.")
    model = manifest.identity.config.get("model")
    if model is None:
        raise UserError(f"{folder}: its manifest names no model, so its tokens cannot be shown as text.")
    weights = policy.weigh(facts_of(row))
    view = SaliencyView(example, policy.name, token_views(row, weights, load_tokenizer(ModelConfig(**model))))
    show_response(view, console, every_token=True)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"
