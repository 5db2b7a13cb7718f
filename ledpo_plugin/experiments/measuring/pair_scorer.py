"""What the measured model says of given answers: log-probabilities of pairs and instructions, and beta of prompts."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.host.contract import host_api
from ledpo_plugin.modeling.forward import RowOutput, forward_rows
from ledpo_plugin.modeling.head_file import build_strategy, load_config, load_head, progress_of
from ledpo_plugin.modeling.inference import pad_prompts
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.reference.cache import LOGPS
from ledpo_plugin.training.collator import PreferenceCollator
from ledpo_plugin.workflow import padded_collator

from .loader import BATCH, Loaded
from .weights import Weights, require_finite


class PairScorer:
    """Scores held-out rows under the weights that were put in last, against what the start said of them."""

    def __init__(self, loaded: Loaded, weights: Weights, names: Sequence[str], *, reads_reference: bool) -> None:
        """Compute what is needed of the start, before any other weights are put in.

        Args:
            loaded: model and data.
            weights: of the model, those of the start.
            names: data sets of pairs.
            reads_reference: whether the run's beta reads the reference that it was trained against.

        Raises:
            ValueError: the start's log-probabilities are not finite.
        """
        self.loaded, self.weights = loaded, weights
        self._start_logps = self._of_start(names)
        self._reference_features = self._of_reference(names) if reads_reference else {}

    def pairs(self, name: str) -> dict[str, list[float]]:
        """Return the columns of a data set under the weights put in last; under the start if none were."""
        start = self._start_logps[name]
        policy = start if self.weights.at_start else self._logps(name)
        data = self.loaded.data[name]
        lengths = {side: [_length(labels) for labels in data[f"{side}_labels"]] for side in ("chosen", "rejected")}
        margin = (policy - start).double()
        return {
            "margin": (margin[:, 0] - margin[:, 1]).tolist(),
            "chosen_logps": policy[:, 0].tolist(),
            "rejected_logps": policy[:, 1].tolist(),
            "reference_chosen_logps": start[:, 0].tolist(),
            "reference_rejected_logps": start[:, 1].tolist(),
            "chosen_length": lengths["chosen"],
            "rejected_length": lengths["rejected"],
        }

    def betas(self, name: str, checkpoint: Path) -> list[float]:
        """Return beta(x) of every pair's prompt, by the head of a checkpoint whose weights were put in.

        Raises:
            HeadFileError: it is missing, damaged or does not fit.
        """
        config = load_config(checkpoint)
        strategy = build_strategy(config).eval()
        load_head(checkpoint, strategy, config)
        hidden = prompt_nll = None
        if strategy.needs:
            reads_reference = config["arguments"]["beta_head_source"] == "reference"
            hidden, prompt_nll = (
                self._reference_features[name] if reads_reference else self._prompt_features(self.loaded.model, name)
            )
        count = len(self.loaded.data[name])
        features = BetaFeatures(
            size=count, hidden=hidden, prompt_nll=prompt_nll, training=False, progress=progress_of(checkpoint)
        )
        with torch.no_grad():
            return strategy(features).beta.expand(count).tolist()

    def instructions(self, name: str) -> dict[str, list[float]]:
        """Return the NLL (nats) and the length (tokens) of every instruction's answer."""
        loaded = self.loaded
        collate = padded_collator(
            host_api().InstructionCollator,
            loaded.arguments.data,
            loaded.model,
            loaded.template,
            loaded.tokenizer_module,
        )
        collator = PreferenceCollator(collate, data="instructions", planned=loaded.trainer.data_collator.planned)
        outputs = list(self._passes(collator, loaded.data[name]))
        nll = -torch.cat([output.logps.float().cpu() for output in outputs])
        require_finite(nll, name)
        return {"nll": nll.tolist(), "length": torch.cat([output.lengths.cpu() for output in outputs]).tolist()}

    def _of_start(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return log-probabilities `[n, 2]` of every data set's chosen and rejected answers."""
        trainer = self.loaded.trainer
        for note in trainer.fill_caches():
            self.loaded.log(f"start: {note}")
        caches = dict(zip(names, trainer.caches, strict=True))
        unfinished = [name for name, cache in caches.items() if not cache.complete]
        if unfinished:
            raise ValueError(
                f"The model that training starts from gives no finite log-probabilities for {', '.join(unfinished)}. "
                "Check its weights and precision (bf16 instead of fp16)."
            )
        return {name: cache.values[LOGPS].clone() for name, cache in caches.items()}

    def _of_reference(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        start = self.loaded.trainer.reference
        with start.trained_against(self.loaded.model) as reference:
            features = {name: self._prompt_features(reference, name) for name in names}
        start.release()
        return features

    def _logps(self, name: str) -> Tensor:
        outputs = self._passes(self.loaded.trainer.data_collator, self.loaded.data[name])
        logps = torch.cat([torch.stack(output.logps.float().cpu().chunk(2), dim=1) for output in outputs])
        require_finite(logps, name)
        return logps

    @torch.no_grad()
    def _passes(self, collator: PreferenceCollator, data: Any) -> Iterator[RowOutput]:
        trainer = self.loaded.trainer
        for first in range(0, len(data), BATCH):
            rows = [data[row] for row in range(first, min(first + BATCH, len(data)))]
            batch = trainer.on_device(collator(rows))
            with trainer.compute_loss_context_manager():
                yield forward_rows(self.loaded.model, batch)

    @torch.no_grad()
    def _prompt_features(self, model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        """Return what a beta head may read of every prompt: the hidden states `[n, d]` and the prompts' NLL `[n]`."""
        loaded, trainer = self.loaded, self.loaded.trainer
        prompts, parts = loaded.prompt_ids(name), []
        for first in range(0, len(prompts), BATCH):
            batch = pad_prompts(prompts[first : first + BATCH], loaded.tokenizer, loaded.arguments.training.device)
            if trainer.data_collator.planned:
                keys = ("input_ids", "labels", "attention_mask")
                batch |= plan_of_rows(*(batch[key] for key in keys), prompts=True).to_batch()
            with trainer.compute_loss_context_manager():
                parts.append(forward_rows(model, batch, wants=frozenset({"hidden", "prompt_nll"})))
        hidden = torch.cat([part.hidden.float().cpu() for part in parts])
        return hidden, torch.cat([part.prompt_nll.float().cpu() for part in parts])


def _length(labels: Sequence[int]) -> int:
    return sum(label != IGNORE for label in labels)
