"""The PPO phase of a run: it makes rollouts with the policy as it is, and says what the loss of their rows is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.rewards import RewardError
from ledpo_plugin.training.side_optimizer import mean_over_ranks, sum_over_ranks

from .advantages import RunningMoments
from .experience import ExperienceMaker, RolloutSetup, Scored
from .generate import Answer
from .kl import KlCoefficient, kl_per_token
from .losses import head_loss, policy_losses, value_losses
from .objectives import token_mean
from .rollout import Rollout, load_rollout, save_rollout
from .sampler import PromptOrder, rows_of_update, seed_of
from .scores import answers_batch, score_answers
from .state import load_shared_state, save_shared_state
from .targets import adjusted_scores, advantages_of, best_and_worst, coefficients, head_pairs, pair_row
from .value_head import load_value_head, save_value_head


@dataclass(frozen=True)
class Update:
    """The loss of a pass with gradient, and what is reported of it (detached)."""

    loss: Tensor
    finite: Tensor
    report: dict[str, Tensor]


@dataclass(frozen=True)
class _Step:
    """An optimizer step of this process: its rows of the rollout, and its share of the tokens of a micro-batch."""

    rows: Sequence[int]
    share: Tensor  # scalar; over micro-batches and processes losses divided by it add up to the mean over all tokens


class PpoPhase:
    """Everything of PPO that is not the trainer's."""

    def __init__(self, setup: RolloutSetup, trainer: Any):
        """Set up the phase.

        Args:
            setup: prompts, rewards and how answers are drawn and learned from.
            trainer: a `RolloutTrainer`, whose policy answers.
        """
        args, device = setup.args, trainer.args.device
        self.trainer, self.args, self.setup = trainer, args, setup
        self.sizes, self.schedule = setup.sizes, setup.schedule
        self.experience = ExperienceMaker(setup, trainer)
        self.order = PromptOrder(len(setup.prompts), setup.seed, setup.shuffled)
        target = args.ppo_target if args.kl_control == "adaptive" else None
        self.kl = KlCoefficient(args.kl_coef, target=target, horizon=args.kl_horizon).to(device)
        self.moments = RunningMoments().to(device)
        self.value_head, self.value_optimizer = setup.value_head, None
        if self.value_head is not None:
            self.value_head.to(device)
            self.value_optimizer = trainer.side_optimizer(self.value_head.parameters(), lr_ratio=args.value_lr_ratio)
        self.rollout: Rollout | None = None
        self.pool: list[dict[str, Any]] = []  # pairs of the rollouts, for the next LEDPO phase
        self._step: _Step | None = None

    # ---- rollouts

    @torch.no_grad()
    def make_rollout(self, iteration: int) -> None:
        """Answer the prompts of a rollout and work out what is to be learned; all processes call it together.

        Raises:
            RewardError: too few answers have a reward; every process raises it, and nothing was changed.
        """
        sizes, trainer = self.sizes, self.trainer
        process = iteration * trainer.args.world_size + trainer.args.process_index
        rows = self.order.rows(process * sizes.prompts, sizes.prompts)
        prompts = [self.setup.prompts[row]["input_ids"] for row in rows]
        prompts = [prompt for prompt in prompts for _ in range(sizes.group)]
        first = process * sizes.rollout
        seeds = [seed_of("answer", self.setup.seed, answer) for answer in range(first, first + sizes.rollout)]
        scored, problem = None, None
        with trainer.in_evaluation():
            answers = self.experience.answers(prompts, seeds)
            try:
                scored = self.experience.score(prompts, answers)
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
        beta = scored.beta if self.experience.by_beta else None
        coefficient = coefficients(self.kl.value, beta, args.pref_beta, valid)
        scores = adjusted_scores(scored, answers, args, self.moments)
        advantages, returns = advantages_of(
            scored, scores, coefficient, mask, group=self.sizes.group, args=args, device=trainer.args.device
        )
        ids = [answer.ids for answer in answers]
        kept: dict[str, Tensor] = {}
        if args.rollout_pairs:
            pairs = best_and_worst(scores, valid, self.sizes.group)
            if self.experience.trains_head:
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
        if micro == 0 or self._step is None:
            self._step = self._begin_step(iteration, number)
        rows, share = self._step.rows[micro * sizes.batch : (micro + 1) * sizes.batch], self._step.share
        batch, part = self._batch(rows)
        wants = frozenset() if self.value_head is None else frozenset({"states"})
        scores = score_answers(model, batch, wants, self.setup.sampling.temperature)
        trainer.usage.policy(batch, sum(len(self.rollout.answers[row]) for row in rows))
        losses, report = policy_losses(scores, part, self.args)
        loss = token_mean(losses, part["mask"], count=share)
        if self.value_head is not None:
            of_values, value_report = value_losses(self.value_head, scores, part, self.args)
            loss = loss + token_mean(of_values, part["mask"], count=share)
            losses, report = losses + of_values, report | value_report
        if micro == 0 and self.experience.trains_head:
            of_head, pairs = head_loss(
                self.rollout, trainer.strategy, self.args, trainer.args.device, trainer.progress()
            )
            loss = loss + sizes.accumulated * of_head
            if pairs is not None:
                trainer.note_pairs(*pairs)
        return Update(loss, torch.isfinite(losses.detach()).all(), report)

    def _begin_step(self, iteration: int, number: int) -> _Step:
        """Return the optimizer step that starts with update `number` of a rollout; all processes call it together."""
        trainer, sizes = self.trainer, self.sizes
        rows = rows_of_update(sizes, self.setup.seed, iteration, number, trainer.args.process_index)
        tokens = self.rollout.mask[torch.tensor(rows)].sum().float().to(trainer.args.device)
        return _Step(rows, mean_over_ranks(tokens) / sizes.accumulated)

    def _batch(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rollout, trainer = self.rollout, self.trainer
        answers = [rollout.answers[row] for row in rows]
        batch = answers_batch([rollout.prompts[row] for row in rows], answers, self.setup.sampling.pad_id)
        width = max(map(len, answers))
        names = ["mask", "old_logps", "reference_logps", "advantages", "coefficient"]
        names += ["values", "returns"] if self.value_head is not None else []
        part = {name: rollout.rows(name, rows, width) for name in names}
        return trainer.on_device(batch), trainer.on_device(part)

    # ---- evaluation

    def evaluate(self, prompts: Any) -> dict[str, Tensor]:
        """Answer this process's share of held-out prompts, always by the same draws; return columns `[N]`.

        Raises:
            RewardError: a source of rewards cannot give anything.
        """
        trainer, size = self.trainer, self.trainer.args.per_device_eval_batch_size
        mine = range(trainer.args.process_index, len(prompts), trainer.args.world_size)
        parts: list[dict[str, Tensor]] = []
        with trainer.in_evaluation(), trainer.usage.paused():
            for start in range(0, len(mine), size):
                rows = mine[start : start + size]
                asked = [prompts[row]["input_ids"] for row in rows]
                answers = self.experience.answers(asked, [seed_of("held out", self.setup.seed, row) for row in rows])
                scored = self.experience.score(asked, answers)
                kl = kl_per_token(scored.policy, scored.reference, "k1", mask=scored.mask).sum(1)
                parts.append(_columns(scored, answers, kl))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}

    # ---- state

    def save(self, folder: str) -> None:
        """Write what all processes share into a folder of weights or a checkpoint."""
        if self.value_head is not None:
            save_value_head(folder, self.value_head)

    def save_state(self, folder: str, rank: int, shared: bool) -> None:
        """Write what training goes on from into a checkpoint; `shared` also what is the same in all processes."""
        save_rollout(folder, rank, self.rollout, self.pool)
        if shared:
            save_shared_state(folder, self.kl, self.moments, self.value_optimizer)

    def load_state(self, folder: str, rank: int) -> None:
        """Go on from a checkpoint.

        Raises:
            HeadFileError: something is missing or damaged; going on without it would not be the same training.
        """
        load_shared_state(folder, self.kl, self.moments, self.value_optimizer)
        if self.value_head is not None:
            load_value_head(folder, self.value_head)
        self.rollout, self.pool = load_rollout(folder, rank)


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
    columns = {
        "reward": scored.rewards.total.masked_fill(~valid, 0.0),
        "valid": valid.float(),
        "kl": kl,
        "length": lengths,
        "ended": torch.tensor([float(answer.ended) for answer in answers]),
        "surprise": -(scored.policy * scored.mask).sum(1) / lengths.clamp(min=1),
        **{f"part {name}": values for name, values in scored.rewards.parts.items()},
    }
    if scored.beta is not None:
        columns["beta"] = scored.beta
    if coefficient is not None:
        columns["coefficient"] = coefficient
        columns["advantage"] = (
            advantages if advantages.dim() == 1 else (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        )
    return columns
