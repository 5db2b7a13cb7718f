"""The weights of the model that is measured: those of the start, and each checkpoint's put in over them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from .loader import StartOfTraining


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be measured; the message says which and what to do."""


class Weights:
    """Which weights a model has: those that training started from, until a checkpoint's are put in."""

    def __init__(self, model: nn.Module, start: StartOfTraining, *, keep_start: bool) -> None:
        """Take a model as it was loaded.

        Args:
            model: the policy.
            start: the reference that is the start.
            keep_start: whether `as_started` is needed after a checkpoint was put in.
        """
        self.model, self._start = model, start
        self.at_start = True
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        keep = keep_start and not start.adapter_is_new  # a new adapter is switched off instead
        self._kept = self._values(trained) if keep else None

    @contextmanager
    def start(self) -> Iterator[None]:
        """Have the model be what training started from.

        Raises:
            RuntimeError: other weights were put in already.
        """
        if not self.at_start:
            raise RuntimeError("The start's weights are gone: measure it before the checkpoints.")
        with self._start.at_work(self.model):
            yield

    @contextmanager
    def as_started(self) -> Iterator[nn.Module]:
        """Give the model as training started from it; afterwards it has the weights that were put in last."""
        if self._kept is None:  # the adapter began as nothing, and is switched off
            with self._start.at_work(self.model) as reference:
                yield reference
            return
        latest = self._values(self._kept)
        try:
            self._put(self._kept)
            yield self.model
        finally:
            self._put(latest)

    def take(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model.

        Raises:
            CheckpointError: they are missing, damaged, or do not fit the recipe.
        """
        self.at_start = False
        try:
            if hasattr(self.model, "disable_adapter"):
                problem = _take_adapter(self.model, checkpoint)
            else:
                problem = _take_whole(self.model, checkpoint)
        except Exception as error:  # safetensors, transformers and torch each have their own
            problem = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        if problem:
            raise CheckpointError(
                f"The weights in {checkpoint} are missing, damaged or of another recipe ({problem}). Delete the "
                "folder of this run and run it again."
            )

    def _values(self, names: Iterable[str]) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach().clone() for name in names}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, value in values.items():
            parameters[name].copy_(value)


def require_finite(values: Tensor, name: str) -> None:
    """Do nothing if log-probabilities are finite.

    Raises:
        CheckpointError: some are not.
    """
    if not bool(values.isfinite().all()):
        raise CheckpointError(
            f"The trained model gives log-probabilities that are not finite for {name}: training diverged. Lower "
            "learning_rate of this variant and run it again."
        )


def _take_adapter(model: nn.Module, checkpoint: Path) -> str | None:
    """Put an adapter's weights in; return what does not fit, or None."""
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    result = set_peft_model_state_dict(model, tensors)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return _differing(trained.intersection(result.missing_keys), result.unexpected_keys)


def _take_whole(model: nn.Module, checkpoint: Path) -> str | None:
    """Put a whole model's weights in; return what does not fit, or None."""
    fresh, report = type(model).from_pretrained(
        checkpoint,
        dtype=next(model.parameters()).dtype,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
    )
    problem = _differing(report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    if problem is None:
        model.load_state_dict(fresh.state_dict())
    return problem


def _differing(*kinds: Any) -> str | None:
    names = ("not there", "not known", "of another shape")
    texts = [f"{name}: {', '.join(map(str, sorted(keys)[:3]))}" for name, keys in zip(names, kinds) if keys]  # noqa: B905
    return "; ".join(texts) or None
