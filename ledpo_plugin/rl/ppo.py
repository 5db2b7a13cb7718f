"""The PPO phase of a run: it makes rollouts with the policy as it is, and says what the loss of their rows is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.common.atomic import replace_file
from ledpo_plugin.losses import PairLogps, function_of
from ledpo_plugin.modeling.head_file import HeadFileError
from ledpo_plugin.rewards import RewardError
from ledpo_plugin.training.side_optimizer import SideOptimizer, mean_over_ranks, sum_over_ranks

from .advantages import RunningMoments
from .experience import ExperienceMaker, Scored
from .generate import Answer
from .kl import KlCoefficient, kl_per_token
from .objectives import approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, token_mean
from .rollout import Rollout, load_rollout, save_rollout
from .sampler import PromptOrder, Schedule, Sizes, rows_of_update, seed_of
from .scores import TokenScores, answers_batch, score_answers
from .targets import adjusted_scores, advantages_of, best_and_worst, coefficients, head_pairs, pair_row
from .value_head import load_value_head, save_value_head

STATE = "ledpo_ppo_state.safetensors"
VALUE, KL, SCORES = "value.", "kl.", "scores."


@dataclass(frozen=True)
class Update:
    """The loss of a pass with gradient, and what is reported of it (detached)."""

    loss: Tensor
    finite: Tensor
    report: dict[str, Tensor]


class PpoPhase:
    """Everything of PPO that is not the trainer's."""

    def __init__(
        self, *, asking: ExperienceMaker, prompts: Any, sizes: Sizes, schedule: Schedule, seed: int, shuffled: bool
    ):
        """Set up the phase.

        Args:
            asking: makes answers and has them scored.
            prompts: rows with `input_ids`.
            sizes: answers of steps and rollouts.
            schedule: which steps are PPO's.
            seed: of the order of prompts and of draws.
            shuffled: whether prompts are shuffled.
        """
        args = asking.args
        self.asking, self.args, self.prompts = asking, args, prompts
        self.sizes, self.schedule, self.seed = sizes, schedule, seed
        self.order = PromptOrder(len(prompts), seed, shuffled)
        target = args.ppo_target if args.kl_control == "adaptive" else None
        self.kl = KlCoefficient(args.kl_coef, target=target, horizon=args.kl_horizon)
        self.moments = RunningMoments()
        self.value_head = asking.value_head
        self.value_optimizer: SideOptimizer | None = None
        self.rollout: Rollout | None = None
        self.pool: list[dict[str, Any]] = []  # pairs of the rollouts, for the next LEDPO phase
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Take the trainer whose policy answers."""
        self.trainer = self.asking.trainer = trainer
        for part in (self.kl, self.moments, self.value_head):
            if part is not None:
                part.to(trainer.args.device)
        if self.value_head is not None:
            self.value_optimizer = SideOptimizer(
                self.value_head.parameters(),
                lr_ratio=self.args.value_lr_ratio,
                max_grad_norm=trainer.args.max_grad_norm,
                trainer=trainer,
            )

    # ---- rollouts

    @torch.no_grad()
    def make_rollout(self, iteration: int) -> None:
        """Answer the prompts of a rollout and work out what is to be learned; all processes call it together.

        Raises:
            RewardError: too few answers have a reward; every process raises it, and nothing was changed.
        """
        sizes, trainer = self.sizes, self.trainer
        process = iteration * trainer.args.world_size + trainer.args.process_index
        prompts = [self.prompts[row]["input_ids"] for row in self.order.rows(process * sizes.prompts, sizes.prompts)]
        prompts = [prompt for prompt in prompts for _ in range(sizes.group)]
        first = process * sizes.rollout
        seeds = [seed_of("answer", self.seed, answer) for answer in range(first, first + sizes.rollout)]
        scored, problem = None, None
        with trainer.in_evaluation():
            answers = self.asking.answers(prompts, seeds)
            try:
                scored = self.asking.score(prompts, answers)
            except RewardError as error:  # said after all processes know of it: one that waits would wait for ever
                problem = str(error)
        self._require_rewards(scored, problem)
        trainer.usage.counts.answers += len(answers)
        self._learn_from(iteration, prompts, answers, scored)

    def _require_rewards(self, scored: Scored | None, problem: str | None) -> None:
        failed = self.sizes.rollout if scored is None else int(scored.rewards.failed.sum())
        state = [float(failed), float(self.sizes.rollout), float(problem is not None)]
        missing, answers, broken = sum_over_ranks(torch.tensor(state, device=self.trainer.args.device)).tolist()
        if problem is None and broken:
            problem = "A reward could not be computed in another process; its own message says why."
        limit = self.args.reward_max_failures
        if problem is None and missing > limit * answers:
            problem = (
                f"{missing:.0f} of the {answers:.0f} answers of a rollout have no reward, more than "
                f"reward_max_failures: {limit:g} allows. See the messages above for the reason; raise "
                "reward_max_failures only if so few answers are enough to learn from."
            )
        if problem is not None:
            raise RewardError(problem)

    def _learn_from(self, iteration: int, prompts: list[list[int]], answers: list[Answer], scored: Scored) -> None:
        trainer, args = self.trainer, self.args
        valid = ~scored.rewards.failed
        mask = scored.mask & valid.unsqueeze(1)
        coefficient = coefficients(self.kl.value, scored.beta if self.asking.by_beta else None, args.pref_beta, valid)
        scores = adjusted_scores(scored, answers, args, self.moments)
        advantages, returns = advantages_of(
            scored, scores, coefficient, mask, group=self.sizes.group, args=args, device=trainer.args.device
        )
        ids = [answer.ids for answer in answers]
        kept: dict[str, Tensor] = {}
        if args.rollout_pairs:
            pairs = best_and_worst(scores, valid, self.sizes.group)
            if self.asking.trains_head:
                kept = head_pairs(pairs, scored)
            else:
                self.pool += [pair_row(prompts[best], ids[best], ids[worst]) for best, worst in pairs]
        self.rollout = Rollout(
            iteration=iteration,
            prompts=prompts,
            answers=ids,
            mask=mask,
            old_logps=scored.policy,
            reference_logps=scored.reference,
            advantages=advantages,
            coefficient=coefficient,
            values=scored.values,
            returns=returns,
            **kept,
        )
        kl = kl_per_token(scored.policy, scored.reference, "k1", mask=scored.mask).sum(1)
        mean_kl = mean_over_ranks(kl.mean().to(trainer.args.device))
        self.kl.update(float(mean_kl), len(ids) * trainer.args.world_size)
        trainer.note_answers(_columns(scored, answers, kl, coefficient, advantages, mask))

    # ---- the loss

    def update(self, model: nn.Module, ppo_step: int, micro: int) -> Update:
        """Return the loss of one pass: of micro-batch number `micro` of PPO step number `ppo_step`.

        The parts of an optimizer step, over micro-batches and processes, add up to the mean over all its tokens.

        Raises:
            RewardError: a new rollout was due, and has no rewards.
        """
        sizes, trainer = self.sizes, self.trainer
        iteration, number = divmod(ppo_step, sizes.updates)
        if self.rollout is None or self.rollout.iteration != iteration:
            self.make_rollout(iteration)
        whole = rows_of_update(sizes, self.seed, iteration, number, trainer.args.process_index)
        rows = whole[micro * sizes.batch : (micro + 1) * sizes.batch]
        if micro == 0:
            tokens = self.rollout.mask[torch.tensor(whole)].sum().float().to(trainer.args.device)
            self._share = mean_over_ranks(tokens) / sizes.accumulated
        batch, part = self._batch(rows)
        wants = frozenset() if self.value_head is None else frozenset({"states"})
        found = score_answers(model, batch, wants, self.asking.sampling.temperature)
        trainer.usage.policy(batch, sum(len(self.rollout.answers[row]) for row in rows))
        losses, report = self._policy_losses(found, part)
        loss = token_mean(losses, part["mask"], count=self._share)
        if self.value_head is not None:
            value_losses, of_values = self._value_losses(found, part)
            loss = loss + token_mean(value_losses, part["mask"], count=self._share)
            losses, report = losses + value_losses, report | of_values
        if micro == 0 and self.asking.trains_head:
            loss = loss + sizes.accumulated * self._head_loss()
        return Update(loss, torch.isfinite(losses.detach()).all(), report)

    def _batch(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rollout, prepare = self.rollout, self.trainer._prepare_input
        answers = [rollout.answers[row] for row in rows]
        batch = answers_batch([rollout.prompts[row] for row in rows], answers, self.asking.sampling.pad_id)
        width = max(map(len, answers))
        names = ["mask", "old_logps", "reference_logps", "advantages", "coefficient"]
        names += ["values", "returns"] if self.value_head is not None else []
        return prepare(batch), prepare({name: rollout.rows(name, rows, width) for name in names})

    def _policy_losses(self, found: TokenScores, part: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        args, mask = self.args, part["mask"]
        surrogate = clipped_surrogate(found.logps, part["old_logps"], part["advantages"], mask, args.ppo_clip)
        losses = surrogate.losses
        if args.advantage_estimator == "grpo":
            kl = kl_per_token(found.logps, part["reference_logps"], args.kl_estimator, mask=mask)
            losses = losses + part["coefficient"].unsqueeze(1) * kl
        return losses, {
            "policy/clip_fraction": token_mean(surrogate.clipped.float(), mask),
            "policy/approx_kl": approx_kl(found.logps, part["old_logps"], mask),
        }

    def _value_losses(self, found: TokenScores, part: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        args, mask, old, returns = self.args, part["mask"], part["values"], part["returns"]
        values = self.value_head(found.states, through=args.ppo_value_coef)
        output = clipped_value_loss(values, old, returns, mask, args.ppo_value_clip)
        return output.losses, {
            "value/loss": token_mean(output.losses.detach(), mask),
            "value/clip_fraction": token_mean(output.clipped.float(), mask),
            "value/explained_variance": explained_variance(old, returns, mask),
        }

    def _head_loss(self) -> Tensor:
        """Return LEDPO's loss of the rollout's own pairs, in beta alone: their margins are those of the rollout."""
        kept, trainer, device = self.rollout, self.trainer, self.trainer.args.device
        size = len(kept.pair_margin)
        pairs = mean_over_ranks(torch.tensor(float(size), device=device)).clamp(min=1)
        if size == 0:
            return torch.zeros((), device=device)
        features = BetaFeatures(
            size=size,
            hidden=None if kept.pair_hidden is None else kept.pair_hidden.to(device),
            prompt_nll=None if kept.pair_nll is None else kept.pair_nll.to(device),
            progress=trainer.progress(),
            training=False,  # running statistics are over all processes, which differ in their number of pairs
        )
        output = trainer.strategy(features)
        margin, zero, one = (
            kept.pair_margin.to(device),
            torch.zeros(size, device=device),
            torch.ones(size, device=device),
        )
        logps = PairLogps(margin, zero, zero, zero, one, one)
        losses = function_of("sigmoid")(logps, output.beta, label_smoothing=self.args.dpo_label_smoothing).losses
        if output.log_ratio is not None:
            losses = losses + self.args.beta_penalty * output.log_ratio.square()
        trainer.note_pairs(output.beta, margin)
        return losses.sum() / pairs

    # ---- evaluation

    def evaluate(self, prompts: Any) -> dict[str, Tensor]:
        """Answer this process's share of held-out prompts, always by the same draws; return columns `[N]`.

        Raises:
            RewardError: a source of rewards cannot give anything.
        """
        trainer, size = self.trainer, self.trainer.args.per_device_eval_batch_size
        mine = range(trainer.args.process_index, len(prompts), trainer.args.world_size)
        found: list[dict[str, Tensor]] = []
        with trainer.in_evaluation(), trainer.usage.paused():
            for start in range(0, len(mine), size):
                rows = mine[start : start + size]
                asked = [prompts[row]["input_ids"] for row in rows]
                answers = self.asking.answers(asked, [seed_of("held out", self.seed, row) for row in rows])
                scored = self.asking.score(asked, answers)
                kl = kl_per_token(scored.policy, scored.reference, "k1", mask=scored.mask).sum(1)
                found.append(_columns(scored, answers, kl))
        return {name: torch.cat([part[name] for part in found]) for name in found[0]} if found else {}

    # ---- state

    def save(self, folder: str) -> None:
        """Write what all processes share into a folder of weights or a checkpoint."""
        if self.value_head is not None:
            save_value_head(folder, self.value_head)

    def save_state(self, folder: str, rank: int, shared: bool) -> None:
        """Write what training goes on from into a checkpoint; `shared` also what is the same in all processes."""
        save_rollout(folder, rank, self.rollout, self.pool)
        if shared:
            parts = {KL: self.kl.state_dict(), SCORES: self.moments.state_dict()}
            parts |= {} if self.value_optimizer is None else {VALUE: self.value_optimizer.tensors()}
            tensors = {prefix + name: value.cpu() for prefix, part in parts.items() for name, value in part.items()}
            replace_file(Path(folder) / STATE, lambda path: save_file(tensors, path))

    def load_state(self, folder: str, rank: int) -> None:
        """Go on from a checkpoint.

        Raises:
            HeadFileError: something is missing or damaged; going on without it would not be the same training.
        """
        try:
            tensors = load_file(Path(folder) / STATE)
            self.kl.load_state_dict(_under(tensors, KL))
            self.moments.load_state_dict(_under(tensors, SCORES))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise HeadFileError(
                f"{Path(folder) / STATE} is missing or damaged ({error}), so training cannot be resumed exactly. "
                "Resume from an earlier checkpoint."
            ) from None
        if self.value_head is not None:
            load_value_head(folder, self.value_head)
            self.value_optimizer.load(_under(tensors, VALUE))
        self.rollout, self.pool = load_rollout(folder, rank)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _columns(
    scored: Scored,
    answers: Sequence[Answer],
    kl: Tensor,
    coefficient: Tensor | None = None,
    advantages: Tensor | None = None,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return what is reported of each answer; the last three of a rollout that is learned from."""
    valid, lengths = ~scored.rewards.failed, scored.mask.sum(1).float()
    found = {
        "reward": scored.rewards.total.masked_fill(~valid, 0.0),
        "valid": valid.float(),
        "kl": kl,
        "length": lengths,
        "ended": torch.tensor([float(answer.ended) for answer in answers]),
        "surprise": -(scored.policy * scored.mask).sum(1) / lengths.clamp(min=1),
        **{f"part {name}": values for name, values in scored.rewards.parts.items()},
    }
    if scored.beta is not None:
        found["beta"] = scored.beta
    if coefficient is not None:
        found["coefficient"] = coefficient
        found["advantage"] = (
            advantages if advantages.dim() == 1 else (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        )
    return found
