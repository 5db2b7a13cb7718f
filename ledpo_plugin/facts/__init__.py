"""What is known of every beta mode, loss and kind of reward, one row each: what recipes, documents and forms go by.

Nothing here imports torch or anything else of the plugin; what a row is about is found by its `where`.
"""

from ._row import KINDS, Check, Kind, either, implementation, key
from .betas import (
    BETAS,
    HEAD_ACTIVATIONS,
    HEAD_SOURCES,
    BetaKeys,
    BetaMode,
    Need,
    has_head,
    is_learned,
    known_before_answers,
)
from .losses import LOSSES, Loss, LossKeys, readers
from .rewards import DEFAULT_REWARD, REWARDS, Reward

__all__ = [
    "BETAS",
    "DEFAULT_REWARD",
    "HEAD_ACTIVATIONS",
    "HEAD_SOURCES",
    "KINDS",
    "LOSSES",
    "REWARDS",
    "BetaKeys",
    "BetaMode",
    "Check",
    "Kind",
    "Loss",
    "LossKeys",
    "Need",
    "Reward",
    "either",
    "has_head",
    "implementation",
    "is_learned",
    "key",
    "known_before_answers",
    "readers",
]
