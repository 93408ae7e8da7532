"""The record beside every table: what made it, from what, and how much.

A stage writes two files around its work. `plan.json` comes first and says what is being made; a second start reads it
and continues, or refuses because something differs. `manifest.json` comes last and means: complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from nlft_ray._version import __version__
from nlft_ray.config import StageConfig, Strict, WithModel
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.notebook import html_table
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import usual_rows_per_shard

MANIFEST, PLAN = "manifest.json", "plan.json"
Config = TypeVar("Config", bound=WithModel)
_OF_A_JOB = "/working_dir_files/"  # where Ray unpacks what `ray job submit --working-dir` brings


def fingerprint(value: Any) -> str:
    """Short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Identity(BaseModel):
    """All that determines a stage's output. Equal identities make equal outputs."""

    model_config = ConfigDict(frozen=True)

    stage: str
    table: str | None = None
    """Kind of table in the folder (a key of `schema.TABLES`)."""
    software_version: str
    config: dict[str, Any]
    """Resolved configuration, without what only says where and how fast."""
    model: str | None = None
    """Fingerprint of the model's weights."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer whose ids stand in the table."""
    prompts: str | None = None
    """Fingerprint of the prompt templates."""
    input: str | None = None
    """Fingerprint of the input."""

    def fingerprint(self) -> str:
        return fingerprint(self.model_dump())


class Manifest(BaseModel):
    """The complete record of one stage's output."""

    identity: Identity
    rows_in: int
    rows_out: int
    rows_rejected: int
    reject_reasons: dict[str, int] = {}
    """Rejected rows by reason."""
    rows_set_aside: int = 0
    """Rows left out on purpose. They stand among the rejects, but are no failures."""
    set_aside_reasons: dict[str, int] = {}
    """Rows set aside by reason."""
    tokens: int = 0
    """Tokens that went through the model, padding apart: of scoring, each shared beginning once; of generation, prompts
    and what was written; of a server, what it counted."""
    seconds: float
    """Wall-clock time of the start that completed it; for a training, with the steps kept from earlier starts."""
    counts: dict[str, float] = {}
    """The stage's own counts: verdicts, disputed rows, accuracy, …"""
    notes: dict[str, str] = {}
    """What was found in the model's files where settings leave it open, by what it is about, such as `end_of_turn`."""

    def summary(self) -> Iterator[tuple[str, str]]:
        """What a person is told: names with figures in words."""
        yield "rows in", f"{self.rows_in:,}"
        yield "rows out", f"{self.rows_out:,}"
        yield "rows rejected", f"{self.rows_rejected:,}"
        for reason, count in sorted(self.reject_reasons.items(), key=lambda item: -item[1]):
            yield f"  {reason}", f"{count:,}"
        for reason, count in self.set_aside_reasons.items():
            yield f"set aside: {reason}", f"{count:,}"
        if self.tokens and "tokens_run" not in self.counts:
            yield "tokens through the model", f"{self.tokens:,}"
        yield "seconds", f"{self.seconds:.1f}"
        for name, note in self.notes.items():
            yield name.replace("_", " "), note
        for name, value in self.counts.items():
            yield name.replace("_", " "), f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def identity_of(config: Strict, stage: str, **fields: Any) -> Identity:
    """The identity of a stage's output under a configuration."""
    return Identity(stage=stage, software_version=__version__, config=config.identity(), **fields)


class StageResult(Strict):
    """The result of a stage: where its output lies, and the manifest that stands beside it."""

    output: str
    manifest: Manifest
    reused: bool = False
    """True where the output was already complete and nothing ran."""

    @property
    def title(self) -> str:
        return self.manifest.identity.stage + " (already complete)" * self.reused

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return html_table(self.title, ("", ""), [*self.manifest.summary(), ("written to", self.output)])


def read_manifest(folder: Folder, *, table: str | tuple[str, ...], option: str = "input") -> Manifest:
    """The manifest of a stage's input, which a setting called `option` names.

    Raises:
        UserError: the folder is missing, its stage has not finished, or it holds another kind of table.
    """
    wanted = (table,) if isinstance(table, str) else table
    if not folder.has(MANIFEST):
        state = "was begun but is not complete: run its stage again" if folder.has(PLAN) else "has no manifest.json"
        if not folder.exists():
            state = "does not exist"
        raise UserError(
            f"{option}: {folder} {state}. It must be a folder of {' or '.join(wanted)} written by a stage of nlft-ray; "
            "`nlft-ray import` makes one from files of your own."
        )
    manifest = Manifest.model_validate_json(folder.read_text(MANIFEST))
    if manifest.identity.table not in wanted:
        raise UserError(
            f"{option}: {folder} holds {manifest.identity.table} (made by stage '{manifest.identity.stage}'); "
            f"this stage reads {' or '.join(wanted)}."
        )
    return manifest


def input_fingerprint(manifest: Manifest) -> str:
    """Identifies a table by how it came about, and by how much of it there is."""
    return fingerprint([manifest.identity.fingerprint(), manifest.rows_out])


