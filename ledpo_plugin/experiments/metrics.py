"""The names of everything that is measured of a run, and what each means."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

OF_PAIRS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "share of held-out pairs whose beta-free margin is positive; a tie counts one half",
        "margin": "mean beta-free margin: log-ratio of policy to its starting point, chosen minus rejected (nats)",
        "logp_accuracy": "share of held-out pairs whose chosen answer is likelier per token under the policy",
        "chosen_shift": "change of the chosen answers' log-probability per token against the start (nats a token)",
        "rejected_shift": "change of the rejected answers' log-probability per token against the start (nats a token)",
        "beta_mean": "mean of beta(x) over the held-out prompts",
        "beta_std": "standard deviation of beta(x) over the held-out prompts",
        "beta_q10": "10 % quantile of beta(x) over the held-out prompts",
        "beta_q90": "90 % quantile of beta(x) over the held-out prompts",
        "beta_margin_corr": "correlation of beta(x) with the beta-free margin over the held-out pairs",
    }
)
OF_INSTRUCTIONS: Mapping[str, str] = MappingProxyType(
    {
        "nll": "negative log-likelihood of held-out instructions' answers (nats a token)",
        "perplexity": "exp of nll",
    }
)
OF_GENERATIONS: Mapping[str, str] = MappingProxyType(
    {
        "length": "mean length of the generated answers (tokens)",
        "ended": "share of generated answers that end by themselves",
        "distinct2": "distinct bigrams as a share of all bigrams of the generated answers",
        "repetition": "mean share of 4-grams of a generated answer that occurred in it before",
    }
)


def known_metrics(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the name of every metric that an evaluation gives."""
    names = [f"{data}/{metric}" for data in _names(evaluation, "pairs") for metric in OF_PAIRS]
    names += [f"{data}/{metric}" for data in _names(evaluation, "instructions") for metric in OF_INSTRUCTIONS]
    return names + ([f"gen/{metric}" for metric in OF_GENERATIONS] if evaluation.get("generations") else [])


def _names(evaluation: Mapping[str, Any], key: str) -> Sequence[str]:
    value = evaluation.get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, list | tuple) else ()
