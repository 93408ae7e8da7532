"""Ways of training on the same rows. Each runs in a process of its own and says what it took.

ours      this project's `train` stage: Ray Train and DeepSpeed, one worker, ZeRO 0.
ours2     the same with two workers, which share the threads, and ZeRO 2.
without_ray  its loop under DeepSpeed in this process: what Ray adds.
plain     the same micro-batches, head and loss in a loop of plain torch, in this process: what DeepSpeed adds to it.
trl       TRL's SFTTrainer on the same ids, its loss on the responses alone.
released  the pattern of the method's first release: an example at a time, its contexts in a padded batch with
          gradients at every step (a correct response has its base context twice), a float32 softmax over all
          positions, weights computed anew, growing in a Python loop.

Peak memory is counted from the state in which the model stands loaded, right before the first step.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import MemoryWatch, peak, reset_peak, table_of, write_table
from released_pattern import grow, released_facts

from nlft_ray.cli.arguments import validate
from nlft_ray.config import ModelConfig, PromptConfig, TrainConfig
from nlft_ray.core.loss import normalise_by_example, weighted_losses
from nlft_ray.models.attention import attend_by_segments
from nlft_ray.models.loading import load_model, load_tokenizer, max_length
from nlft_ray.stages.score.contexts import RowBuilder, ScoringRow
from nlft_ray.stages.train.examples import ExampleTable, MicroBatch, write_examples
from nlft_ray.stages.train.model import LogOddsHead
from nlft_ray.stages.train.schedule import order_of
from nlft_ray.stages.train.weighing import Weighing
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import EXAMPLES, SCORED
from nlft_ray.tables.training import read_metrics

Measure = dict[str, Any]
LORA: dict[str, Any] = {"rank": 16, "alpha": 16.0, "dropout": 0.0, "targets": "all-linear"}
RATE = 5e-5


def run_pattern(task: dict[str, Any]) -> Measure:
    """Measure one pattern on a folder that `write_scored` made."""
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    return PATTERNS[task["pattern"]](task) | {"micro_batch_size": task["micro_batch_size"]}


def write_scored(folder: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Write `folder/scored`, with made-up facts that give every response token a weight; returns mean lengths.

    So all patterns train on the same tokens. Where a policy leaves tokens out, this project runs fewer of them.
    """
    scored = []
    for row, built in zip(rows, _scoring_rows(folder, rows), strict=True):
        prompt, response = built.prompts["base"], built.response_ids
        logp = [math.log(0.5)] * len(response)
        facts: dict[str, Any] = {
            "id": row["id"],
            "verdict": row["verdict"],
            "input_ids": prompt + response,
            "response_start": len(prompt),
            "logp_base": logp,
            "logp_judge": logp if "judge" in built.prompts else None,
            "logp_standard": logp,
            "hidden_norm": [1.0] * len(response),
            "hidden_cos": [0.0] * len(response) * 8,
        }
        scored.append(facts)
    write_table(folder / "scored", [table_of(scored, SCORED)], "scored", stage="score")
    prompts, responses = (sum(row["response_start"] for row in scored), sum(len(row["logp_base"]) for row in scored))
    return {"prompt": prompts / len(rows), "response": responses / len(rows)}


def _scoring_rows(folder: Path, rows: list[dict[str, Any]]) -> list[ScoringRow]:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder / "model")))
    build = RowBuilder(tokenizer, PromptConfig(), tokenizer.eos_token_id)
    return [build(row) for row in table_of(rows, EXAMPLES).to_pylist()]


def _config(task: dict[str, Any], **changes: Any) -> TrainConfig:
    folder = Path(task["folder"])
    values = {
        "model": {"path": str(folder / "model"), "dtype": task["dtype"]},
        "input": str(folder / "scored"),
        "output": str(folder / f"trained-{time.monotonic_ns()}"),
        "lora": LORA,
        "epochs": 1,
        "learning_rate": RATE,
        "schedule": "constant",
        "warmup_fraction": 0.0,
        "batch_size": task["batch_size"],
        "micro_batch_size_per_worker": task["micro_batch_size"],
        "cpus_per_worker": task["threads"],
    }
    return validate(TrainConfig, values | changes)


def _ours(task: dict[str, Any], **changes: Any) -> Measure:
    import nlft_ray

    began = time.time()
    config = _config(task, **changes)
    with MemoryWatch("RayTrainWorker", Path(config.output) / "metrics.jsonl") as watch:
        nlft_ray.train(config)
    lines = read_metrics(Folder(config.output))
    counted = lines[task["warm_up_steps"] :]
    first_step = watch.first_line - lines[0]["seconds"]
    return {
        "steps": len(counted),
        "seconds": sum(line["seconds"] for line in counted),
        "start_up_seconds": first_step - began,
        "peak_bytes": watch.growth_after(first_step),
        "losses": [line["loss"] for line in lines],
    }


