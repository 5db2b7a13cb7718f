"""Rewards of answers: from reward models, trained runs, servers and functions; several of them weighted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ledpo_plugin.facts import REWARDS, implementation

from ._types import NONE, RewardBatch, RewardError, RewardOutput, Source
from ._wanted import Wanted, wanted

__all__ = ["RewardBatch", "RewardError", "RewardOutput", "Rewards", "build_rewards"]


@dataclass(frozen=True)
class Context:
    """What sources are built from: the policy and the host's arguments."""

    model: nn.Module  # the policy, as the host loaded it
    tokenizer: Any
    template: Any
    model_args: Any
    data_args: Any
    training_args: Any
    finetuning_args: Any
    log: Callable[[str], None]

    @property
    def rows(self) -> int:
        """Answers a pass of a reward model: as many as a step of training takes, as in LLaMA-Factory."""
        return self.training_args.per_device_train_batch_size


class Rewards:
    """All sources of rewards of a run, added up."""

    def __init__(self, sources: Sequence[Source], wanted: Sequence[Wanted], clip: float | None = None):
        self.sources, self._wanted, self.clip = list(sources), list(wanted), clip

    @property
    def names(self) -> list[str]:
        """The sources' names, in the recipe's order."""
        return [one.name for one in self._wanted]

    @property
    def weights(self) -> list[float]:
        """The sources' weights, in the recipe's order."""
        return [one.weight for one in self._wanted]

    @property
    def passes(self) -> float:
        """Passes over an answer that all its scores take, of a model as large as the policy; 0 of a server."""
        return sum(source.passes for source in self.sources)

    @torch.no_grad()
    def score(self, batch: RewardBatch, model: nn.Module) -> RewardOutput:
        """Return the rewards of a batch of answers.

        A source that weighs 0 is only watched: it goes into `parts`, and what it does not say takes no reward away.

        Args:
            batch: R answers.
            model: the policy, unwrapped and in evaluation mode.

        Raises:
            RewardError: a source cannot give anything.
            ValueError: the model is in training mode, in which its dropout would decide along.
        """
        if model.training:
            raise ValueError("Rewards are asked of a model in training mode; call model.eval() first.")
        device = next(model.parameters()).device
        parts = {
            one.name: source.score(batch, model).to(device=device, dtype=torch.float32)
            for one, source in zip(self._wanted, self.sources, strict=True)
        }
        total = torch.zeros(batch.size, device=device)
        for one in self._wanted:
            if one.weight != 0:
                total = total + one.weight * parts[one.name]
        failed = ~torch.isfinite(total)
        if self.clip is not None:
            total = total.clamp(-self.clip, self.clip)
        return RewardOutput(total.masked_fill(failed, NONE), parts, failed)


def build_rewards(
    *,
    model: nn.Module,
    tokenizer: Any,
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    log: Callable[[str], None],
) -> Rewards:
    """Return the rewards that a recipe wants; to be called when the policy is loaded and before its trainer is made.

    Args:
        model: the policy; adapters of reward models on the same base are added to it, frozen and not active.
        tokenizer: the policy's, as its template left it.
        template: the policy's.
        model_args: the host's.
        data_args: the host's.
        training_args: the host's.
        finetuning_args: the host's, with the plugin's keys.
        log: takes a sentence.

    Raises:
        RewardError: a source cannot be loaded, or does not fit the policy.
    """
    context = Context(model, tokenizer, template, model_args, data_args, training_args, finetuning_args, log)
    own = finetuning_args
    rows = wanted(own.reward_model, own.reward_model_type, own.reward_weights)
    sources = [implementation(REWARDS[one.kind].where, __name__)(one, context) for one in rows]
    return Rewards(sources, rows, own.reward_clip)
