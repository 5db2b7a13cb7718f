"""The passes that a loss is made of: the policy's and the reference's over a batch, counted while training."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ledpo_plugin.betas import BetaStrategy
from ledpo_plugin.modeling.forward import Mixture, RowOutput, forward_rows, predictions
from ledpo_plugin.reference.cache import ReferenceCache
from ledpo_plugin.reference.caching import ROW, SET, to_output, to_values
from ledpo_plugin.reference.model import ReferenceModel

from .usage import Usage


class Passes:
    """Runs policy and reference over batches, and asks them for what the strategy reads."""

    def __init__(
        self,
        *,
        args: Any,
        strategy: BetaStrategy,
        reference: ReferenceModel,
        caches: Sequence[ReferenceCache],
        usage: Usage,
    ) -> None:
        """Set up the passes of a run.

        Args:
            args: the host's finetuning arguments, with the plugin's keys.
            strategy: whose needs decide what a pass returns.
            reference: of the run.
            caches: of the reference, by the number that a batch's rows name.
            usage: counts the passes of training.
        """
        self.args, self.strategy, self.reference = args, strategy, reference
        self.caches, self.usage = caches, usage

    def wants(self, source: str) -> frozenset[str]:
        """Return what a pass of `source` ("policy" or "reference") must give besides log-probabilities."""
        needs = self.strategy.needs
        wants = needs & {"hidden", "prompt_nll"} if source == self.args.beta_head_source else set()
        if source == "reference" and "reference_entropy" in needs:
            wants = wants | {"entropy"}
        if source == "reference" and "epsilon_step" in needs:
            wants = wants | {"logits"}
        return frozenset(wants)

    def policy_rows(
        self, model: nn.Module, batch: Mapping[str, Any], *, counted: bool, mixture: Mixture | None = None
    ) -> RowOutput:
        """Return what the policy says, with gradient unless it is frozen; `counted` in what training uses."""
        if counted:
            self.usage.policy(batch, predictions(batch))
        with torch.no_grad() if self.args.freeze_policy else nullcontext():
            return forward_rows(model, batch, wants=self.wants("policy"), ld_alpha=self.args.ld_alpha, mixture=mixture)

    def reference_rows(
        self, model: nn.Module, batch: Mapping[str, Any], *, counted: bool, wants: frozenset[str] | None = None
    ) -> RowOutput:
        """Return what the reference says: from the cache, or by a pass that is then put into it.

        What it says depends on the cache's key alone, so nothing random acts in it, whatever acts in the policy.
        `ld_alpha` weighs the policy's side alone, as in LLaMA-Factory and in TRL up to 0.28: margins are then not 0
        where policy and reference are one.

        Args:
            model: the policy, wrapped or not.
            batch: of the collator.
            counted: whether it is part of what training uses.
            wants: what it must give besides log-probabilities; left out: what the strategy reads.
        """
        cached = to_output(batch)
        if counted:
            self.usage.forward_only(batch, predictions(batch), ran=cached is None)
        if cached is not None:
            return cached
        with torch.no_grad(), self.reference.at_work(model) as reference:
            output = forward_rows(reference, batch, wants=self.wants("reference") if wants is None else wants)
        if ROW in batch:
            cache = self.caches[batch[SET]]
            cache.put(batch[ROW], to_values(output, batch[ROW].shape[0]))
        return output

    def policy_logps_only(self, model: nn.Module, batch: Mapping[str, Any], *, counted: bool) -> torch.Tensor:
        """Return the policy's log-probabilities `[R]` of a batch that nothing is learned from; without gradient."""
        if counted:
            self.usage.forward_only(batch, predictions(batch), ran=True)
        with torch.no_grad():
            return forward_rows(model, batch).logps

    def instruction_nll(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the mean NLL per token `[n]` of each instruction's answer; always counted: they come in training."""
        self.usage.policy(batch, predictions(batch))
        self.usage.counts.sft_tokens += batch["input_ids"].numel()
        self.usage.counts.sft_examples += batch["input_ids"].shape[0]
        output = forward_rows(model, batch)
        return -output.logps / output.lengths
