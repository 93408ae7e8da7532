"""`nlft-ray init`: looks at a model and a file, and writes the run that fits them, as YAML with comments."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nlft_ray.cli.arguments import load_config, validate
from nlft_ray.config import ImportOptions, LengthsConfig, ModelConfig, PlanConfig, RunConfig
from nlft_ray.core.answers import final_answer
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.log import log
from nlft_ray.stages.importing.cells import BadRow
from nlft_ray.stages.importing.formats import TARGETS, Format, Row, format_of
from nlft_ray.stages.importing.readers import Raw
from nlft_ray.stages.importing.sources import open_source

_ROWS_LOOKED_AT = 2_000
_NAMES = {
    "question": ("question", "prompt", "problem", "query", "task", "instruction", "input"),
    "standard_answer": ("standard_answer", "answer", "solution", "final_answer", "target", "reference", "ground_truth"),
    "response": ("response", "completion", "output", "generation", "model_output"),
    "verdict": ("verdict", "correct", "is_correct"),
    "judgment": ("judgment", "critique", "feedback"),
    "instruction": ("system", "system_prompt", "instruction"),
    "id": ("id", "question_id", "task_id"),
}
"""Our column → names that such a column has in others' files, likeliest first."""
_LONGEST_USUAL = 512
_AROUND_A_PROMPT, _AROUND_AN_ANSWER = 64, 32
"""Tokens that chat template and prompts put around a question, and around a standard answer or judgment."""


@dataclass(frozen=True)
class Look:
    """What a file holds, as far as it was looked at."""

    options: ImportOptions
    table: str
    rows: int
    is_whole: bool
    unused: list[str]
    """Its columns that the import leaves aside."""
    longest: dict[str, int]
    """Our column → length of its longest text in tokens."""
    without_number: int
    """Standard answers in which verifier `final_answer` finds nothing to compare."""

    def longest_of(self, *columns: str) -> int:
        return sum(self.longest.get(column, 0) for column in columns)

    def __str__(self) -> str:
        rows = f"{self.rows:,} rows" if self.is_whole else f"more than {self.rows:,} rows"
        lengths = ", ".join(f"{name.replace('_', ' ')} {tokens:,}" for name, tokens in self.longest.items())
        return f"{rows} of {self.table}; longest texts, in tokens: {lengths}" + (
            f"; not used: {', '.join(self.unused)}" if self.unused else ""
        )


def init(model: str, data: str, test: str | None, columns: Sequence[str], output: str) -> None:
    """Write a configuration that `nlft-ray run` takes as it is.

    Args:
        model: folder, URI or hub name.
        data: what is learned from, as `questions.source` names it.
        test: the same, of questions to measure accuracy on; None for none.
        columns: `OURS=THEIRS`, for columns that cannot be guessed.
        output: file to write.

    Raises:
        UserError: the model or a file cannot be read, a column cannot be guessed, or the output is there already.
    """
    target = Path(output).expanduser()
    if target.exists():
        raise UserError(f"--output: {output} is there already. Name another file, or move that one away.")
    named = _named_columns(columns)
    with process.starting():
        from nlft_ray.models.loading import load_tokenizer, max_length

    config = validate(ModelConfig, {"path": model})
    tokenizer = load_tokenizer(config)
    learned = look_at(data, named, tokenizer, "--data")
    tested = None if test is None else look_at(test, named, tokenizer, "--test")
    text = _Run(config, bool(tokenizer.chat_template), max_length(config), learned, tested).text(target)
    target.write_text(text, encoding="utf-8")
    load_config(RunConfig, str(target), [])  # what `run` would refuse is said here
    log(f"written to {output}: look at it, then: nlft-ray run {output}")


