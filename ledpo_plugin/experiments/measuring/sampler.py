"""What the measured model answers, greedily or drawn; how likely that is, and what reward models say of it."""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ledpo_plugin.modeling.forward import forward_rows
from ledpo_plugin.modeling.generate import drawn, greedy, readable_prompt
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.output_layer import output_layer
from ledpo_plugin.modeling.padding import answered_prompts
from ledpo_plugin.rewards import RewardBatch, build_rewards

from .loader import BATCH, Loaded
from .weights import Weights, require_finite


class Sampler:
    """Generates answers under the weights that were put in last, and scores answers by reward models."""

    def __init__(self, loaded: Loaded, weights: Weights) -> None:
        """Take model and data, and which weights the model has."""
        self.loaded, self.weights = loaded, weights
        self._rewards: dict[str, Any] = {}  # folder of a reward model -> it

    def generations(self, name: str, count: int, max_new_tokens: int) -> list[dict[str, Any]]:
        """Return what the model answers, greedily, to the first `count` prompts of a data set of pairs."""
        prompts = self.loaded.prompt_ids(name)[:count]
        with self.loaded.trainer.compute_loss_context_manager():
            rows = greedy(self.loaded.base_model, prompts, **self._limits(max_new_tokens))
        return [self._described(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def answers(self, name: str, count: int, max_new_tokens: int, seed: int) -> list[dict[str, Any]]:
        """Return answers that the model draws to the first `count` prompts of a data set of pairs.

        Returns:
            Rows as of `generations`, with `logps` and `start_logps`, what the model and the start say of the answer
            (nats, summed, with what ended it), and `entropy` of the model's next token (nats, mean over the answer).
        """
        loaded = self.loaded
        prompts = loaded.prompt_ids(name)[:count]
        with loaded.trainer.compute_loss_context_manager():
            rows = drawn(loaded.base_model, prompts, seed=seed, **self._limits(max_new_tokens))
        whole = [_whole(row) for row in rows]
        logps, entropy = self._likelihoods(loaded.model, prompts, whole)
        start = logps
        if not self.weights.at_start:  # else the model is the start, with its adapter off already
            with self.weights.as_started() as started:
                start, _ = self._likelihoods(started, prompts, whole)
        return [
            {
                **self._described(prompt, row),
                "logps": logps[place],
                "start_logps": start[place],
                "entropy": entropy[place],
            }
            for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    def scores(self, name: str, rows: Sequence[Mapping[str, Any]], folder: str) -> list[float]:
        """Return what a reward model says of answers (rows of `answers`) to a data set's prompts, one number each.

        Args:
            name: of the data set.
            rows: answers to its first prompts.
            folder: the output of LLaMA-Factory's stage rm, an adapter or a whole model.

        Raises:
            RewardError: it does not fit the model.
        """
        if folder not in self._rewards:
            self._rewards[folder] = self._reward(folder)
        loaded = self.loaded
        prompts = loaded.prompt_ids(name)[: len(rows)]
        answers = [_whole(row) for row in rows]
        batch = RewardBatch.from_ids(prompts, answers, loaded.tokenizer, loaded.arguments.training.device)
        with loaded.trainer.compute_loss_context_manager():
            model = loaded.trainer.accelerator.unwrap_model(loaded.model)
            totals = self._rewards[folder].score(batch, model).total
        require_finite(totals, f"answers by the reward model {folder}")
        return totals.tolist()

    def _limits(self, max_new_tokens: int) -> dict[str, Any]:
        loaded = self.loaded
        return {
            "stops": sorted(loaded.template.get_stop_token_ids(loaded.tokenizer)),
            "pad_id": loaded.pad_id,
            "max_new_tokens": max_new_tokens,
            "batch_size": BATCH,
        }

    def _described(self, prompt: Sequence[int], row: Mapping[str, Any]) -> dict[str, Any]:
        loaded = self.loaded
        return {
            "prompt": readable_prompt(prompt, loaded.tokenizer, loaded.template),
            "output": loaded.tokenizer.decode(row["ids"], skip_special_tokens=True),
            "tokens": len(row["ids"]),
            **row,
        }

    @torch.no_grad()
    def _likelihoods(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> tuple[list[float], list[float]]:
        """Return log-probability and entropy of each answer, nats."""
        trainer = self.loaded.trainer
        logps, entropy = [], []
        for first in range(0, len(prompts), BATCH):
            part = slice(first, first + BATCH)
            batch = answered_prompts(prompts[part], answers[part], self.loaded.pad_id)
            planned = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"]).to_batch()
            batch = trainer.on_device(batch | planned)
            with trainer.compute_loss_context_manager():
                output = forward_rows(model, batch, wants=frozenset({"entropy"}))
            logps.append(output.logps.float().cpu())
            # The pass gives entropies as shares of the largest possible one.
            entropy.append(output.entropy.float().cpu() * math.log(output_layer(model).weight.shape[0]))
        joined = torch.cat(logps)
        require_finite(joined, "answers of its own")
        return joined.tolist(), torch.cat(entropy).tolist()

    def _reward(self, folder: str) -> Any:
        arguments = self.loaded.arguments
        finetuning_args = copy.copy(arguments.finetuning)
        finetuning_args.reward_model = folder
        finetuning_args.reward_weights, finetuning_args.reward_clip = None, None
        adapter = (Path(folder) / "adapter_config.json").is_file()
        finetuning_args.reward_model_type = "lora" if adapter else "full"
        return build_rewards(
            model=self.loaded.model,
            tokenizer=self.loaded.tokenizer,
            template=self.loaded.template,
            model_args=arguments.model,
            data_args=arguments.data,
            training_args=arguments.training,
            finetuning_args=finetuning_args,
            log=self.loaded.log,
        )


def _whole(row: Mapping[str, Any]) -> list[int]:
    """Return the tokens of an answer with what ended it."""
    return [*row["ids"], *([] if row["end"] is None else [row["end"]])]