def _ours_on_two(task: dict[str, Any]) -> Measure:
    return _ours(task, num_workers=2, zero_stage=2, cpus_per_worker=max(task["threads"] // 2, 1))


def _without_ray(task: dict[str, Any]) -> Measure:
    import torch.distributed as dist

    from nlft_ray.stages.train.engine import build_engine
    from nlft_ray.stages.train.loop import Stepper
    from nlft_ray.stages.train.schedule import Split

    config = _config(task)
    examples = _weigh(config)
    order = order_of(config, len(examples))
    split = Split(1, config.micro_batch_size_per_worker, config.batch_size)
    rendezvous = Path(config.output).with_suffix(".rendezvous")
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    engine = build_engine(config, split.micro_steps)
    stepper = Stepper(engine, config, examples, order, split, pad_id=0)
    clock, losses = _Clock(task, engine.model), []
    for step in range(order.steps):
        losses.append(stepper.take(step).loss)
        clock.step_done()
    dist.destroy_process_group()
    return clock.measure() | {"losses": losses}


def _weigh(config: TrainConfig) -> ExampleTable:
    folder = Folder(config.output)
    write_examples(Weighing(config.policy, max_length(config.model)).examples(Folder(config.input)), folder, "examples")
    return ExampleTable(folder, "examples")


def _plain(task: dict[str, Any]) -> Measure:
    config = _config(task)
    examples = list(_weigh(config))
    model = _with_adapters(config)
    assert attend_by_segments(model.get_base_model())
    head = LogOddsHead.replace(model)
    assert head is not None
    order = order_of(config, len(examples))

    def take(step: int) -> float:
        batch = [examples[index] for index in order.batch(step)]
        total = 0.0
        for start in range(0, len(batch), task["micro_batch_size"]):
            micro = MicroBatch.of(batch[start : start + task["micro_batch_size"]], 0, packed=True).to(model.device)
            with head.asked_for(micro.keep, micro.targets):
                log_odds = model(**micro.inputs).logits.flatten()
            losses = weighted_losses(log_odds, micro.likelihood, micro.unlikelihood).total
            loss = normalise_by_example(losses, micro.example, micro.tokens_per_example, len(batch))
            loss.backward()
            total += loss.item()
        return total

    return _loop(task, model, take, order.steps)


def _loop(task: dict[str, Any], model: Any, take: Callable[[int], float], steps: int) -> Measure:
    """AdamW over `take`, which adds up the gradients of a step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    clock, losses = _Clock(task, model), []
    for step in range(steps):
        losses.append(take(step))
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step_done()
    return clock.measure() | {"losses": losses}


class _Clock:
    """Time and memory of the steps in this process; the first ones do not count."""

    def __init__(self, task: dict[str, Any], model: Any):
        self._skip: int = task["warm_up_steps"]
        self._ends: list[float] = []
        for parameter in model.parameters():
            parameter.sum()  # weights may be mapped from the file: read them, so that they do not count as work
        self._held = reset_peak()

    def step_done(self) -> None:
        self._ends.append(time.perf_counter())

    def measure(self) -> Measure:
        counted = self._ends[self._skip - 1 :]
        return {"steps": len(counted) - 1, "seconds": counted[-1] - counted[0], "peak_bytes": peak() - self._held}


def _with_adapters(config: TrainConfig) -> Any:
    import peft

    model = load_model(config.model)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=LORA["targets"],
    )
    return peft.get_peft_model(model, settings, autocast_adapter_dtype=False).train()


def _trl_settings(task: dict[str, Any], output: str) -> Any:
    """The settings of TRL's trainer that are those of the others."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=output,
        per_device_train_batch_size=task["micro_batch_size"],
        gradient_accumulation_steps=task["batch_size"] // task["micro_batch_size"],
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch",
        max_length=None,
        completion_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,  # where the rows are in bfloat16, the model is
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
    )


def _trl(task: dict[str, Any]) -> Measure:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTTrainer

    config = _config(task)
    examples = _weigh(config)
    ids = [example.input_ids.tolist() for example in examples]
    masks = [
        [0] * example.response_start + [1] * (len(example.input_ids) - example.response_start) for example in examples
    ]

    class Clock(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            self.clock = _Clock(task, trainer.model)

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            self.clock.step_done()

    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=LORA["rank"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        target_modules=LORA["targets"],
    )
    clock = Clock()
    trainer = SFTTrainer(
        model=load_model(config.model),
        args=_trl_settings(task, config.output),
        train_dataset=Dataset.from_dict({"input_ids": ids, "completion_mask": masks}),
        processing_class=load_tokenizer(config.model),
        peft_config=adapters,
        callbacks=[clock],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return clock.clock.measure() | {"losses": losses}


def _released(task: dict[str, Any]) -> Measure:
    config = _config(task)
    model, folder = _with_adapters(config), Path(task["folder"])
    rows = _scoring_rows(folder, json.loads((folder / "model" / "rows.json").read_text()))
    size = task["batch_size"]

    def take(step: int) -> float:
        total = 0.0
        for row in rows[step * size : (step + 1) * size]:
            loss = _released_loss(model, row) / size
            loss.backward()
            total += loss.item()
        return total

    return _loop(task, model, take, len(rows) // size)


def _released_loss(model: Any, row: ScoringRow) -> torch.Tensor:
    p_base, p_judge, p_standard, hidden, salient = released_facts(model, row)
    near = torch.zeros(len(salient), dtype=torch.bool)
    near[list(grow(hidden, salient.nonzero()[:, 0].tolist()))] = True
    if "judge" in row.prompts:
        lowered = -2 * torch.sigmoid((p_judge / p_base).detach() - 1.5) * torch.log(1 - p_base)
        terms = torch.where(salient, lowered, torch.where(near, 0.0, -p_standard.detach().sqrt() * p_base.log()))
    else:
        share = (p_standard / 0.95).detach()
        terms = -torch.where(salient, 1.0, torch.where(near, share**0.3, share**0.6)) * p_base.log()
    return 10 * (terms.mean() - p_base.log().mean())


PATTERNS: dict[str, Callable[[dict[str, Any]], Measure]] = {
    "ours": _ours,
    "ours2": _ours_on_two,
    "without_ray": _without_ray,
    "plain": _plain,
    "trl": _trl,
    "released": _released,
}
