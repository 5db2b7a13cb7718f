"""What a run uses: optimizer steps, examples, tokens, floating point operations, time and memory.

Counts come from shapes, which are known on the host: no step waits for a device. A token is a position that was
computed, padding included. What the reference would cost is counted whether it ran or its results were in the cache:
a budget must not depend on what an earlier run left on disk. What really ran is counted beside it.
"""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ledpo_plugin.modeling.adapters import OF_REFERENCE, OF_REWARDS

USAGE = "ledpo_usage.json"


@dataclass
class Counts:
    """Sums over the steps so far, of this process."""

    examples: int = 0  # preference examples: pairs, or single answers
    sft_examples: int = 0
    policy_tokens: int = 0  # positions through the policy, forward and backward
    predictions: int = 0  # of these, positions through the output layer
    sft_tokens: int = 0  # of the policy's, those of instructions
    # Passes without a gradient: the reference's, and KTO's over mismatched answers.
    reference_tokens: int = 0
    reference_tokens_run: int = 0  # of these, those that were not in the cache
    reference_predictions: int = 0
    # Rollouts: what the policy generates, and what it and the reward models are asked about that (no gradient).
    answers: int = 0
    rollout_prompt_tokens: int = 0  # positions of prompts
    generated_tokens: int = 0  # positions of answers, each through the output layer
    scored_tokens: int = 0
    scored_predictions: int = 0
    reward_tokens: int = 0  # positions through reward models, counted as if they were as large as the policy

    @property
    def tokens(self) -> int:
        """Positions through any model."""
        made = self.rollout_prompt_tokens + self.generated_tokens + self.scored_tokens + self.reward_tokens
        return self.policy_tokens + self.reference_tokens + made


@dataclass(frozen=True)
class Cost:
    """Floating point operations per token of a model (2 per weight and pass, as in arXiv:2001.08361, section 2.1).

    Attention's own products, which grow with the square of the length, are left out, as is usual; so are norms,
    activations and the update of the weights.
    """

    body: float  # weights of the layers
    output: float  # weights of the output layer
    trained: float  # weights that take a gradient
    passes: float  # of the policy, over `body`: 2 (forward, backward), 3 with recomputed activations

    @classmethod
    def of(cls, model: nn.Module, checkpointing: bool) -> "Cost":
        """Return the cost of a loaded model."""
        head = model.get_output_embeddings()
        embeddings = model.get_input_embeddings()
        apart = {id(p) for layer in (head, embeddings) if layer is not None for p in layer.parameters()}
        own = (p for name, p in model.named_parameters() if OF_REWARDS not in name and OF_REFERENCE not in name)
        body = sum(p.numel() for p in own if id(p) not in apart)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        output = 0 if head is None else sum(p.numel() for p in head.parameters())
        return cls(body, output, trained, 3 if checkpointing else 2)

    def flops(self, counts: Counts) -> float:
        """Return the operations of everything in `counts`."""
        policy = 2 * self.passes * self.body * counts.policy_tokens + 4 * self.output * counts.predictions
        policy += 2 * self.trained * counts.policy_tokens
        reference = 2 * self.body * counts.reference_tokens + 2 * self.output * counts.reference_predictions
        return policy + reference + self.rollouts(counts)

    def rollouts(self, counts: Counts) -> float:
        """Return the operations of what rollouts need besides the reference: generation, scores and rewards."""
        made = counts.rollout_prompt_tokens + counts.generated_tokens + counts.scored_tokens + counts.reward_tokens
        return 2 * self.body * made + 2 * self.output * (counts.generated_tokens + counts.scored_predictions)


