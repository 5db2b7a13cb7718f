"""From a batch to its loss: passes, beta of each example, the loss's values, and the columns that are reported."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.betas import BetaFeatures, BetaOutput, BetaStrategy, Progress, epsilon_steps
from ledpo_plugin.facts import is_learned
from ledpo_plugin.losses import LOSSES, PairLogps, UnpairedLogps, function_of
from ledpo_plugin.modeling.forward import Mixture, RowOutput, kinds_of_tokens
from ledpo_plugin.modeling.logit_positions import PREFIX

from .beta_training import RunningMean
from .metrics import pair_metrics, unpaired_metrics
from .passes import Passes
from .side_optimizer import mean_over_ranks


def at_bounds(beta: Tensor, args: Any) -> Tensor:
    """Return 1.0 where a learned beta is within 1 % of the width (in ln beta) of one of its bounds, `[B]`."""
    if not is_learned(args.beta_mode):
        return torch.zeros_like(beta)
    low, high = math.log(args.beta_min), math.log(args.beta_max)
    place = (beta.log() - low) / (high - low)
    return ((place < 0.01) | (place > 0.99)).float()


def _split(rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the chosen and the rejected half of a `[2B]` tensor."""
    return (None, None) if rows is None else tuple(rows.chunk(2))


class Objective:
    """The loss of a batch of preferences; subclasses say what one kind of data needs."""

    def __init__(
        self,
        *,
        args: Any,
        strategy: BetaStrategy,
        passes: Passes,
        reward_mean: RunningMean,
        accelerator: Any,
        progress: Callable[[], Progress],
    ) -> None:
        """Set up the objective.

        Args:
            args: the host's finetuning arguments, with the plugin's keys; `pref_loss` names the loss.
            strategy: decides beta.
            passes: of policy and reference.
            reward_mean: BCO's running mean of rewards, kept in checkpoints.
            accelerator: of the run, for what examples of all processes decide.
            progress: says how far the run has come.
        """
        self.args, self.strategy, self.passes = args, strategy, passes
        self.loss = LOSSES[args.pref_loss]
        self.loss_function = function_of(self.loss.name)
        self.reward_mean, self.accelerator, self.progress = reward_mean, accelerator, progress

    def __call__(self, model: nn.Module, batch: dict[str, Any], training: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the batch's mean loss, and one column `[B]` of numbers per quantity to report.

        Args:
            model: the policy, wrapped or not.
            batch: of the collator, on the device.
            training: whether it is learned from, and counted in what training uses.
        """
        raise NotImplementedError

    def summarise(self, columns: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the metrics of columns `[N]` of the objective."""
        raise NotImplementedError

    def _mean_loss(self, losses: Tensor, beta: BetaOutput) -> Tensor:
        if beta.weights is not None:
            losses = losses * beta.weights
        loss = losses.mean()
        if beta.log_ratio is not None and self.args.beta_penalty > 0:
            loss = loss + self.args.beta_penalty * beta.log_ratio.square().mean()
        return loss


class PairObjective(Objective):
    """The loss of pairs: passes give results as `[chosen; rejected]`."""

    def __call__(self, model, batch, training):
        """Return the mean loss and the columns of `pair_metrics`."""
        reference, mixture = None, None
        if self.loss.needs_reference or self.strategy.mode.needs_reference:
            reference = self.passes.reference_rows(model, batch, counted=training)
        if "epsilon_step" in self.strategy.needs:
            mixture = Mixture(reference.logits, self.strategy.epsilon)
        policy = self.passes.policy_rows(model, batch, counted=training, mixture=mixture)
        logps = self._pair_logps(policy, reference)
        with torch.no_grad():
            features = self._features(logps, policy, reference, training)
        beta = self.strategy(features)
        options = self.loss.options_of(self.args) | self._delta(logps, beta, training)
        output = self.loss_function(logps, beta.beta, **options)
        losses = self._with_bco(output.losses, logps, beta, training)
        nll = -logps.policy_chosen / logps.chosen_length
        if self.args.pref_ftx > 0:
            losses = losses + self.args.pref_ftx * nll
        columns = {
            "losses": losses,
            "margin": self._beta_free_margin(logps),
            "beta": beta.beta,
            "at_bounds": at_bounds(beta.beta, self.args),
            "chosen_rewards": output.chosen_rewards,
            "rejected_rewards": output.rejected_rewards,
            "chosen_logps": logps.policy_chosen,
            "rejected_logps": logps.policy_rejected,
            "chosen_length": logps.chosen_length,
            "rejected_length": logps.rejected_length,
        }
        if self.args.pref_ftx > 0 or self.loss.sft_term:
            columns["nll"] = nll
        return self._mean_loss(losses, beta), columns

    def summarise(self, columns):
        """Return the metrics of pairs."""
        return pair_metrics(columns)

    def _pair_logps(self, policy: RowOutput, reference: RowOutput | None) -> PairLogps:
        keep = reference is not None and self.loss.needs_reference
        return PairLogps(
            *_split(policy.logps), *_split(reference.logps if keep else None), *_split(policy.lengths.float())
        )

    def _beta_free_margin(self, logps: PairLogps) -> Tensor:
        """Return the margin `[B]` in the units of the loss: per token where the loss is length-normalised."""
        chosen, rejected = logps.policy_chosen.detach(), logps.policy_rejected.detach()
        if logps.reference_chosen is not None:
            chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
        if self.loss.length_normalised:
            chosen, rejected = chosen / logps.chosen_length, rejected / logps.rejected_length
        return chosen - rejected

    def _features(
        self, logps: PairLogps, policy: RowOutput, reference: RowOutput | None, training: bool
    ) -> BetaFeatures:
        needs = self.strategy.needs
        source = reference if self.args.beta_head_source == "reference" else policy
        size = logps.policy_chosen.shape[0]
        entropy = None
        if "reference_entropy" in needs:
            entropy = torch.stack(_split(reference.entropy)).mean(0)
        return BetaFeatures(
            size=size,
            # The prompt is the same in both halves and the model is causal: the chosen half's rows serve.
            hidden=source.hidden[:size] if "hidden" in needs else None,
            prompt_nll=source.prompt_nll[:size] if "prompt_nll" in needs else None,
            margin=self._beta_free_margin(logps) if "margin" in needs else None,
            reference_entropy=entropy,
            epsilon_step=self._epsilon_step(policy) if "epsilon_step" in needs else None,
            gather=self.accelerator.gather,
            rank=self.accelerator.process_index,
            training=training,
            progress=self.progress(),
        )

    @staticmethod
    def _epsilon_step(policy: RowOutput) -> Tensor:
        """Return epsilon-DPO's step `[B]` in {-1, 0, 1}."""
        up, now, down = (
            chosen - rejected
            for chosen, rejected in map(_split, (policy.mixtures[0], policy.logps, policy.mixtures[1]))
        )
        return epsilon_steps(up, now.detach(), down)

    def _delta(self, logps: PairLogps, beta: BetaOutput, training: bool) -> dict[str, Tensor]:
        return {"delta": self._mean_reward(logps, beta, training)} if self.loss.running_reward_mean else {}

    def _mean_reward(self, logps: PairLogps, beta: BetaOutput, training: bool) -> Tensor:
        running = self.reward_mean
        if not training:
            return running.mean
        ratios = torch.cat(
            [logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected]
        )
        return running.update((beta.beta.repeat(2) * ratios).mean())

    def _with_bco(self, losses: Tensor, logps: PairLogps, beta: BetaOutput, training: bool) -> Tensor:
        """Mix in BCO's loss as LLaMA-Factory's `pref_bco_weight` does: (L + w * L_bco) / (1 + w)."""
        weight = self.args.pref_bco_weight
        if weight == 0:
            return losses
        delta = self._mean_reward(logps, beta, training)
        bco = function_of("bco_pair")(logps, beta.beta, delta=delta).losses
        return (losses + weight * bco) / (1.0 + weight)


class UnpairedObjective(Objective):
    """The loss of single answers marked good or bad (KTO), with the KL term of mismatched answers."""

    def __call__(self, model, batch, training):
        """Return the mean loss and the columns of `unpaired_metrics`."""
        desirable = batch.pop("kto_tags")
        mismatched = self.mismatched(model, batch)
        answered = {key: value for key, value in batch.items() if not key.startswith("kl_")}
        policy = self.passes.policy_rows(model, answered, counted=training)
        reference = self.passes.reference_rows(model, answered, counted=training)
        with torch.no_grad():
            policy_kl = self.passes.policy_logps_only(model, mismatched, counted=training)
            reference_kl = self.passes.reference_rows(model, mismatched, counted=training, wants=frozenset()).logps
            kl = mean_over_ranks((policy_kl - reference_kl).mean())
        logps = UnpairedLogps(policy.logps, reference.logps, desirable, kl)
        source = reference if self.args.beta_head_source == "reference" else policy
        beta = self.strategy(
            BetaFeatures(
                size=desirable.shape[0],
                hidden=source.hidden,
                prompt_nll=source.prompt_nll,
                gather=self.accelerator.gather,
                rank=self.accelerator.process_index,
                training=training,
                progress=self.progress(),
            )
        )
        output = self.loss_function(logps, beta.beta, **self.loss.options_of(self.args))
        losses, extra = output.losses, {}
        if self.args.pref_ftx > 0:
            nll = -policy.logps / policy.lengths
            losses = losses + self.args.pref_ftx * nll * desirable
            extra["nll"] = nll
        sign = torch.where(desirable, 1.0, -1.0)
        zero_point = kl.clamp(min=0)
        columns = {
            "losses": losses,
            "margin": sign * ((policy.logps - reference.logps).detach() - zero_point),
            "beta": beta.beta,
            "at_bounds": at_bounds(beta.beta, self.args),
            "rewards": output.chosen_rewards,
            "logps": policy.logps,
            "desirable": desirable.float(),
            "kl": zero_point.expand(desirable.shape[0]),
            **extra,
        }
        return self._mean_loss(losses, beta), columns

    def summarise(self, columns):
        """Return the metrics of single answers."""
        return unpaired_metrics(columns)

    def mismatched(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch of the same prompts with their neighbours' answers; images and the like are shared."""
        rows = {"input_ids", "attention_mask", "labels", "token_type_ids", "cross_attention_mask"}
        rows |= {"position_ids", "rope_deltas"}  # of the answers' own lengths; the model makes them anew
        shared = {k: v for k, v in batch.items() if not k.startswith(("kl_", PREFIX)) and k not in rows}
        other = shared | {key.removeprefix("kl_"): value for key, value in batch.items() if key.startswith("kl_")}
        if "position_ids" in batch:
            other |= kinds_of_tokens(self.accelerator.unwrap_model(model), other["input_ids"])
        return other
