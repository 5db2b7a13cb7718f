"""How far a raw win rate and a regression on length are from the truth, where the truth is known.

    python benchmarks/length_control.py

A judge prefers one model's answer with log-odds a + b d, d its standardised lead in length. Part of b is the judge's
taste for length, which length control is meant to take off, and the rest is the worth of longer answers, which it is
not: the true win rate is the mean of logistic(a + (1 - taste) b d). The regression is the one that `ledpo eval judge`
used without AlpacaEval's data until it was withdrawn: alpaca_eval's length_controlled_minimal,
P(win) = logistic(a + b tanh(d)), read at d = 0. Prints the table of docs/evaluation.md.
"""

import numpy as np
import pandas as pd
from scipy.special import expit

from eval_harness.judging.alpaca import alpaca, quiet

PROMPTS, DRAWS, SLOPE = 300, 40, 0.8
MODEL = "length_controlled_minimal"


def fitted(apart: np.ndarray, won: np.ndarray) -> float:
    """Return the regression's win rate at equal lengths (0 to 1) of length differences [N] and wins [N]."""
    glm = alpaca("alpaca_eval.metrics.glm_winrate")
    table = pd.DataFrame({"std_delta_len": apart / apart.std(ddof=1), "not_gamed_baseline": True, "preference": won})
    own = glm.GLM_INFO[MODEL]
    with quiet():
        train, test = glm.make_dmatrix_for_model(table, table.assign(std_delta_len=0.0), formula=own["formula"])
        model = glm.fit_LogisticRegressionCV(train, "preference", is_ytrue_proba=True, **own["kwargs"])
        return float(model.predict_proba(test)[:, 1].mean())


def errors(taste: float, shift: float, seed: int) -> tuple[float, float]:
    """Return the root mean square errors, in points, of the raw win rate and of the regression.

    Args:
        taste: share of the effect of length that is the judge's taste.
        shift: mean lead of the model in length, in standard deviations.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    raw, controlled = [], []
    for _ in range(DRAWS):
        ability = generator.uniform(-1, 1)
        apart = generator.normal(shift, 1, PROMPTS)
        won = (generator.random(PROMPTS) < expit(ability + SLOPE * apart)).astype(float)
        truth = expit(ability + (1 - taste) * SLOPE * apart).mean()
        raw.append(won.mean() - truth)
        controlled.append(fitted(apart, won) - truth)
    return tuple(100 * float(np.sqrt(np.mean(np.square(own)))) for own in (raw, controlled))


def main() -> None:
    """Print the table."""
    print("| Share of the effect that is taste | Mean lead in length (SD) | Raw win rate, RMSE | Regression, RMSE |")
    print("|---|---|---|---|")
    for taste in (0.0, 0.25, 0.5, 0.75, 1.0):
        for shift in (0.0, 1.0):
            raw, controlled = errors(taste, shift, seed=0)
            print(f"| {taste:.0%} | {shift:g} | {raw:.1f} | {controlled:.1f} |", flush=True)


if __name__ == "__main__":
    main()
