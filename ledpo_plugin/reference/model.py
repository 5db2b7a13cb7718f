"""The reference model of a run, ready for a pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode

from .adapter import reference_at_work


class ReferenceModel:
    """A model of its own, or the policy with its adapter switched off or the frozen copy of it at work."""

    def __init__(
        self, separate: nn.Module | None, *, adapter: str | None, unwrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        """Set up the reference.

        Args:
            separate: a model of its own, in place on its device; None where the policy holds the reference.
            adapter: `reference_adapter` of the recipe, which says what of the policy is the reference.
            unwrap: returns a policy without what distributes it.
        """
        self.separate, self.adapter, self.unwrap = separate, adapter, unwrap

    @contextmanager
    def at_work(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Give the reference, in evaluation mode; afterwards `policy` (wrapped or not) is as it was."""
        if self.separate is not None:
            with in_evaluation_mode(self.separate):
                yield self.separate
            return
        inner = self.unwrap(policy)
        # DDP's forward waits for all ranks, and not all need a pass where a cache is partly filled.
        through = inner if isinstance(policy, nn.parallel.DistributedDataParallel) else policy
        with reference_at_work(inner, self.adapter), in_evaluation_mode(through):
            yield through

    def release(self) -> None:
        """Forget a model of its own, so that its memory can be used: no pass needs it any more."""
        self.separate = None
