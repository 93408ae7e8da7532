"""Batched generation by transformers, in this process."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.loading import vocabulary_size
from nlft_ray.models.memory import Batches
from nlft_ray.models.sharding import is_shared

_ADVICE = (
    "Lower max_new_tokens or model.max_length, take model.dtype=bfloat16, or give a worker more: pool.gpus_per_worker, "
    "or fewer workers on a node by pool.max_workers."
)


class Generator:
    """A model that continues prompts. On a CPU, seed, prompts and batch size determine what comes out, bit for bit.

    A batch that memory does not hold is halved, and later ones are no larger; other random numbers are drawn then.
    """

    def __init__(self, model: PreTrainedModel, *, ends: list[int], max_length: int, batch_size: int):
        self._model = model
        self.vocabulary = vocabulary_size(model)
        self._max_length = max_length
        self._batch_size = batch_size
        self._memory = Batches("prompts and what may follow them", _ADVICE, halves=not is_shared(model))
        self.ends = ends
        # transformers fills whatever is not said from here: a repetition penalty of the model's file, for one
        model.generation_config = GenerationConfig()

    def __call__(self, prompts: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> list[list[int]]:
        """New tokens for each prompt, the end-of-turn token included where the model wrote one.

        A prompt that leaves no room for `max_new_tokens` gets what room there is; it must leave room for one.
        """
        torch.manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in a batch
        responses: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            some = self._memory.run(
                [prompts[index] for index in batch],
                lambda prompt: len(prompt) + decoding.max_new_tokens,
                lambda prompts: self._generate(prompts, decoding),
            )
            for index, response in zip(batch, some, strict=True):
                responses[index] = response
        return responses

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self.ends[0]  # masked, so any id will do
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": 0,  # transformers would cut to 50 by default
            }
        output = self._model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=GenerationConfig(
                max_new_tokens=min(decoding.max_new_tokens, self._max_length - longest),
                eos_token_id=self.ends,
                pad_token_id=pad,
                **sampling,
            ),
        )
        return [self._until_end(row) for row in output[:, longest:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        for position, token in enumerate(ids):
            if token in self.ends:
                return ids[: position + 1]
        return ids
