"""Completions by vLLM, in this process: its own kernels, its own batches, several GPUs where the process sees them."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import transformers

from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.engines.engine import Decoding, prompt_seed
from nlft_ray.models.folders import ADAPTER, adapter_of, model_folder, read_json
from nlft_ray.models.loading import dtype_of
from nlft_ray.models.memory import EngineFailed

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""


class VllmEngine:
    """A model that vLLM runs, its layers spread over all GPUs of this process; an adapter stays beside its base."""

    def __init__(self, model: ModelConfig, ends: list[int], max_length: int, batch_size: int):
        """Raises UserError: vLLM is not installed, or does not load the model."""
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"engine: vllm is not installed where the actors run ({error}): pip install 'nlft-ray[vllm]'"
            ) from error
        if model.quantization is not None:
            raise UserError("engine: vllm takes weights as they lie; model.quantization needs engine=transformers.")
        from vllm.v1.engine.exceptions import EngineDeadError

        self._vllm: Any = vllm
        self._dead = EngineDeadError
        self._max_length, self.ends = max_length, ends
        folder = model_folder(model)
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        self.vocabulary = int(settings.get_text_config().vocab_size)
        self._adapter, rank = _adapter(model)
        try:
            self._model = vllm.LLM(
                model=str(folder),
                skip_tokenizer_init=True,  # it is given ids and gives ids
                trust_remote_code=model.trust_remote_code,
                dtype=str(dtype_of(model)).removeprefix("torch."),
                generation_config="vllm",  # nothing of what the model's own file would set
                tensor_parallel_size=max(torch.cuda.device_count(), 1),
                distributed_executor_backend="mp" if torch.cuda.device_count() > 1 else None,
                max_model_len=max_length,
                max_num_seqs=batch_size,
                enable_prefix_caching=True,
                # Where a prompt is cut, vLLM winds back the generator that its seed made, which one on a CPU cannot.
                enable_chunked_prefill=torch.cuda.is_available(),
                **({"enable_lora": True, "max_lora_rank": rank} if rank else {}),
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"engine: vllm does not load {model.path}: {' '.join(str(error).split())[:400]}") from error

    def __call__(self, prompts: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> list[list[int]]:
        """New tokens for each prompt (see `Engine`). Each is drawn by a seed of its own, whatever runs beside it.

        Raises:
            EngineFailed: vLLM's own process has ended.
        """
        try:
            outputs = self._model.generate(
                [self._vllm.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts],
                [self._sampling(len(prompt), decoding, prompt_seed(seed, i)) for i, prompt in enumerate(prompts)],
                use_tqdm=False,
                lora_request=self._adapter,
            )
        except self._dead as error:
            raise EngineFailed(f"vLLM ended: {error}") from error
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _sampling(self, prompt_length: int, decoding: Decoding, seed: int) -> Any:
        return self._vllm.SamplingParams(
            max_tokens=min(decoding.max_new_tokens, self._max_length - prompt_length),
            temperature=decoding.temperature,
            top_p=decoding.top_p if decoding.temperature else 1.0,
            seed=seed if decoding.temperature else None,
            stop_token_ids=self.ends,
            ignore_eos=True,  # `ends` holds it where it ends a turn
            detokenize=False,
        )


def _adapter(model: ModelConfig) -> tuple[Any, int]:
    """What vLLM is told with each request of an adapter, and the rank that it must make room for; None and 0 of none.

    Raises:
        UserError: an adapter on an adapter.
    """
    adapter = adapter_of(model)
    if adapter is None:
        return None, 0
    if adapter_of(adapter.base, weights=False) is not None:
        raise UserError(
            f"engine: vllm takes one adapter, and {model.path} is one on another: export it merged, or use "
            "engine=transformers."
        )
    from vllm.lora.request import LoRARequest

    wanted = int(read_json(adapter.folder / ADAPTER).get("r", 0))
    rank = next((rank for rank in _LORA_RANKS if rank >= wanted), wanted)
    return LoRARequest("adapter", 1, str(adapter.folder)), rank
