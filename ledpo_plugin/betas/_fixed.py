"""The beta of plain DPO."""

from typing import Self

import torch

from ledpo_plugin.betas._types import BetaFeatures, BetaOutput, BetaStrategy
from ledpo_plugin.hparams import LedpoArguments


class FixedBeta(BetaStrategy):
    """The same beta0 for every example."""

    def __init__(self, *, beta0: float = 0.1) -> None:
        super().__init__()
        # Not saved: the recipe says what beta is, not a checkpoint.
        self.register_buffer("beta", torch.tensor(beta0, dtype=torch.float32), persistent=False)

    @classmethod
    def from_arguments(cls, args: LedpoArguments, *, beta0: float, hidden_size: int, seed: int = 0) -> Self:
        """Build the strategy; it has no options."""
        return cls(beta0=beta0)

    def forward(self, features: BetaFeatures) -> BetaOutput:
        """Return beta0 `[B]`, without gradient."""
        return BetaOutput(self.beta.expand(features.size))