def look_at(source: str, named: Mapping[str, str], tokenizer: Any, option: str) -> Look:
    """Guess a file's format by the columns of its first rows, and measure those.

    Raises:
        UserError: it cannot be read, or its columns cannot be guessed.
    """
    try:
        raws = open_source(validate(ImportOptions, {"source": source, "format": "gsm8k"})).rows()
        first = list(itertools.islice(raws, _ROWS_LOOKED_AT + 1))
    except UserError as error:
        raise UserError(f"{option}: {str(error).removeprefix('source: ')}") from error
    records = [raw.record for raw in first if raw.record]
    there = list(dict.fromkeys(column for record in records for column in record))
    if not records:
        raise UserError(f"{option}: {source} holds no rows.")
    guess = _guess(there, named, f"{option}: {source}")
    options = validate(ImportOptions, {"source": source, **guess})
    form = format_of(options)
    rows = [row for raw in first[:_ROWS_LOOKED_AT] if (row := _converted(form, raw)) is not None]
    answers = [row["standard_answer"] for row in rows if row.get("standard_answer")]
    return Look(
        options=options,
        table=form.table,
        rows=len(first[:_ROWS_LOOKED_AT]),
        is_whole=len(first) <= _ROWS_LOOKED_AT,
        unused=[name for name in there if name not in {*form.needed, *options.columns.values(), *_OF_FORMATS}],
        longest=_longest(rows, tokenizer),
        without_number=sum(final_answer(answer) is None for answer in answers),
    )


_OF_FORMATS = {"id", "input", "answer", "score"}
"""Columns that formats read where they are there."""


def _guess(there: Sequence[str], named: Mapping[str, str], what: str) -> dict[str, Any]:
    """`format`, and `columns` where it needs them, for a file with these columns."""
    if not named and {"instruction", "output", "judgment"} <= set(there):
        return {"format": "nlft" if {"answer", "score"} & set(there) else "cut"}
    columns = dict(named)
    for ours, theirs in _NAMES.items():
        free = [name for name in theirs if name in there and name not in columns.values()]
        if ours not in columns and free:
            columns[ours] = free[0]
    if not {"standard_answer", "verdict", "judgment"} & set(columns) or "question" not in columns:
        lacking = "question" if "question" not in columns else "standard_answer"
        raise UserError(
            f"{what} has the columns {', '.join(there)}; which of them is the {lacking.replace('_', ' ')} cannot be "
            f"guessed. Name it: --column {lacking}=…"
        )
    if "response" not in columns:
        columns = {ours: theirs for ours, theirs in columns.items() if ours not in ("verdict", "judgment")}
    absent = sorted(set(columns.values()) - {*there, *(name for name in columns.values() if "." in name)})
    if absent:
        raise UserError(f"--column: {what} has no column {', '.join(absent)}; it has {', '.join(there)}.")
    if columns.items() <= {"question": "question", "standard_answer": "answer", "id": "id"}.items():
        return {"format": "gsm8k"}
    return {"format": "columns", "columns": columns}


def _named_columns(columns: Sequence[str]) -> dict[str, str]:
    pairs = [column.partition("=") for column in columns]
    for (ours, equals, theirs), column in zip(pairs, columns, strict=True):
        if not (equals and theirs and ours in TARGETS):
            raise UserError(f"--column: {column} is not OURS=THEIRS; OURS is one of {', '.join(TARGETS)}.")
    return {ours: theirs for ours, _, theirs in pairs}


def _converted(form: Format, raw: Raw) -> Row | None:
    """The row that an import would make of it; None where it would reject it."""
    try:
        return None if raw.record is None else form.convert(raw.record, Counter())
    except BadRow:
        return None


def _longest(rows: Iterable[Row], tokenizer: Any) -> dict[str, int]:
    longest: dict[str, int] = {}
    for name in ("instruction", "question", "standard_answer", "response", "judgment"):
        texts = [row[name] for row in rows if row.get(name)]
        if texts:
            longest[name] = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return longest


