"""Answers of the policy to prompts, with what the policy, the reference and the rewards say of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.hparams import PPO
from ledpo_plugin.rewards import RewardBatch, RewardOutput, Rewards

from .generate import Answer, Sampling
from .sampler import Schedule, Sizes
from .scores import TokenScores, answers_batch, score_answers
from .value_head import ValueHead

Generator = Callable[[Any, Sequence[Sequence[int]], Sequence[int]], list[Answer]]  # (trainer, prompts, seeds)


@dataclass(frozen=True)
class Scored:
    """`R` answers of one process and everything that is said of them; padded to the longest, on the CPU."""

    mask: Tensor  # [R, T] bool
    policy: Tensor  # [R, T], log-probabilities
    reference: Tensor  # [R, T]
    values: Tensor | None  # [R, T], where there is a value head
    beta: Tensor | None  # [R], where beta(x) decides something
    hidden: Tensor | None  # [R, d], what beta was decided from
    prompt_nll: Tensor | None  # [R]
    rewards: RewardOutput


PER_TOKEN = ("mask", "policy", "reference", "values")
PER_ANSWER = ("beta", "hidden", "prompt_nll")


@dataclass(frozen=True)
class RolloutSetup:
    """What rollouts need besides a trainer: loaded before it, as reward models may be adapters of its policy."""

    args: Any  # the host's finetuning arguments, with the plugin's keys
    sampling: Sampling
    generator: Generator
    rewards: Rewards
    tokenizer: Any
    value_head: ValueHead | None  # with gae
    prompts: Any  # rows with `input_ids`
    sizes: Sizes  # answers of steps and rollouts
    schedule: Schedule  # which steps are PPO's
    seed: int  # of the order of prompts and of draws
    shuffled: bool  # whether prompts are shuffled


class ExperienceMaker:
    """Has the policy answer prompts, and the answers scored by the policy, the reference and the rewards."""

    def __init__(self, setup: RolloutSetup, trainer: Any):
        """Take the setup of rollouts, and the `RolloutTrainer` whose policy answers."""
        self.setup, self.args, self.trainer = setup, setup.args, trainer

    @property
    def by_beta(self) -> bool:
        """Whether a prompt's beta(x) decides how much its KL costs."""
        return self.args.kl_control == "beta"

    @property
    def trains_head(self) -> bool:
        """Whether the beta head learns from the rollouts' own pairs, apart from any LEDPO phase."""
        return self.args.rollout_pairs and self.args.ledpo_stage == PPO

    def answers(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Answer]:
        """Return an answer of the policy to each prompt, `rollout_batch_size` at a time."""
        answers: list[Answer] = []
        for part in self._parts(len(prompts)):
            asked = prompts[part]
            drawn = self.setup.generator(self.trainer, asked, seeds[part])
            longest = max(len(answer.ids) for answer in drawn)
            self.trainer.usage.generated(len(asked) * max(map(len, asked)), len(asked) * longest)
            answers += drawn
        return answers

    def _parts(self, count: int) -> list[slice]:
        size = self.args.rollout_batch_size or count
        return [slice(start, start + size) for start in range(0, count, size)]

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Scored:
        """Return what is said of the answers, asked for `rollout_batch_size` at a time.

        Raises:
            RewardError: a source of rewards cannot give anything.
        """
        parts = [self._score(prompts[part], answers[part]) for part in self._parts(len(prompts))]
        width = max(len(answer.ids) for answer in answers)

        def joined(name: str) -> Tensor | None:
            columns = [getattr(part, name) for part in parts]
            if columns[0] is None:
                return None
            if name in PER_TOKEN:
                columns = [nn.functional.pad(column, (0, width - column.shape[1])) for column in columns]
            return torch.cat(columns)

        outputs = [part.rewards for part in parts]
        rewards = RewardOutput(
            torch.cat([output.total for output in outputs]),
            {name: torch.cat([output.parts[name] for output in outputs]) for name in self.setup.rewards.names},
            torch.cat([output.failed for output in outputs]),
        )
        return Scored(**{name: joined(name) for name in (*PER_TOKEN, *PER_ANSWER)}, rewards=rewards)

    def _wants(self, source: str) -> frozenset[str]:
        wants = set()
        if source == "policy" and self.setup.value_head is not None:
            wants.add("states")
        if source == self.args.beta_head_source and (self.by_beta or self.trains_head):
            wants |= self.trainer.strategy.needs & {"hidden", "prompt_nll"}
        return frozenset(wants)

    @torch.no_grad()
    def _score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> Scored:
        trainer, temperature = self.trainer, self.setup.sampling.temperature
        ids = [answer.ids for answer in answers]
        plan_prompts = "prompt_nll" in self._wants("reference") | self._wants("policy")
        batch = trainer.on_device(answers_batch(prompts, ids, self.setup.sampling.pad_id, plan_prompts=plan_prompts))
        tokens, predictions = batch["input_ids"].numel(), sum(map(len, ids))
        with trainer.compute_loss_context_manager():
            policy = score_answers(trainer.policy(), batch, self._wants("policy"), temperature)
            trainer.usage.scored(tokens, predictions)
            with trainer.reference.at_work(trainer.model_wrapped) as model:
                reference = score_answers(model, batch, self._wants("reference"), temperature)
            trainer.usage.forward_only(batch, predictions, ran=True)
            rewards = self.setup.rewards.score(
                RewardBatch.from_ids(prompts, ids, self.setup.tokenizer, trainer.args.device), trainer.unwrapped()
            )
            trainer.usage.rewarded(round(tokens * self.setup.rewards.passes))
            mask = mask_of(ids, policy.logps.shape[1])
            values = None
            if self.setup.value_head is not None:
                values = (self.setup.value_head(policy.states) * mask.to(policy.logps.device)).cpu()
            beta = self._beta(policy, reference, len(ids))
        return Scored(
            mask=mask,
            policy=policy.logps.float().cpu(),
            reference=reference.logps.float().cpu(),
            values=values,
            **dict(zip(PER_ANSWER, beta, strict=True)),
            rewards=RewardOutput(
                rewards.total.cpu(), {name: part.cpu() for name, part in rewards.parts.items()}, rewards.failed.cpu()
            ),
        )

    def _beta(self, policy: TokenScores, reference: TokenScores, size: int) -> tuple[Tensor | None, ...]:
        """Return beta and what it was decided from."""
        if not (self.by_beta or self.trains_head):
            return None, None, None
        source = reference if self.args.beta_head_source == "reference" else policy
        features = BetaFeatures(
            size=size,
            hidden=source.hidden,
            prompt_nll=source.prompt_nll,
            training=False,
            progress=self.trainer.progress(),
        )
        values = (self.trainer.strategy(features).beta, source.hidden, source.prompt_nll)
        return tuple(None if value is None else value.float().cpu() for value in values)


def mask_of(ids: Sequence[Sequence[int]], width: int) -> Tensor:
    """Return `[R, width]`, True at the tokens of each answer."""
    lengths = torch.tensor([len(answer) for answer in ids])
    return torch.arange(width) < lengths.unsqueeze(1)
