"""A plan in a terminal: tables, a verdict, and the settings to use."""

from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from nlft_ray.cli.tables import result_table
from nlft_ray.config import LoraConfig
from nlft_ray.planning.choice import ScoringChoice, TrainingChoice
from nlft_ray.planning.devices import GIB
from nlft_ray.planning.memory import Memory
from nlft_ray.planning.plan import Plan

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "fragments")


def show_plan(plan: Plan, console: Console) -> None:
    """Print the devices, the memory needed, what fits, and the settings to use."""
    _show_subject(plan, console)
    console.print(_needs(plan))
    console.print(_stages(plan))
    _show_verdict(plan, console)
    _show_settings(plan, console)


def _show_subject(plan: Plan, console: Console) -> None:
    shape, adapters = plan.shape, plan.adapters
    rank = (plan.config.train.lora or LoraConfig()).rank
    lengths = ", ".join(
        f"{name.removesuffix('_tokens').replace('_', ' ')} {tokens:,}"
        for name, tokens in plan.config.lengths.model_dump().items()
    )
    console.print(
        f"[bold]{plan.config.model.path}[/bold]: {_count(shape.parameters)} parameters in {shape.layers} layers of "
        f"width {shape.width:,}, vocabulary {shape.vocabulary:,}, in {plan.dtype}; "
        f"adapters of rank {rank}: {_count(adapters.parameters)}"
    )
    console.print(
        f"[bold]{plan.devices}[/bold], {plan.devices.reserve_fraction:.0%} left free: one worker on each may take "
        f"{plan.devices.usable() / GIB:.1f} GiB"
    )
    console.print(f"[bold]Longest texts[/bold] in tokens: {lengths}\n")


def _needs(plan: Plan) -> Table:
    headings = ("", *_PARTS, "total", "there is", "highest at")
    table = result_table("Memory of each worker at its highest, GiB", headings, left=("highest at",))
    scoring, training = plan.scoring, plan.training
    title = f"score, {scoring.max_tokens_per_batch:,} tokens a pass"
    if scoring.processes > 1:
        title += f", one of {scoring.processes} processes"
    table.add_row(title, *_parts(scoring.memory), _total(scoring), _gib(scoring.usable), scoring.memory.moment)
    if training is not None:
        table.add_row(
            _title(training), *_parts(training.memory), _total(training), _gib(training.usable), training.memory.moment
        )
    return table


def _stages(plan: Plan) -> Table:
    workers = plan.alternatives[0].by_stage[0][0].setup.workers
    title = f"Training with one example in a micro-batch, GiB on each of {workers} workers"
    table = result_table(title, ("ZeRO stage", "LoRA", "checkpointed", "full", "checkpointed"))
    lora, full = plan.alternatives
    for stage in lora.by_stage:
        table.add_row(str(stage), *(_total(choice) for way in (lora, full) for choice in way.by_stage[stage]))
    return table


def _show_verdict(plan: Plan, console: Console) -> None:
    console.print("[green]green[/green] fits, [red]red[/red] does not (marked ✗)\n")
    if not plan.scoring.fits:
        console.print(
            "[red]Scoring does not fit[/red], whatever the batch: take larger devices, several for one copy "
            "(tensor_parallel), or shorter texts."
        )
    if plan.training is None:
        others = [choice for way in plan.alternatives for pair in way.by_stage.values() for choice in pair]
        hint = "LoRA fits" if any(choice.fits for choice in others if choice.setup.adapters) else "take more devices"
        console.print(
            f"[red]Training does not fit[/red] with these settings: {hint}, larger ones, shorter texts or bfloat16; "
            "see the table."
        )


def _show_settings(plan: Plan, console: Console) -> None:
    for stage, text in (("score", plan.score_yaml), ("train", plan.train_yaml)):
        if text is not None:
            console.print(f"[bold]{stage}.yaml[/bold]: nlft-ray {stage} --config {stage}.yaml input=… output=…")
            console.print(Syntax(text, "yaml", background_color="default", word_wrap=True))
    if plan.config.output is not None:
        console.print(f"written to {plan.config.output}")


def _title(choice: TrainingChoice) -> str:
    setup = choice.setup
    kind = "LoRA" if setup.adapters else "full"
    more = ", checkpointed" if setup.gradient_checkpointing else ""
    return f"train, {kind}, ZeRO {setup.zero_stage}{more}, micro-batch {choice.micro_batch_size}"


def _parts(memory: Memory) -> list[str]:
    return [_gib(getattr(memory, part)) for part in _PARTS]


def _total(choice: ScoringChoice | TrainingChoice) -> Text:
    mark = "" if choice.fits else " ✗"
    return Text(_gib(choice.memory.total) + mark, style="green" if choice.fits else "red")


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size < 10 * GIB else f"{size / GIB:.1f}"


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return str(number)