@dataclass(frozen=True)
class _Run:
    """What the configuration follows from."""

    model: ModelConfig
    has_chat_template: bool
    max_length: int
    learned: Look
    tested: Look | None

    @property
    def prompt_tokens(self) -> int:
        return self.learned.longest_of("instruction", "question") + _AROUND_A_PROMPT

    @property
    def answer_tokens(self) -> int:
        return self.learned.longest_of("standard_answer") + _AROUND_AN_ANSWER

    @property
    def judgment_tokens(self) -> int:
        longest = self.learned.longest_of("judgment")
        return longest + _AROUND_AN_ANSWER if longest else LengthsConfig().judgment_tokens

    @property
    def new_tokens(self) -> int:
        """Longest response: twice the longest standard answer, at least the usual, as far as the model has room."""
        wanted = max(_LONGEST_USUAL, 2 * self.learned.longest_of("standard_answer"))
        room = self.max_length - self.prompt_tokens - max(self.answer_tokens, self.judgment_tokens)
        return max(min(wanted, room), 16)

    def text(self, target: Path) -> str:
        name = Path(self.learned.options.source).stem or "run"
        parts = [
            f"# Start this run, or let it go on, by: nlft-ray run {target}",
            "# Every setting, with its default: nlft-ray run --help",
            "",
            f"run_dir: {_yaml(f'runs/{name}')}  # a folder for each stage; what is complete is not run again",
            "",
            f"# It takes {self.max_length:,} tokens at most, and has "
            + (
                "a chat template."
                if self.has_chat_template
                else "no chat template: prompts.plain stands around questions."
            ),
            f"model: {_yaml({'path': self.model.path})}",
            "",
            *self._tables(),
            "",
            "policies: [nlft]  # [nlft, rft] trains a second model on the correct answers alone, to compare with",
            "",
            *self._generation(),
            *self._sizes(),
        ]
        return "\n".join(parts) + "\n"

    def _tables(self) -> list[str]:
        lines = [f"# {self.learned}. `limit: 50` would take the first 50.", f"questions: {_import(self.learned)}", ""]
        if self.tested is None:
            lines += ["# Accuracy is measured, before and after, on questions that are not trained on:"]
            return [*lines, "# test_questions: {source: test.jsonl, format: gsm8k}"]
        return [*lines, f"# {self.tested}.", f"test_questions: {_import(self.tested)}"]

    def _generation(self) -> list[str]:
        verifier = []
        if bad := self.learned.without_number:
            about = f"{bad:,} standard answers hold no number to compare: name a function that says what is right"
            log(f"--data: {about} (sample.verifier).")
            verifier = [f"  # {about}.", "  # verifier: my_module:my_check"]
        lines = []
        if self.learned.table == "questions":
            lines = ["sample:", "  responses_per_question: 1  # more find more mistakes to learn from"]
            lines += [f"  max_new_tokens: {self.new_tokens}", *verifier, ""]
        if self.learned.table != "examples":
            lines += ["# Unset, the model judges itself; any OpenAI-compatible server may do it instead:"]
            lines += ["# judge: {server: {base_url: 'https://api.openai.com/v1', model: gpt-4o}}", ""]
        if self.tested is not None:
            lines += [f"evaluate: {{max_new_tokens: {self.new_tokens}}}", ""]
        return lines

    def _sizes(self) -> list[str]:
        """What `nlft-ray plan` chooses for this machine."""
        from nlft_ray.planning.devices import GIB
        from nlft_ray.planning.plan import plan

        lengths = LengthsConfig(
            prompt_tokens=self.prompt_tokens,
            response_tokens=max(self.new_tokens, self.learned.longest_of("response")),
            standard_answer_tokens=self.answer_tokens,
            judgment_tokens=self.judgment_tokens,
        )
        try:
            found = plan(PlanConfig(model=self.model, lengths=lengths))
        except UserError as error:
            reason = " ".join(str(error).split())
            return ["# How much memory it needs is not known here: " + reason, "train: {lora: {rank: 16}}"]
        score = f"score: {{max_tokens_per_batch: {found.scoring.max_tokens_per_batch}}}"
        if found.training is None:
            log(f"--model: training {self.model.path} does not fit on {found.devices}: see nlft-ray plan.")
            return [score, "", f"# Nothing fits on {found.devices}: see nlft-ray plan.", "train: {lora: {rank: 16}}"]
        setup, memory = found.training.setup, found.training.memory.total / GIB
        without, checkpointed = found.alternatives[1].by_stage[setup.zero_stage]
        full = "fits too" if without.fits or checkpointed.fits else "does not fit"
        return [
            f"# For the longest texts, on {found.devices}; elsewhere: nlft-ray plan {self.model.path}",
            f"{score}  # {found.scoring.memory.total / GIB:.2f} GiB",
            "train:  # " + f"{memory:.2f} GiB of {found.training.usable / GIB:.2f}",
            f"  lora: {{rank: 16}}  # null trains all parameters, which {full}",
            f"  micro_batch_size_per_worker: {found.training.micro_batch_size}",
            f"  num_workers: {setup.workers}",
            f"  zero_stage: {setup.zero_stage}",
            f"  gradient_checkpointing: {str(setup.gradient_checkpointing).lower()}",
        ]


def _import(look: Look) -> str:
    return _yaml(look.options.model_dump(mode="json", exclude_defaults=True))


def _yaml(value: Any) -> str:
    """A value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()
