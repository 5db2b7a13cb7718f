"""The table of everything that is measured of a run: what each metric means and how it is read.

Those of generated texts are the rows of `eval_harness.text.TEXT_METRICS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from eval_harness.text import TEXT_METRICS, TextMetric


@dataclass(frozen=True)
class Metric:
    """One row: what a metric means and how it is read."""

    meaning: str
    unit: str
    better: int = 0  # whether more of it is better (1), worse (-1) or neither (0)


def _of_text(row: TextMetric) -> Metric:
    return Metric(row.meaning, row.unit, row.better)


OF_PAIRS: Mapping[str, Metric] = MappingProxyType(
    {
        "accuracy": Metric(
            "share of held-out pairs whose beta-free margin is positive; a tie counts one half", "share of pairs", 1
        ),
        "margin": Metric(
            "mean beta-free margin: log-ratio of policy to its starting point, chosen minus rejected (nats)", "nats", 1
        ),
        "logp_accuracy": Metric(
            "share of held-out pairs whose chosen answer is likelier per token under the policy", "share of pairs", 1
        ),
        "chosen_shift": Metric(
            "change of the chosen answers' log-probability per token against the start (nats a token)", "nats per token"
        ),
        "rejected_shift": Metric(
            "change of the rejected answers' log-probability per token against the start (nats a token)",
            "nats per token",
        ),
        "beta_mean": Metric("mean of beta(x) over the held-out prompts", "beta"),
        "beta_std": Metric("standard deviation of beta(x) over the held-out prompts", "beta"),
        "beta_q10": Metric("10 % quantile of beta(x) over the held-out prompts", "beta"),
        "beta_q90": Metric("90 % quantile of beta(x) over the held-out prompts", "beta"),
        "beta_margin_corr": Metric(
            "correlation of beta(x) with the beta-free margin over the held-out pairs", "correlation"
        ),
    }
)
OF_INSTRUCTIONS: Mapping[str, Metric] = MappingProxyType(
    {
        "nll": Metric("negative log-likelihood of held-out instructions' answers (nats a token)", "nats per token", -1),
        "perplexity": Metric("exp of nll", "perplexity", -1),
    }
)
OF_GENERATIONS: Mapping[str, Metric] = MappingProxyType(
    {name: _of_text(row) for name, row in TEXT_METRICS.items() if not row.drawn_only}
)
OF_ANSWERS: Mapping[str, Metric] = MappingProxyType(
    {
        "kl": Metric(
            "KL from the start: mean over answers that the policy drew itself of its log p less that of the start, "
            "the answer's end included (Monte Carlo, estimator k1; nats an answer)",
            "nats per answer",
        ),
        "entropy": Metric(
            "entropy of the policy's next token, mean over the tokens of its drawn answers (nats a token)",
            "nats per token",
        ),
        **{name: _of_text(row) for name, row in TEXT_METRICS.items()},
    }
)
# Who scores the drawn answers: the evaluation's key, and what it is.
SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "reward": "the reward model that the runs of rollouts were trained by",
        "judge": "a reward model that no run was trained by, from pairs that no run trained on",
    }
)
OF_SCORES: Mapping[str, Metric] = MappingProxyType(
    {
        "score": Metric("mean score of the drawn answers", "score", 1),
        "win_rate": Metric(
            "share of held-out prompts whose drawn answer scores above the start's; a tie counts one half",
            "share of prompts",
            1,
        ),
    }
)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {**OF_PAIRS, **OF_INSTRUCTIONS, **OF_GENERATIONS, **OF_ANSWERS, **OF_SCORES}
)


def known_metrics(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the name of every metric that an evaluation gives."""
    names = [f"{data}/{metric}" for data in _names(evaluation, "pairs") for metric in OF_PAIRS]
    names += [f"{data}/{metric}" for data in _names(evaluation, "instructions") for metric in OF_INSTRUCTIONS]
    names += [f"gen/{metric}" for metric in OF_GENERATIONS] if evaluation.get("generations") else []
    answers = evaluation.get("answers")
    if isinstance(answers, Mapping):
        names += [f"answers/{metric}" for metric in OF_ANSWERS]
        names += [f"{role}/{metric}" for role in SCORERS if answers.get(role) for metric in OF_SCORES]
    return names


def _names(evaluation: Mapping[str, Any], key: str) -> Sequence[str]:
    value = evaluation.get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else ()
