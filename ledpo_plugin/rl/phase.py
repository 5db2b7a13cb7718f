"""The PPO phase of a run: it makes rollouts with the policy as it is, and says what the loss of their rows is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ledpo_plugin.atomic import replace_file
from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.head_file import HeadFileError
from ledpo_plugin.hparams import PPO
from ledpo_plugin.logps import IGNORE
from ledpo_plugin.losses import LOSSES, PairLogps
from ledpo_plugin.rewards import RewardBatch, RewardError, RewardOutput, Rewards
from ledpo_plugin.side_optimizer import SideOptimizer, mean_over_ranks, sum_over_ranks

from .advantages import RunningMoments, gae, group_normalised, leave_one_out, masked_whiten
from .generate import Answer, Sampling
from .kl import KlCoefficient, kl_per_token, penalised_rewards
from .objectives import approx_kl, clipped_surrogate, clipped_value_loss, explained_variance, token_mean
from .order import PromptOrder, Schedule, Sizes, rows_of_update, seed_of
from .rollout import Rollout, best_and_worst, load_rollout, save_rollout
from .scores import TokenScores, answers_batch, score_answers
from .value_head import ValueHead, load_value_head, save_value_head

STATE = "ledpo_ppo_state.safetensors"
VALUE, KL, SCORES = "value.", "kl.", "scores."


@dataclass(frozen=True)
class Update:
    """The loss of a pass with gradient, and what is reported of it (detached)."""

    loss: Tensor
    finite: Tensor
    report: dict[str, Tensor]


@dataclass
class _Scored:
    """Answers of one process and everything that models say of them; padded to the longest, on the CPU."""

    policy: Tensor  # [R, T]
    reference: Tensor  # [R, T]
    values: Tensor | None  # [R, T]
    beta: Tensor | None  # [R]
    hidden: Tensor | None  # [R, d]
    prompt_nll: Tensor | None  # [R]
    rewards: RewardOutput


class PpoPhase:
    """Everything of PPO that is not the trainer's."""

    def __init__(
        self,
        *,
        args: Any,
        sampling: Sampling,
        generator: Any,
        rewards: Rewards,
        prompts: Any,
        sizes: Sizes,
        schedule: Schedule,
        hidden_size: int,
        seed: int,
        shuffled: bool,
        tokenizer: Any,
    ):
        """Set up the phase.

        Args:
            args: the recipe's finetuning arguments.
            sampling: how answers are drawn.
            generator: gives answers to prompts: (trainer, prompts, seeds) -> answers.
            rewards: what answers are worth.
            prompts: rows with `input_ids`.
            sizes: answers of steps and rollouts.
            schedule: which steps are PPO's.
            hidden_size: width of the policy's hidden state.
            seed: of the order of prompts, of draws and of the value head.
            shuffled: whether prompts are shuffled.
            tokenizer: decodes answers for rewards.
        """
        self.args, self.sampling, self.generator, self.rewards = args, sampling, generator, rewards
        self.prompts, self.sizes, self.schedule, self.seed = prompts, sizes, schedule, seed
        self.tokenizer = tokenizer
        self.order = PromptOrder(len(prompts), seed, shuffled)
        self.kl = KlCoefficient(
            args.kl_coef,
            target=args.ppo_target if args.kl_control == "adaptive" else None,
            horizon=args.kl_horizon,
        )
        self.moments = RunningMoments()
        self.value_head = ValueHead(hidden_size=hidden_size, seed=seed) if args.advantage_estimator == "gae" else None
        self.value_optimizer: SideOptimizer | None = None
        self.rollout: Rollout | None = None
        self.pool: list[dict[str, Any]] = []  # pairs of the rollouts, for the next LEDPO phase
        self.trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """Take the trainer whose policy answers."""
        self.trainer = trainer
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

    # ---- what answers are worth and what is to be learned of them

    @property
    def by_beta(self) -> bool:
        """Whether a prompt's beta(x) decides how much its KL costs."""
        return self.args.kl_control == "beta"

    @property
    def trains_head(self) -> bool:
        """Whether the beta head learns from the rollouts' own pairs, apart from any LEDPO phase."""
        return self.args.rollout_pairs and self.args.ledpo_stage == PPO

    def _wants(self, source: str) -> frozenset[str]:
        wants = set()
        if source == "policy" and self.value_head is not None:
            wants.add("states")
        if source == self.args.beta_head_source and (self.by_beta or self.trains_head):
            wants |= self.trainer.strategy.needs & {"hidden", "prompt_nll"}
        return frozenset(wants)

    def _answer(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Answer]:
        size = self.args.rollout_batch_size or len(prompts)
        answers: list[Answer] = []
        for start in range(0, len(prompts), size):
            part = prompts[start : start + size]
            found = self.generator(self.trainer, part, seeds[start : start + size])
            answers += found
            self.trainer.usage.generated(
                len(part) * max(map(len, part)), len(part) * max(len(answer.ids) for answer in found)
            )
        return answers

    def _score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> _Scored:
        size = self.args.rollout_batch_size or len(prompts)
        spans = [slice(start, start + size) for start in range(0, len(prompts), size)]
        parts = [self._score_part(prompts[span], answers[span]) for span in spans]
        width = max(len(answer.ids) for answer in answers)

        def rows(name: str) -> Tensor | None:
            found = [getattr(part, name) for part in parts]
            if found[0] is None:
                return None
            wide = [nn.functional.pad(one, (0, width - one.shape[1])) if name in TOKENS else one for one in found]
            return torch.cat(wide)

        outputs = [part.rewards for part in parts]
        rewards = RewardOutput(
            torch.cat([output.total for output in outputs]).cpu(),
            {name: torch.cat([output.parts[name] for output in outputs]).cpu() for name in self.rewards.names},
            torch.cat([output.failed for output in outputs]).cpu(),
        )
        names = ("policy", "reference", "values", "beta", "hidden", "prompt_nll")
        return _Scored(**{name: rows(name) for name in names}, rewards=rewards)

    def _score_part(self, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> _Scored:
        trainer, temperature = self.trainer, self.sampling.temperature
        ids = [answer.ids for answer in answers]
        plan_prompts = "prompt_nll" in self._wants("reference") | self._wants("policy")
        batch = trainer._prepare_input(answers_batch(prompts, ids, self.sampling.pad_id, plan_prompts=plan_prompts))
        tokens, predictions = batch["input_ids"].numel(), sum(map(len, ids))
        with trainer.compute_loss_context_manager():
            policy = score_answers(trainer.policy(), batch, self._wants("policy"), temperature)
            trainer.usage.scored(tokens, predictions)
            with trainer._reference(trainer.model_wrapped) as reference:
                expected = score_answers(reference, batch, self._wants("reference"), temperature)
            trainer.usage.forward_only(batch, predictions, ran=True)
            rewards = self._rewards(prompts, ids, batch)
            values = None if self.value_head is None else self._masked_values(policy, ids)
            beta, hidden, nll = self._beta(policy, expected, len(ids))
        found = (policy.logps, expected.logps, values, beta, hidden, nll)
        return _Scored(*(None if one is None else one.float().cpu() for one in found), rewards)

    def _masked_values(self, policy: TokenScores, ids: Sequence[Sequence[int]]) -> Tensor:
        values = self.value_head(policy.states)
        return values * _mask(ids, values.shape[1]).to(values.device)

    def _beta(self, policy: TokenScores, expected: TokenScores, size: int) -> tuple[Tensor | None, ...]:
        if not (self.by_beta or self.trains_head):
            return None, None, None
        source = expected if self.args.beta_head_source == "reference" else policy
        features = BetaFeatures(size=size, hidden=source.hidden, prompt_nll=source.prompt_nll, training=False)
        return self.trainer.strategy(features).beta, source.hidden, source.prompt_nll

    def _rewards(self, prompts: Sequence[Sequence[int]], ids: Sequence[Sequence[int]], batch: Any) -> RewardOutput:
        decode = self.tokenizer.batch_decode
        both = [[*prompt, *answer] for prompt, answer in zip(prompts, ids, strict=True)]
        question = RewardBatch(
            prompts=decode(prompts, skip_special_tokens=True),
            responses=decode(ids, skip_special_tokens=True),
            texts=decode(both, skip_special_tokens=False),
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            prompt_lengths=[len(prompt) for prompt in prompts],
            response_lengths=[len(answer) for answer in ids],
        )
        self.trainer.usage.rewarded(batch["input_ids"].numel() * getattr(self.rewards, "passes", 0))
        return self.rewards.score(question, self.trainer.unwrapped())

    def _seeds(self, purpose: str, first: int, count: int) -> list[int]:
        return [seed_of(purpose, self.seed, answer) for answer in range(first, first + count)]

    @torch.no_grad()
    def make_rollout(self, iteration: int) -> None:
        """Answer the prompts of a rollout and work out what is to be learned; all processes call it together.

        Raises:
            RewardError: too few answers have a reward; every process raises it, and nothing was changed.
        """
        sizes, trainer = self.sizes, self.trainer
        rank, processes = trainer.args.process_index, trainer.args.world_size
        place = (iteration * processes + rank) * sizes.prompts
        prompts = [self.prompts[row]["input_ids"] for row in self.order.rows(place, sizes.prompts)]
        prompts = [prompt for prompt in prompts for _ in range(sizes.group)]
        first = (iteration * processes + rank) * sizes.rollout
        with trainer.in_evaluation():
            answers = self._answer(prompts, self._seeds("answer", first, sizes.rollout))
            scored, problem = self._scored_or_problem(prompts, answers)
        self._require_rewards(scored, problem)
        trainer.usage.counts.answers += len(answers)
        self._learn_from(iteration, prompts, answers, scored)

    def _scored_or_problem(self, prompts, answers) -> tuple[_Scored | None, str | None]:
        try:
            return self._score(prompts, answers), None
        except RewardError as error:  # said after all processes know of it: one that waits would wait for ever
            return None, str(error)

    def _require_rewards(self, scored: _Scored | None, problem: str | None) -> None:
        failed = self.sizes.rollout if scored is None else int(scored.rewards.failed.sum())
        device = self.trainer.args.device
        state = torch.tensor([failed, self.sizes.rollout, problem is not None], dtype=torch.float64, device=device)
        missing, answers, broken = sum_over_ranks(state).tolist()
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

    def _learn_from(self, iteration: int, prompts: list[list[int]], answers: list[Answer], scored: _Scored) -> None:
        trainer, device = self.trainer, self.trainer.args.device
        ids = [answer.ids for answer in answers]
        every = _mask(ids, scored.policy.shape[1])
        valid = ~scored.rewards.failed
        mask = every & valid.unsqueeze(1)
        kl = kl_per_token(scored.policy, scored.reference, "k1", mask=every).sum(1)
        coefficient = self._coefficient(scored)
        scores = self._adjusted(scored.rewards.total, valid, answers)
        advantages, returns = self._advantages(scores, valid, mask, scored, coefficient)
        pairs = self._pairs(scores, valid, prompts, ids, scored)
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
            **pairs,
        )
        mean_kl = mean_over_ranks(kl.mean().to(device))
        self.kl.update(float(mean_kl), len(ids) * trainer.args.world_size)
        lengths = every.sum(1).float()
        trainer.note_answers(
            {
                "reward": scored.rewards.total.masked_fill(~valid, 0.0),
                "valid": valid.float(),
                "kl": kl,
                "coefficient": coefficient,
                "length": lengths,
                "ended": torch.tensor([float(answer.ended) for answer in answers]),
                "surprise": -(scored.policy * every).sum(1) / lengths.clamp(min=1),
                "advantage": (advantages if advantages.dim() == 1 else _row_means(advantages, mask)),
                **({} if scored.beta is None else {"beta": scored.beta}),
                **{f"part {name}": values for name, values in scored.rewards.parts.items()},
            }
        )

    def _coefficient(self, scored: _Scored) -> Tensor:
        """Return the weight `[R]` of each answer's KL."""
        value = self.kl.value.cpu()
        if not self.by_beta:
            return value.expand(scored.policy.shape[0]).clone()
        return value * scored.beta / self.args.pref_beta

    def _adjusted(self, scores: Tensor, valid: Tensor, answers: Sequence[Answer]) -> Tensor:
        scores = torch.where(valid, scores, torch.zeros_like(scores))
        if self.args.ppo_score_norm:
            device = self.trainer.args.device
            self.moments.update(scores.to(device), valid.to(device), sum_over_ranks)
            scores = self.moments.normalised(scores.to(device)).cpu()
        if self.args.missing_eos_penalty:
            cut = torch.tensor([not answer.ended for answer in answers])
            scores = scores - self.args.missing_eos_penalty * cut
        return scores

    def _advantages(
        self, scores: Tensor, valid: Tensor, mask: Tensor, scored: _Scored, coefficient: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        args, group, device = self.args, self.sizes.group, self.trainer.args.device
        if args.advantage_estimator == "grpo":  # the KL is a term of the loss
            return group_normalised(scores, valid, group), None
        kl = kl_per_token(scored.policy, scored.reference, args.kl_estimator, mask=mask)
        if args.advantage_estimator == "rloo":
            return leave_one_out(scores - coefficient * kl.sum(1), valid, group), None
        rewards = penalised_rewards(scores, kl, coefficient, mask)
        if args.ppo_whiten_rewards:
            rewards = masked_whiten(rewards.to(device), mask.to(device), shift_mean=False, total=sum_over_ranks).cpu()
        found = gae(rewards, scored.values, mask, gamma=args.gae_gamma, lam=args.gae_lambda)
        white = masked_whiten(found.advantages.to(device), mask.to(device), total=sum_over_ranks).cpu()
        return white, found.returns

    def _pairs(
        self, scores: Tensor, valid: Tensor, prompts: list[list[int]], ids: list[list[int]], scored: _Scored
    ) -> dict[str, Tensor]:
        """Make pairs of best and worst answers: for the next LEDPO phase, or for the head alone."""
        if not self.args.rollout_pairs:
            return {}
        found = best_and_worst(scores, valid, self.sizes.group)
        if not self.trains_head:
            self.pool += [pair_row(prompts[best], ids[best], ids[worst]) for best, worst in found]
            return {}
        best, worst = (torch.tensor([pair[side] for pair in found], dtype=torch.long) for side in (0, 1))
        ratio = (scored.policy - scored.reference).sum(1)
        kept = {"pair_margin": ratio[best] - ratio[worst]}
        if scored.hidden is not None:
            kept["pair_hidden"] = scored.hidden[best]
        if scored.prompt_nll is not None:
            kept["pair_nll"] = scored.prompt_nll[best]
        return kept

    # ---- the loss

    def update(self, model: nn.Module, ppo_step: int, micro: int) -> Update:
        """Return the loss of one pass: of micro-batch number `micro` of PPO step number `ppo_step`.

        The parts of an optimizer step, over micro-batches and processes, add up to the mean over all its tokens.
        """
        args, sizes, trainer = self.args, self.sizes, self.trainer
        iteration, number = divmod(ppo_step, sizes.updates)
        if self.rollout is None or self.rollout.iteration != iteration:
            self.make_rollout(iteration)
        whole = rows_of_update(sizes, self.seed, iteration, number, trainer.args.process_index)
        rows = whole[micro * sizes.batch : (micro + 1) * sizes.batch]
        if micro == 0:
            tokens = self.rollout.mask[torch.tensor(whole)].sum().float().to(trainer.args.device)
            self._tokens = mean_over_ranks(tokens)
        share = {"count": self._tokens / sizes.accumulated}
        batch, part = self._batch(rows)
        wants = frozenset() if self.value_head is None else frozenset({"states"})
        found = score_answers(model, batch, wants, self.sampling.temperature)
        trainer.usage.policy(batch, sum(len(self.rollout.answers[row]) for row in rows))
        surrogate = clipped_surrogate(found.logps, part["old_logps"], part["advantages"], part["mask"], args.ppo_clip)
        losses = surrogate.losses
        report = {
            "policy/clip_fraction": token_mean(surrogate.clipped.float(), part["mask"]),
            "policy/approx_kl": approx_kl(found.logps, part["old_logps"], part["mask"]),
        }
        if args.advantage_estimator == "grpo":
            kl = kl_per_token(found.logps, part["reference_logps"], args.kl_estimator, mask=part["mask"])
            losses = losses + part["coefficient"].unsqueeze(1) * kl
        loss = token_mean(losses, part["mask"], **share)
        finite = torch.isfinite(losses).all()
        if self.value_head is not None:
            values = self.value_head(found.states, through=args.ppo_value_coef)
            output = clipped_value_loss(values, part["values"], part["returns"], part["mask"], args.ppo_value_clip)
            value_loss = token_mean(output.losses, part["mask"], **share)
            loss = loss + value_loss
            finite = finite & torch.isfinite(value_loss)
            report |= {
                "value/loss": token_mean(output.losses.detach(), part["mask"]),
                "value/clip_fraction": token_mean(output.clipped.float(), part["mask"]),
                "value/explained_variance": explained_variance(part["values"], part["returns"], part["mask"]),
            }
        if micro == 0 and self.trains_head:
            loss = loss + sizes.accumulated * self._head_loss()
        return Update(loss, finite, report)

    def _batch(self, rows: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        rollout, prepare = self.rollout, self.trainer._prepare_input
        answers = [rollout.answers[row] for row in rows]
        batch = answers_batch([rollout.prompts[row] for row in rows], answers, self.sampling.pad_id)
        width = max(map(len, answers))
        names = ["mask", "old_logps", "reference_logps", "advantages", "coefficient"]
        names += ["values", "returns"] if self.value_head is not None else []
        return prepare(batch), prepare({name: rollout.rows(name, rows, width) for name in names})

    def _head_loss(self) -> Tensor:
        """Return LEDPO's loss of the rollout's own pairs, in beta alone: their margins are those of the rollout."""
        kept, strategy = self.rollout, self.trainer.strategy
        device = self.trainer.args.device
        size = 0 if kept.pair_margin is None else len(kept.pair_margin)
        pairs = mean_over_ranks(torch.tensor(float(size), device=device)).clamp(min=1)
        if size == 0:
            return torch.zeros((), device=device)
        features = BetaFeatures(
            size=size,
            hidden=None if kept.pair_hidden is None else kept.pair_hidden.to(device),
            prompt_nll=None if kept.pair_nll is None else kept.pair_nll.to(device),
            gather=self.trainer.accelerator.gather,
            rank=self.trainer.args.process_index,
            training=not self.args.beta_center,  # its running mean is over all processes, which differ in pairs here
        )
        output = strategy(features)
        margin, zero = kept.pair_margin.to(device), torch.zeros(size, device=device)
        one = torch.ones(size, device=device)
        logps = PairLogps(margin, zero, zero, zero, one, one)
        losses = LOSSES["sigmoid"].function(logps, output.beta, label_smoothing=self.args.dpo_label_smoothing).losses
        if output.log_ratio is not None:
            losses = losses + self.args.beta_penalty * output.log_ratio.square()
        self.trainer.note_pairs(output.beta, margin)
        return losses.sum() / pairs

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, prompts: Any) -> dict[str, Tensor]:
        """Answer held-out prompts, always by the same draws; return a column of numbers per quantity, `[N]`."""
        trainer = self.trainer
        rank, processes = trainer.args.process_index, trainer.args.world_size
        mine = list(range(rank, len(prompts), processes))
        asked = [prompts[row]["input_ids"] for row in mine]
        names = ["reward", "valid", "kl", "length", "ended"]
        columns: dict[str, list[Tensor]] = {name: [] for name in names}
        size = trainer.args.per_device_eval_batch_size
        with trainer.in_evaluation():
            for start in range(0, len(asked), size):
                part = asked[start : start + size]
                seeds = [seed_of("held out", self.seed, row) for row in mine[start : start + size]]
                answers = self.generator(trainer, part, seeds)
                scored = self._score_part(part, answers)
                mask = _mask([answer.ids for answer in answers], scored.policy.shape[1])
                valid = ~scored.rewards.failed.cpu()
                found = {
                    "reward": scored.rewards.total.cpu().masked_fill(~valid, 0.0),
                    "valid": valid.float(),
                    "kl": ((scored.policy - scored.reference) * mask).sum(1),
                    "length": mask.sum(1).float(),
                    "ended": torch.tensor([float(answer.ended) for answer in answers]),
                }
                for name in names:
                    columns[name].append(found[name])
        return {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in columns.items()}

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
            replace_file(_state_file(folder), lambda path: save_file(tensors, path))

    def load_state(self, folder: str, rank: int) -> None:
        """Go on from a checkpoint.

        Raises:
            HeadFileError: something is missing or damaged; going on without it would not be the same training.
        """
        try:
            tensors = load_file(_state_file(folder))
            self.kl.load_state_dict(_under(tensors, KL))
            self.moments.load_state_dict(_under(tensors, SCORES))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise HeadFileError(
                f"{_state_file(folder)} is missing or damaged ({error}), so training cannot be resumed exactly. "
                "Resume from an earlier checkpoint."
            ) from None
        if self.value_head is not None:
            load_value_head(folder, self.value_head)
            self.value_optimizer.load(_under(tensors, VALUE))
        self.rollout, self.pool = load_rollout(folder, rank)


TOKENS = frozenset({"policy", "reference", "values"})  # what has a column per token


def _state_file(folder: str) -> Path:
    return Path(folder) / STATE


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _mask(ids: Sequence[Sequence[int]], width: int) -> Tensor:
    lengths = torch.tensor([len(answer) for answer in ids])
    return torch.arange(width) < lengths.unsqueeze(1)


def _row_means(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def pair_row(prompt: list[int], best: list[int], worst: list[int]) -> dict[str, Any]:
    """Return a preference pair as the host's data processing writes it."""
    row: dict[str, Any] = {"images": None, "videos": None, "audios": None}
    for side, answer in (("chosen", best), ("rejected", worst)):
        both = [*prompt, *answer]
        row[f"{side}_input_ids"] = both
        row[f"{side}_attention_mask"] = [1] * len(both)
        row[f"{side}_labels"] = [IGNORE] * len(prompt) + answer
    return row