def begin(folder: Folder, identity: Identity, *, overwrite: bool) -> Manifest | None:
    """Open an output folder: None when there is work to do, the manifest when it is complete already.

    Raises:
        UserError: the folder belongs to another identity and `overwrite` is off; or it would not outlive its job.
    """
    if _OF_A_JOB in f"{folder.uri}/":
        raise UserError(
            f"output: {folder} lies in the copy of your working directory that Ray makes for a job, and deletes. Give "
            "the whole path of a folder that all nodes share, or a URI such as s3://bucket/runs."
        )
    if folder.has(PLAN):
        existing = Identity.model_validate_json(folder.read_text(PLAN))
        changes = differences(existing.model_dump(), identity.model_dump())
        if not changes:
            return Manifest.model_validate_json(folder.read_text(MANIFEST)) if folder.has(MANIFEST) else None
        if not overwrite:
            raise UserError(
                f"output: {folder} was made with other settings:\n"
                + "\n".join(f"  {change}" for change in changes)
                + "\nChoose another output folder, or set overwrite=true to replace it."
            )
        log(f"{identity.stage}: {folder} is made anew, since settings changed: {'; '.join(changes)}")
        # The plan goes last: whoever dies in between leaves a folder that is incomplete, and ours.
        folder.delete(MANIFEST)
        folder.clear(keep=PLAN)
    elif folder.entries():
        raise UserError(f"output: {folder} holds files that nlft-ray did not write. Choose an empty folder.")
    folder.write_text(PLAN, identity.model_dump_json(indent=2))
    return None


def begun_model(output: Folder) -> dict[str, Any] | None:
    """The model's settings in the plan of an output that was begun; None where none was."""
    if not output.has(PLAN):
        return None
    return Identity.model_validate_json(output.read_text(PLAN)).config.get("model")


Automatic = Mapping[str, Callable[[], Any]]
"""Settings that may be left open, such as `model.dtype`, and how each is chosen (`models.automatic`, `.turns`)."""


def settle_model(folder: Folder, identity: Identity, *, overwrite: bool, automatic: Automatic) -> Identity:
    """The identity with what settings become that are left open (`auto`, None), so that no worker decides for itself.

    An output that was begun goes on with what stands in its plan, whatever devices and day are now; older plans may
    leave one open, and keep it so. Otherwise each is chosen, which may take a cluster's start.
    """
    left_open = [name for name in automatic if _setting(identity, name) in _OPEN]
    if left_open and folder.has(PLAN):
        existing = Identity.model_validate_json(folder.read_text(PLAN))
        same = _with_settings(identity, {name: _setting(existing, name) for name in left_open})
        if same == existing or not overwrite:  # else `begin` refuses, and names what differs besides
            return same
    return _with_settings(identity, {name: automatic[name]() for name in left_open})


def with_settled_model(config: Config, identity: Identity, automatic: Automatic) -> Config:
    """The configuration for workers, with the settings of the identity: they cannot disagree.

    What an older plan leaves open is chosen now, as it was then.
    """
    changed: dict[str, dict[str, Any]] = {}
    for name, choose in automatic.items():
        section, _, setting = name.rpartition(".")
        recorded = _setting(identity, name)
        changed.setdefault(section, {})[setting] = choose() if recorded in _OPEN else recorded
    settled = changed.pop("", {})
    for name, values in changed.items():
        section_now = getattr(config, name)
        settled[name] = section_now.model_validate(dict(section_now) | values)
    return config.model_copy(update=settled)


_OPEN = ("auto", None)


def _setting(identity: Identity, name: str) -> Any:
    section, _, setting = name.rpartition(".")
    return (identity.config.get(section) or {} if section else identity.config).get(setting)


def _with_settings(identity: Identity, settings: Mapping[str, Any]) -> Identity:
    config = dict(identity.config)
    for name, value in settings.items():
        section, _, setting = name.rpartition(".")
        if value is not None:
            config |= {section: config[section] | {setting: value}} if section else {setting: value}
    return identity.model_copy(update={"config": config})


def settle_shards(folder: Folder, identity: Identity, source: Folder, least_rows: int) -> Identity:
    """The identity with the rows of a shard where these are left open and the usual number is below `least_rows`.

    An output that was begun keeps its own cut: its shards would not count as done by another.
    """
    if identity.config["rows_per_shard"] is not None:
        return identity
    if folder.has(PLAN):
        rows = Identity.model_validate_json(folder.read_text(PLAN)).config.get("rows_per_shard")
    else:
        rows = least_rows if least_rows > usual_rows_per_shard(source) else None
    return _with_settings(identity, {"rows_per_shard": rows})


def check_tokenizer(option: str, folder: object, recorded: str | None, present: str, advice: str) -> None:
    """Refuse a table whose token ids the tokenizer at hand would not have made; `recorded` is that of its manifest.

    Raises:
        UserError: the fingerprints differ. A table without one, as an import makes it, holds no ids.
    """
    if recorded not in (None, present):
        raise UserError(
            f"{option}: {folder} holds ids of another tokenizer (tokenizer: {recorded} there, {present} in the model). "
            f"{advice}"
        )


def finish(folder: Folder, manifest: Manifest) -> None:
    folder.write_text(MANIFEST, manifest.model_dump_json(indent=2))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The leaves in which two nested mappings differ, as `a.b: 1 → 2`."""
    changes = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key}: {json.dumps(before)} → {json.dumps(after)}")
    return changes


def check_rejects(config: StageConfig | Any, stage: str, manifest: Manifest, folder: Folder) -> None:
    """Fail when too many rows were unusable.

    Raises:
        UserError: names the commonest reasons and where the rows are.
    """
    allowed = config.max_reject_fraction * manifest.rows_in
    if manifest.rows_rejected <= allowed:
        return
    commonest = sorted(manifest.reject_reasons.items(), key=lambda item: -item[1])[:5]
    raise UserError(
        f"{stage}: {manifest.rows_rejected} of {manifest.rows_in} rows could not be used, more than "
        f"max_reject_fraction={config.max_reject_fraction} allows:\n"
        + "\n".join(f"  {count} × {reason}" for reason, count in commonest)
        + f"\nThe rows and their reasons are in {folder / 'rejects'}. Mend them, or raise max_reject_fraction."
    )
