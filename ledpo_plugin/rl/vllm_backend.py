"""Rollouts by vLLM. Written after vLLM's documentation and never run here, where there is neither a GPU nor vLLM.

The engine holds the base model once more; before each rollout it gets the policy as a LoRA adapter, written to a
folder of this process. Draws are vLLM's own, by the seed of each answer.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from ledpo_plugin.host.distributed import whole_for_generation

from .generate import Answer, Sampling, cut_behind_stop


class VllmGenerator:
    """Answers prompts with vLLM: called with the trainer, prompts as token ids, and a seed for each answer."""

    def __init__(self, model_args: Any, data_args: Any, finetuning_args: Any, sampling: Sampling):
        self.model_args, self.sampling = model_args, sampling
        self.rank_of_adapter = finetuning_args.lora_rank
        self.longest = data_args.cutoff_len + sampling.max_new_tokens
        self.folder = tempfile.TemporaryDirectory(prefix="ledpo-vllm-")
        self._engine: Any = None
        self._adapters = 0

    def __call__(self, trainer: Any, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Answer]:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        if self._engine is None:
            self._engine = LLM(
                model=self.model_args.model_name_or_path,
                trust_remote_code=self.model_args.trust_remote_code,
                enable_lora=True,
                max_lora_rank=max(8, self.rank_of_adapter),
                max_model_len=self.longest,
                gpu_memory_utilization=0.4,  # the policy in training has the rest
            )
        self._adapters += 1  # vLLM keeps adapters by number: a new one for each state of the policy
        path = f"{self.folder.name}/{self._adapters}"
        with whole_for_generation(trainer) as model:
            model.save_pretrained(path)
        drawn = self.sampling
        params = [
            SamplingParams(
                temperature=0.0 if drawn.greedy else drawn.temperature,
                top_p=drawn.top_p,
                top_k=drawn.top_k,
                repetition_penalty=drawn.repetition_penalty,
                max_tokens=drawn.max_new_tokens,
                stop_token_ids=list(drawn.stops),
                seed=None if drawn.greedy else seed,
            )
            for seed in seeds
        ]
        outputs = self._engine.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            params,
            lora_request=LoRARequest("policy", self._adapters, path),
            use_tqdm=False,
        )
        stops = frozenset(drawn.stops)
        return [cut_behind_stop(list(output.outputs[0].token_ids), stops) for output in outputs]
