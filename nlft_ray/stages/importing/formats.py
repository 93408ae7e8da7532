"""Raw record → our row. One small function for each format; which table comes out follows from the configuration alone.

| table     | rows have                                                                                   |
|-----------|---------------------------------------------------------------------------------------------|
| questions | no response                                                                                 |
| responses | a response, and no column of judgments (`columns` without `judgment`)                       |
| examples  | a response and a column of judgments (`nlft`, `cut`, others with `columns.judgment`)        |

The verdict comes from, in this order: a verdict column; the score (`nlft`, `cut`); a judgment, which only incorrect
responses have; the standard answer, where its final answer can be compared; an empty cell in a judgment column, which
means that there was nothing to criticise.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nlft_ray.config import ImportOptions
from nlft_ray.core.answers import answers_agree, final_answer
from nlft_ray.errors import UserError
from nlft_ray.stages.importing.cells import BadRow, Record, columns_of, is_template, look_up, text_of, text_reader
from nlft_ray.tables.schema import CORRECT, INCORRECT

Row = dict[str, Any]

TARGETS = ("id", "instruction", "question", "standard_answer", "response", "verdict", "judgment", "source")
"""Our columns that `columns` may fill. Token ids are not among them: whose tokenizer made them is unknown."""
FAILED_JUDGMENT = "$ERROR$"
"""The mark that the judging scripts of CUT and their relatives write where the judge could not be reached."""
PART = "nlft_ray.part"
"""Column that tells, of a record that makes several rows, which is being made."""
_VERDICTS = dict.fromkeys(("correct", "true", "1"), CORRECT) | dict.fromkeys(("incorrect", "false", "0"), INCORRECT)


@dataclass(frozen=True)
class Format:
    """The way from records to rows of a table. `convert` raises BadRow and counts what it decided in silence."""

    table: str
    needed: tuple[str, ...]
    """Their columns that must exist somewhere in the source."""
    convert: Callable[[Record, Counter[str]], Row]
    parts: tuple[str, ...] = ()
    """Columns that each make a row of their own; `convert` finds which in column `PART`."""


def format_of(options: ImportOptions) -> Format:
    """The format that the options name.

    Raises:
        UserError: `columns` does not describe a table.
    """
    if options.format == "gsm8k":
        return Format("questions", ("question", "answer"), _gsm8k)
    if options.format == "sandbox":
        return Format("questions", (), lambda record, counts: dict(record))
    if options.format == "prompt_completion":
        return Format("questions", ("prompt", "completion"), _prompt_completion)
    if options.format == "preference":
        return _preference_format(options.columns.get("judgment"))
    if options.format == "columns":
        return _columns_format(options.columns)
    question = _question_of_nlft if options.format == "nlft" else _question_of_cut

    def convert(record: Record, counts: Counter[str]) -> Row:
        return question(record) | _judged(record, options.min_correct_score, counts)

    return Format("examples", ("instruction", "output", "judgment"), convert)


def _gsm8k(record: Record, counts: Counter[str]) -> Row:
    answer = text_of(record, "answer")
    if answer is None:
        raise BadRow("answer is missing or empty")
    return {"question": text_of(record, "question"), "standard_answer": answer} | _own_id(record)


def _prompt_completion(record: Record, counts: Counter[str]) -> Row:
    answer = text_of(record, "completion")
    if answer is None:
        raise BadRow("completion is missing or empty")
    return {"question": text_of(record, "prompt"), "standard_answer": answer} | _own_id(record)


def _preference_format(reason: str | None) -> Format:
    """Pairs: the chosen response is correct, and the standard answer to the rejected one, which is incorrect."""
    read_reason = text_reader(reason, "judgment") if reason else None

    def convert(record: Record, counts: Counter[str]) -> Row:
        part = record[PART]
        rejected, own = part == "rejected", _own_id(record)
        return {
            "question": text_of(record, "prompt"),
            "standard_answer": text_of(record, "chosen") if rejected else None,
            "response": text_of(record, part),
            "verdict": INCORRECT if rejected else CORRECT,
            "judgment": read_reason(record) if read_reason and rejected else None,
        } | ({"id": f"{own['id']}-{part}"} if own else {})

    needed = ("prompt", "chosen", "rejected", *(columns_of(reason) if reason else ()))
    return Format("examples" if reason else "responses", needed, convert, ("chosen", "rejected"))


def _own_id(record: Record) -> Row:
    id = text_of(record, "id")
    return {"id": id} if id else {}


def _question_of_nlft(record: Record) -> Row:
    """A question of the released files, which hold the system text in `instruction` and the question in `input`."""
    instruction, question = text_of(record, "instruction"), text_of(record, "input")
    if question is None:
        instruction, question = None, instruction
    return {"instruction": instruction, "question": question}


def _question_of_cut(record: Record) -> Row:
    """A question of Alpaca's fields: `instruction` is the task itself, `input` its material."""
    task, material = text_of(record, "instruction"), text_of(record, "input")
    return {"question": f"{task}\n{material}" if task and material else task}


