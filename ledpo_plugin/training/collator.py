"""How batches are laid out: in shared rows and with planned positions where the loaded model is seen to allow it.

Nothing is assumed of a model: a small batch goes through it in the plain way and in the fast one, and what does not
give the same log-probabilities is not used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ledpo_plugin.data.mixture import SFT, separate
from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode
from ledpo_plugin.modeling.forward import forward_rows
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.modeling.shared_prompt import Costs, attend_in_pieces, shared_batch, unsuitable
from ledpo_plugin.reference.cache import ReferenceCache
from ledpo_plugin.reference.caching import CACHED, ROW, SET

CHECK_PAIRS, CHECK_TOKENS = 2, 64
Batch = dict[str, Any]


@dataclass(frozen=True)
class PreferenceCollator:
    """A data collator: the host's, with plans added or replaced by shared rows.

    `shared` and `planned` are tried on the loaded model (`enable_fast_paths`). Batches of streamed data are joined
    across ranks by the host's loader, which plans would not survive.
    """

    collate: Callable[[Sequence[Batch]], Batch]
    data: str  # "pairs" or "unpaired"
    collate_sft: Callable[[Sequence[Batch]], Batch] | None = None  # of instructions mixed in
    pad_id: int = 0
    costs: Costs = Costs()  # noqa: RUF009  (frozen)
    prompts: bool = False  # also plan the prompts' own tokens
    shared: bool = False
    planned: bool = False
    caches: Sequence[ReferenceCache] = ()
    whole_caches_only: bool = False  # every rank must take the reference's values from the cache, or none

    def __call__(self, features: Sequence[Batch]) -> Batch:
        """Return the batch of tokenized rows."""
        if self.collate_sft is None:
            return self._arranged(features) | self._cached(features)
        preferences, instructions = separate(features)
        return self._arranged(preferences) | self._cached(preferences) | self._instructions(instructions)

    def _instructions(self, features: Sequence[Batch]) -> Batch:
        if not features:
            return {}
        batch = {SFT + key: value for key, value in self.collate_sft(features).items()}
        if self.planned:
            self._add_plan(batch, SFT)
        return batch

    def _cached(self, features: Sequence[Batch]) -> Batch:
        if not self.caches or ROW not in features[0]:
            return {}
        rows = [feature[ROW] for feature in features]
        cache = self.caches[features[0][SET]]
        values = None if self.whole_caches_only and not cache.complete else cache.lookup(rows)
        if values is not None:
            return {CACHED + name: column for name, column in values.items()}
        return {ROW: torch.tensor(rows), SET: features[0][SET]}

    def _arranged(self, features: Sequence[Batch]) -> Batch:
        if self.shared and not any(_has_media(feature) for feature in features):
            batch = shared_batch(features, self.pad_id, self.costs, self.prompts)
            if batch is not None:
                return batch
        batch = dict(self.collate(features))
        if self.planned:
            self._add_plan(batch, "")
            if self.data == "unpaired":
                self._add_plan(batch, "kl_")
        return batch

    def _add_plan(self, batch: Batch, prefix: str) -> None:
        keys = ("input_ids", "labels", "attention_mask")
        plan = plan_of_rows(*(batch[prefix + key] for key in keys), prompts=self.prompts and not prefix)
        batch.update(plan.to_batch(prefix))


def _has_media(feature: Batch) -> bool:
    return any(feature.get(key) for key in ("images", "videos", "audios"))


def _short(feature: Batch) -> Batch:
    """Return a pair cut to a few tokens around the end of its prompt, for the check."""
    cut = {key: value for key, value in feature.items() if key != ROW}
    for side in ("chosen", "rejected"):
        labels = feature[f"{side}_labels"]
        start = next(i for i, label in enumerate(labels) if label != IGNORE)
        window = slice(max(0, start - CHECK_TOKENS), start + CHECK_TOKENS)
        for kind in ("input_ids", "attention_mask", "labels"):
            cut[f"{side}_{kind}"] = feature[f"{side}_{kind}"][window]
    return cut


@torch.no_grad()
def _logps(model: nn.Module, collator: PreferenceCollator, features: Sequence[Batch]) -> torch.Tensor:
    batch = collator([dict(feature) for feature in features])
    device = next(model.parameters()).device
    batch = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
    return forward_rows(model, batch).logps


def _same(model: nn.Module, plain: torch.Tensor, other: torch.Tensor) -> bool:
    exact = next(model.parameters()).dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type)
    return torch.allclose(plain, other, rtol=1e-4 if exact else 2e-2, atol=1e-2 if exact else 1.0)


def enable_fast_paths(
    models: Sequence[nn.Module], collator: PreferenceCollator, features: Sequence[Batch], *, planned: bool, shared: bool
) -> tuple[PreferenceCollator, list[str]]:
    """Return a collator that does what works on the loaded models, tried there, and sentences on what does not.

    Args:
        models: the policy and, if there is one, the reference.
        collator: to start from.
        features: tokenized pairs to try on.
        planned: whether planned positions are wanted.
        shared: whether shared rows are wanted; they need planned positions.
    """
    sample = [_short(feature) for feature in list(features)[:CHECK_PAIRS]]
    with in_evaluation_mode(*models):
        trial = _Trial(models, collator, sample)
        notes = []
        if planned:
            faster = replace(collator, planned=True)
            reason = trial.difference(faster)
            collator = collator if reason else faster
            notes += [_note("Logits at response positions only", reason)] if reason else []
        if collator.planned and shared:
            reason = next((why for model in models if (why := unsuitable(model))), None)
            if reason is None:
                collator, reason = _try_shared(trial, collator)
            notes += [_note("Shared prompts", reason)] if reason else []
    return collator, notes


def _note(what: str, reason: str) -> str:
    return f"{what}: not used, because {reason}. Training goes on in the ordinary layout."


def _try_shared(trial: "_Trial", collator: PreferenceCollator) -> tuple[PreferenceCollator, str | None]:
    """Try shared rows with attention in pieces, then with a mask; return the collator, and why neither does or None."""
    if attend_in_pieces(trial.models, True):
        # Nothing is paid for what is not seen: one row for all, without padding.
        in_pieces = replace(collator, shared=True, costs=Costs())
        if trial.difference(in_pieces) is None:
            return in_pieces, None
    attend_in_pieces(trial.models, False)
    masked = replace(collator, shared=True)
    reason = trial.difference(masked)
    return (collator, reason) if reason else (masked, None)


class _Trial:
    """A small batch in the plain way, to compare other ways with."""

    def __init__(self, models: Sequence[nn.Module], collator: PreferenceCollator, sample: Sequence[Batch]):
        self.models, self.sample = models, sample
        self.plain = [_logps(model, collator, sample) for model in models]

    def difference(self, collator: PreferenceCollator) -> str | None:
        """Return why batches of `collator` cannot be used: the models stop, or give anything else; None if they can."""
        try:
            fast = [_logps(model, collator, self.sample) for model in self.models]
            if all(_same(*item) for item in zip(self.models, self.plain, fast, strict=True)):
                return None
            return "the model gives other log-probabilities then"
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            return f"the model stops with {type(error).__name__}: {str(error).splitlines()[0][:200]}"
