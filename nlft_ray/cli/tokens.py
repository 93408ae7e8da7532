"""One response in a terminal: coloured tokens, and their figures in a table."""

import math
import unicodedata
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nlft_ray.analysis.saliency import SaliencyView, TokenView
from nlft_ray.cli.tables import result_table
from nlft_ray.core.policies.base import Role
from nlft_ray.tables.schema import CORRECT

_STYLES: dict[Role, str] = {
    "losing": "bold white on red",
    "scoring": "black on green",
    "near": "underline",
    "silent": "dim",
    "plain": "",
}
_TITLES = {
    "losing": "Losing tokens: likelier once the prompt asks for the mistake",
    "scoring": "Scoring tokens: certain with the standard answer in view",
}
_EVERY = """Every token
/: p_judge by p_base and p_standard. cos: of its hidden state with those of the tokens before and after.
instead: the likeliest token with the standard answer in view, and its probability."""
_PROBABILITIES: dict[str, Callable[[TokenView], str]] = {
    "p_base": lambda token: _figure(token.p_base),
    "p_judge": lambda token: _figure(token.p_judge),
    "p_standard": lambda token: _figure(token.p_standard),
}
_RATIOS: dict[str, Callable[[TokenView], str]] = {
    "/ base": lambda token: _ratio(token.p_judge, token.p_base),
    "/ standard": lambda token: _ratio(token.p_judge, token.p_standard),
}
_WEIGHT: dict[str, Callable[[TokenView], str]] = {"sign × weight": lambda token: _figure(token.sign * token.weight)}
_NEIGHBOURS: dict[str, Callable[[TokenView], str]] = {
    "cos ←": lambda token: _figure(token.neighbours.get(-1, math.nan), 2),
    "cos →": lambda token: _figure(token.neighbours.get(1, math.nan), 2),
}


def show_response(view: SaliencyView, console: Console, *, every_token: bool = False) -> None:
    """Print one response: its saliency tokens in figures, or every token with all its facts."""
    correct = view.example["verdict"] == CORRECT
    response = Text()
    for token in view.tokens:
        response.append(printable(token.text), style=_STYLES[token.role])
    verdict = "A correct" if correct else "An incorrect"
    console.print(f"\n{verdict} response, as policy {view.policy} sees it", style="bold")
    for name, text in (
        ("question", view.example["question"]),
        ("standard answer", view.example["standard_answer"] or "none"),
        ("response", response),
        ("judgment", view.example["judgment"]),
    ):
        if text is not None:
            console.print(Text.assemble(f"  {name:<17}", text if isinstance(text, Text) else printable(text)))
    console.print(_every_token(view) if every_token else _salient(view, "scoring" if correct else "losing"))


def _salient(view: SaliencyView, role: Role) -> Table:
    probabilities = {name: show for name, show in _PROBABILITIES.items() if role == "losing" or name != "p_judge"}
    instead = "with the standard answer in view"
    table = result_table(_TITLES[role], ("token", *probabilities, *_WEIGHT, instead), left=(instead,))
    for token in view.tokens:
        if token.role == role:
            figures = [show(token) for show in (probabilities | _WEIGHT).values()]
            table.add_row(Text(printable(token.text.strip())), *figures, Text(printable(token.top_standard.strip())))
    return table


def _every_token(view: SaliencyView) -> Table:
    columns = _PROBABILITIES | _RATIOS | _WEIGHT | _NEIGHBOURS
    columns = {name: show for name, show in columns.items() if any(map(show, view.tokens))}
    table = result_table(_EVERY, ("token", "class", *columns, "instead"), left=("class", "instead"))
    for token in view.tokens:
        figures = [show(token) for show in columns.values()]
        instead = f"{printable(token.top_standard)} ({token.top_p:.3f})" if token.top_standard else ""
        table.add_row(
            Text(printable(token.text), style=_STYLES[token.role]), token.role, *figures, Text(instead.strip())
        )
    return table


def printable(text: str) -> str:
    """Text whose control characters are shown, not obeyed by the terminal; line breaks and tabs stay."""
    return "".join(_picture(character) for character in text)


def _picture(character: str) -> str:
    if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf"):
        return character
    if character in "\u200c\u200d":  # they join letters and emoji
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"\\u{ord(character):04x}"


def _figure(value: float, digits: int = 3) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _ratio(above: float, below: float) -> str:
    if math.isnan(above) or math.isnan(below):
        return ""
    return f"{above / below:,.2f}" if below else "∞"
