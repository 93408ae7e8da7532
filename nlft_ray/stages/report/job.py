"""The course of stage `report`, which reads tables and writes one page in this process."""

import time
from pathlib import PurePosixPath
from typing import Any

from nlft_ray.analysis.markdown import summary
from nlft_ray.analysis.run import ScoredRun, read_run
from nlft_ray.config import ModelConfig, ReportConfig
from nlft_ray.core.policies import POLICIES, Policy
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.stages import STAGES
from nlft_ray.stages.report.model_cards import refresh_cards
from nlft_ray.stages.report.page import render
from nlft_ray.stages.report.policies import FORMULAS
from nlft_ray.stages.report.tokens import TokenSet, read_tokens
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    MANIFEST,
    Manifest,
    StageResult,
    check_tokenizer,
    finish,
    identity_of,
    input_fingerprint,
)

HTML, MARKDOWN = "report.html", "report.md"
_ORDER = [stage for stage in STAGES if stage != "report"]


def report(config: ReportConfig) -> StageResult:
    """Write the report anew, also where one stands already. `output` of the result is the HTML file.

    The cards of the models that the run exported learn what the report knows.

    Raises:
        UserError: the input holds no finished scored table, its tokenizer is missing, or the output is taken.
    """
    began = time.monotonic()
    run = read_run(Folder(config.input), _ORDER)
    folder, html = _place(config)
    _check_free(folder)
    tokenizer = _tokenizer(config, run)
    policy, fixed = _policies(config, run)
    shared = {"tokenizer": tokenizer, "policies": fixed, "limit": config.max_examples}
    sets = [_tokens("first", run, **shared)]
    if config.compare is not None:
        other = read_run(Folder(config.compare), _ORDER)
        _check_tokenizer("compare", other, tokenizer)
        ids = {example["id"] for example in sets[0].examples}
        sets.append(_tokens("second", other, only=ids, **shared))
    folder.write_text(html, render(run, sets, policy, fixed))
    folder.write_text(html.removesuffix(".html") + ".md", summary(run))
    refresh_cards(run)
    manifest = _manifest(config, run, sets, time.monotonic() - began)
    if html == HTML:
        finish(folder, manifest)
    return StageResult(output=str(folder / html), manifest=manifest)


def _place(config: ReportConfig) -> tuple[Folder, str]:
    """Folder and file name of the page."""
    output = Folder(config.output) if config.output else Folder(config.input) / "report"
    return (output.parent, output.name) if output.name.endswith(".html") else (output, HTML)


def _check_free(folder: Folder) -> None:
    """Refuse a folder that holds another stage's output, whose record the page's would replace."""
    if not folder.has(MANIFEST):
        return
    stage = Manifest.model_validate_json(folder.read_text(MANIFEST)).identity.stage
    if stage != "report":
        raise UserError(f"output: {folder} holds the output of stage '{stage}'. Choose another folder.")


def _tokenizer(config: ReportConfig, run: ScoredRun) -> Any:
    with process.starting():
        from nlft_ray.models.loading import load_tokenizer

    recorded = run.scored.manifest.identity.config.get("model")
    if config.model is None and recorded is None:
        raise UserError(f"model: {run.scored.folder} does not say which model it was scored with: set model.path.")
    tokenizer = load_tokenizer(config.model or ModelConfig.model_validate(recorded))
    _check_tokenizer("input", run, tokenizer)
    return tokenizer


def _check_tokenizer(option: str, run: ScoredRun, tokenizer: Any) -> None:
    from nlft_ray.models.loading import tokenizer_fingerprint

    advice = {"input": "Set model.path to the model that it was scored with.", "compare": "Both must have the same."}
    recorded = run.scored.manifest.identity.tokenizer
    check_tokenizer(option, run.scored.folder, recorded, tokenizer_fingerprint(tokenizer), advice[option])


def _tokens(fallback: str, run: ScoredRun, **settings: Any) -> TokenSet:
    return read_tokens(_set_name(run) or fallback, run.scored.folder, run.examples(), **settings)


def _set_name(run: ScoredRun) -> str:
    """The last two names of the path, which tell two scored folders apart."""
    return "/".join(PurePosixPath(run.scored.folder.path).parts[-2:])


def _policies(config: ReportConfig, run: ScoredRun) -> tuple[Policy, list[Policy]]:
    """The policy that the page opens with, and those that it has no formulas for.

    The setting's policy comes first, then those of the run's trainings, then the default ones.
    """
    trained = [record.manifest.identity.config["policy"] for record in run.of_stage("train")]
    known = {values["name"]: POLICIES[values["name"]](**values) for values in trained if values["name"] in POLICIES}
    opening = config.policy or known.get("nlft") or next(iter(known.values()), POLICIES["nlft"]())
    known[opening.name] = opening
    return opening, [known.get(name) or kind() for name, kind in POLICIES.items() if name not in FORMULAS]


def _manifest(config: ReportConfig, run: ScoredRun, sets: list[TokenSet], seconds: float) -> Manifest:
    scored, shown = run.scored.manifest, len(sets[0].examples)
    left_out = scored.rows_out - shown
    return Manifest(
        identity=identity_of(config, "report", tokenizer=scored.identity.tokenizer, input=input_fingerprint(scored)),
        rows_in=scored.rows_out,
        rows_out=shown,
        rows_rejected=0,
        rows_set_aside=left_out,
        set_aside_reasons={"beyond max_examples": left_out} if left_out else {},
        seconds=seconds,
        counts={"tokens": float(sum(len(example["tokens"]) for example in sets[0].examples))},
    )