class Usage(TrainerCallback):
    """Counts while training, goes on counting after a resume, stops at a budget, and writes `ledpo_usage.json`."""

    def __init__(self, cost: Cost, *, tokens: float | None = None, flops: float | None = None):
        self.cost, self.budget_tokens, self.budget_flops = cost, tokens, flops
        self.counts = Counts()
        self.seconds = 0.0
        self.started: float | None = None

    # ---- counting

    def policy(self, batch: dict[str, Any], predictions: int) -> None:
        """Count a pass of the policy over a batch."""
        self.counts.policy_tokens += batch["input_ids"].numel()
        self.counts.predictions += predictions

    def forward_only(self, batch: dict[str, Any], predictions: int, ran: bool) -> None:
        """Count a pass without a gradient; `ran` is False where its results were in the cache."""
        tokens = batch["input_ids"].numel()
        self.counts.reference_tokens += tokens
        self.counts.reference_predictions += predictions
        self.counts.reference_tokens_run += tokens if ran else 0

    def generated(self, prompt_tokens: int, tokens: int) -> None:
        """Count a generation: positions of the prompts and of the answers, padding included."""
        self.counts.rollout_prompt_tokens += prompt_tokens
        self.counts.generated_tokens += tokens

    def scored(self, tokens: int, predictions: int) -> None:
        """Count a pass of the policy over answers that were just given."""
        self.counts.scored_tokens += tokens
        self.counts.scored_predictions += predictions

    def rewarded(self, tokens: int) -> None:
        """Count passes of reward models."""
        self.counts.reward_tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing for a while: evaluation is no part of what training uses."""
        kept, self.counts = self.counts, Counts()
        try:
            yield
        finally:
            self.counts = kept

    def total(self) -> Counts:
        """Return the sums over all processes."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return self.counts
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        values = torch.tensor(list(asdict(self.counts).values()), dtype=torch.long, device=device)
        dist.all_reduce(values)
        return Counts(*values.tolist())

    # ---- as a callback

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the clock."""
        self.started = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        """Stop where a budget is used up, and have the last step saved where checkpoints are."""
        if self.budget_tokens is None and self.budget_flops is None:
            return
        total = self.total()
        over = self.budget_tokens is not None and total.tokens >= self.budget_tokens
        over |= self.budget_flops is not None and self.cost.flops(total) >= self.budget_flops
        control.should_training_stop |= over
        if over and args.save_strategy != SaveStrategy.NO:
            control.should_save = True  # the host saves the last step by itself only where max_steps ends training

    def logged(self) -> dict[str, float]:
        """Return what each line of the log says."""
        total = self.total()
        rollouts = {"rollouts": total.answers, "generated_tokens": total.generated_tokens} if total.answers else {}
        return {
            "policy_tokens": total.policy_tokens,
            "reference_tokens": total.reference_tokens,
            **rollouts,
            "flops": self.cost.flops(total),
        }

    def _elapsed(self) -> float:
        return self.seconds + (0.0 if self.started is None else time.monotonic() - self.started)

    def summary(self, steps: int) -> dict[str, Any]:
        """Return everything that was used so far, by all processes."""
        total = self.total()
        return {
            "steps": steps,
            **asdict(total),
            "flops": self.cost.flops(total),
            "seconds": self._elapsed(),
            "peak_memory_bytes": peak_memory(),
        }

    # ---- on disk: a run's folder says what all processes used, a checkpoint what each one goes on from

    def save(self, folder: str | Path, rank: int) -> None:
        """Write this process's counts into a checkpoint."""
        kept = {**asdict(self.counts), "seconds": self._elapsed()}
        (Path(folder) / f"ledpo_usage_{rank}.json").write_text(json.dumps(kept), encoding="utf-8")

    def load(self, folder: str | Path, rank: int) -> None:
        """Go on from a checkpoint's counts.

        Raises:
            ValueError: there are none and a budget is set, which would then be overrun.
        """
        path = Path(folder) / f"ledpo_usage_{rank}.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.seconds = kept.pop("seconds")
            self.counts = Counts(**kept)
        except (OSError, ValueError, TypeError, KeyError) as error:
            if self.budget_tokens is not None or self.budget_flops is not None:
                raise ValueError(
                    f"{path} is missing or damaged ({error}), so a budget of tokens or operations cannot be kept. "
                    "Resume from another checkpoint, or with the same number of processes."
                ) from None


def write_usage(folder: str | Path, summary: dict[str, Any]) -> None:
    """Write what a run used as `ledpo_usage.json` into its folder."""
    (Path(folder) / USAGE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def peak_memory() -> int:
    """Return the most memory this process held, bytes: on the accelerator if there is one, else in all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
