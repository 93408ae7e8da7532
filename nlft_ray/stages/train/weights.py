"""The course of command `weights`: a policy's weights as a table for other people's trainers. Nothing is trained here.

Each row is one example with as many labels, weights and signs as it has tokens (`schema.TOKEN_WEIGHTS`). The loss that
belongs to it, which `train` takes by default, is the mean over examples of

    (1/n) · Σ over tokens of  −weight · log p  where sign is +1,  −weight · log(1 − p)  where it is −1

with n the number of labels that are not −100, and p the probability of a label given the tokens before it.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nlft_ray.config import ModelConfig, WeightsConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import max_length
from nlft_ray.stages.train.examples import Example
from nlft_ray.stages.train.weighing import Weighing
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    StageResult,
    begin,
    check_rejects,
    finish,
    identity_of,
    input_fingerprint,
    read_manifest,
)
from nlft_ray.tables.schema import TOKEN_WEIGHTS
from nlft_ray.tables.shards import DATA, REJECTED, rejects_table

_NO_LABEL = -100  # what torch and transformers leave out of a loss
_ROWS_PER_FILE = 4_000


def write_weights(config: WeightsConfig) -> StageResult:
    """Weigh a scored table and write tokens, labels, weights and signs. Killed, it is written anew: it is quick.

    Raises:
        UserError: the input is no finished scored table, the output is taken, the policy gives no weight to any row, or
            it raises and lowers the same token, which one sign cannot say.
    """
    source, output = Folder(config.input), Folder(config.output)
    scored = read_manifest(source, table="scored")
    identity = identity_of(
        config,
        "weights",
        table="token_weights",
        model=scored.identity.model,
        tokenizer=scored.identity.tokenizer,
        input=input_fingerprint(scored),
    )
    complete = begin(output, identity, overwrite=config.overwrite)
    if complete is not None:
        return StageResult(output=config.output, manifest=complete, reused=True)
    for name in (DATA, REJECTED):
        (output / name).remove()
    began = time.monotonic()
    model = ModelConfig.model_validate(scored.identity.config["model"])
    weighing = Weighing(config.policy, max_length(model))
    for number, table in enumerate(_tables(weighing.examples(source), config.policy.loss_scale)):
        (output / DATA).write_table(f"part-{number:06d}.parquet", table)
    if weighing.rejects:
        (output / REJECTED).write_table("part-000000.parquet", rejects_table("weights", weighing.rejects))
    manifest = weighing.manifest(identity, epochs=1)
    manifest = manifest.model_copy(update={"seconds": time.monotonic() - began})
    check_rejects(config, "weights", manifest, output)
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _tables(examples: Iterator[Example], loss_scale: float) -> Iterator[pa.Table]:
    while rows := [token_weights(example, loss_scale) for example in itertools.islice(examples, _ROWS_PER_FILE)]:
        yield pa.Table.from_pylist(rows, schema=TOKEN_WEIGHTS)


def token_weights(example: Example, loss_scale: float) -> dict[str, Any]:
    """An example as a row of `TOKEN_WEIGHTS`.

    Raises:
        UserError: a token is both raised and lowered.
    """
    raised, lowered = example.likelihood > 0, example.unlikelihood > 0
    if (raised & lowered).any():
        raise UserError(
            f"policy: it both raises and lowers a token of row '{example.id}', which a weight and a sign cannot say. "
            "Set the policy's anchor to 0, or train with nlft-ray."
        )
    prompt = example.response_start

    def whole(values: npt.NDArray[Any], before: int) -> npt.NDArray[Any]:
        return np.concatenate([np.full(prompt, before, values.dtype), values])

    return {
        "id": example.id,
        "input_ids": example.input_ids,
        "labels": whole(example.input_ids[prompt:], _NO_LABEL),
        "weights": whole(loss_scale * np.where(lowered, example.unlikelihood, example.likelihood), 0),
        "signs": whole(raised.astype(np.int8) - lowered.astype(np.int8), 0),
    }
