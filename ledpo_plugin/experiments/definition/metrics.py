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


OF_ANSWERS: Mapping[str, str] = MappingProxyType(
    {
        "kl": "KL from the start: mean over answers that the policy drew itself of its log p less that of the start, "
        "the answer's end included (Monte Carlo, estimator k1; nats an answer)",
        "entropy": "entropy of the policy's next token, mean over the tokens of its drawn answers (nats a token)",
        "distinct1": "distinct tokens as a share of all tokens of the answers",
        **OF_GENERATIONS,
    }
)
# Who scores the drawn answers: the evaluation's key, and what it is.
SCORERS: Mapping[str, str] = MappingProxyType(
    {
        "reward": "the reward model that the runs of rollouts were trained by",
        "judge": "a reward model that no run was trained by, from pairs that no run trained on",
    }
)
OF_SCORES: Mapping[str, str] = MappingProxyType(
    {
        "score": "mean score of the drawn answers",
        "win_rate": "share of held-out prompts whose drawn answer scores above the start's; a tie counts one half",
    }
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
