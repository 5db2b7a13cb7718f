"""What texts say of themselves: diversity, repetition, and whether a calculation came out right. Pure."""

from .accuracy import final_number, numeric_accuracy
from .diversity import distinct, repetition, self_bleu
from .metrics import TEXT_METRICS, TextMetric, text_metrics

__all__ = [
    "TEXT_METRICS",
    "TextMetric",
    "distinct",
    "final_number",
    "numeric_accuracy",
    "repetition",
    "self_bleu",
    "text_metrics",
]