def _judged(record: Record, min_correct_score: float, counts: Counter[str]) -> Row:
    """Columns that follow from what a record of `nlft` or `cut` says about its response."""
    judgment, score = text_of(record, "judgment"), record.get("score")
    if judgment == FAILED_JUDGMENT:
        raise BadRow(f"judgment is {FAILED_JUDGMENT}: the judge had failed")
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float) or score != score):
        raise BadRow("score is not a number")
    verdict = INCORRECT if judgment else CORRECT
    if score is not None:
        verdict = CORRECT if score >= min_correct_score else INCORRECT
    if verdict == CORRECT and judgment:
        counts["judgments_of_correct_responses_dropped"] += 1
        judgment = None
    return {
        "standard_answer": text_of(record, "answer"),
        "response": text_of(record, "output"),
        "verdict": verdict,
        "judgment": judgment,
    } | _own_id(record)


def _columns_format(columns: Mapping[str, str]) -> Format:
    unknown = sorted(set(columns) - set(TARGETS))
    if unknown:
        raise UserError(f"columns: {', '.join(unknown)} are not columns of ours; they are {', '.join(TARGETS)}.")
    if "question" not in columns:
        raise UserError("columns: `question` must be mapped.")
    if "response" not in columns:
        idle = sorted({"verdict", "judgment", "source"} & set(columns))
        if idle:
            raise UserError(f"columns: {', '.join(idle)} describe a response, but `response` is not mapped.")
    elif not {"verdict", "judgment", "standard_answer"} & set(columns):
        raise UserError(
            "columns: nothing says which responses are correct; map `verdict`, `judgment` or `standard_answer`."
        )

    readers = {ours: text_reader(theirs, ours) for ours, theirs in columns.items()}

    def convert(record: Record, counts: Counter[str]) -> Row:
        row = {ours: read(record) for ours, read in readers.items() if ours != "verdict"}
        if "response" in columns:
            row["verdict"] = _verdict(row, record, columns)
        return row

    table = "questions" if "response" not in columns else "examples" if "judgment" in columns else "responses"
    return Format(table, tuple(name for theirs in columns.values() for name in columns_of(theirs)), convert)


def _verdict_cell(record: Record, column: str) -> Any:
    """What is said of a response: a template's text, or a cell that may hold a boolean or a number."""
    return text_reader(column, "verdict")(record) if is_template(column) else look_up(record, column)


def _verdict(row: Row, record: Record, columns: Mapping[str, str]) -> str:
    if "verdict" in columns:
        value = _verdict_cell(record, columns["verdict"])
        verdict = _VERDICTS.get(str(value).strip().lower())
        if verdict is None:
            raise BadRow("verdict is none of correct, incorrect, true, false, 1, 0")
        return verdict
    if row.get("judgment"):
        return INCORRECT
    response, answer = row.get("response"), row.get("standard_answer")
    if response and answer and final_answer(answer) is not None:
        return CORRECT if answers_agree(response, answer) else INCORRECT
    if "judgment" in columns:
        return CORRECT
    raise BadRow("no verdict: there is no standard answer with a number to compare; map a `verdict` column")
