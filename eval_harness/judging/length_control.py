"""Length-controlled win rates by alpaca_eval's regression: the official one, or one that says that it is not."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .alpaca import _quiet, alpaca

CALIBRATION = "df_gamed.csv"
OFFICIAL_PROMPTS = 805
OFFICIAL = "AlpacaEval 2 (length_controlled_v1, official calibration)"
OWN = "not AlpacaEval's official one: its regression without difficulties and calibration (length_controlled_minimal)"
LEAST = 10  # comparisons: the regression is fitted with five-fold cross-validation


def find_calibration(given: str | Path | None = None) -> Path | None:
    """Return AlpacaEval's calibration data: the given file, or the one in the hub's cache; None if it is nowhere.

    Raises:
        FileNotFoundError: the given file is not there.
    """
    if given is not None:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given} is not there. Name AlpacaEval's {CALIBRATION}, or leave it out.")
        return Path(given)
    from huggingface_hub import try_to_load_from_cache

    constants = alpaca("alpaca_eval.constants")
    for folder in (constants.DEFAULT_CACHE_DIR, None):
        found = try_to_load_from_cache("tatsu-lab/alpaca_eval", CALIBRATION, cache_dir=folder, repo_type="dataset")
        if isinstance(found, str):
            return Path(found)
    return None


def length_controlled(
    annotations: Sequence[Mapping[str, Any]], calibration: str | Path | None = None
) -> dict[str, Any]:
    """Return the length-controlled win rate of generator_2 in percent, with what it is called.

    The official one (Dubois et al. 2024, arXiv:2404.04475) needs AlpacaEval's calibration data and its 805 prompts, in
    their order: difficulties are looked up by place. Otherwise the same regression is fitted to these comparisons
    alone, P(win) = logistic(a + b tanh(length difference / its deviation)), at equal lengths; the label says so.

    Args:
        annotations: with output_1, output_2 and preference, one a prompt.
        calibration: AlpacaEval's df_gamed.csv; left out: the one in the hub's cache, if it is there.

    Returns:
        `win_rate`, `standard_error` (None with a `reason` where there is none), `label`, `official`.
    """
    path = find_calibration(calibration)
    if path is not None and len(annotations) == OFFICIAL_PROMPTS:
        with _quiet(), _reading(path):
            found = alpaca("alpaca_eval.metrics").get_length_controlled_winrate(
                [dict(row) for row in annotations], save_weights_dir=None, is_warn_extreme_changes=False
            )
        return _result(found["length_controlled_winrate"], found["lc_standard_error"], OFFICIAL, True)
    if path is None:
        why = f"{CALIBRATION} is not here"
    else:
        why = f"there are {len(annotations)} comparisons, not AlpacaEval's {OFFICIAL_PROMPTS}"
    label = f"{OWN}; {why}"
    lengths = np.asarray([len(row["output_1"]) - len(row["output_2"]) for row in annotations], dtype=float)
    if len(annotations) < LEAST:
        return _result(None, None, label, False, f"{len(annotations)} comparisons are too few (at least {LEAST})")
    if lengths.std(ddof=1) == 0:
        return _result(None, None, label, False, "all comparisons have the same difference in length")
    won = np.asarray([float(row["preference"]) for row in annotations])
    won = np.where(won == 0, 1.5, won) - 1
    predicted = _fitted(lengths / lengths.std(ddof=1), won)
    error = float(np.std(predicted, ddof=1) / math.sqrt(len(predicted)))
    return _result(float(predicted.mean()) * 100, error * 100, label, False)


def _fitted(apart: np.ndarray, won: np.ndarray) -> np.ndarray:
    """Return the predicted preferences at equal lengths, by alpaca_eval's own fit."""
    import pandas as pd

    glm = alpaca("alpaca_eval.metrics.glm_winrate")
    formula = glm.GLM_INFO["length_controlled_minimal"]["formula"]
    table = pd.DataFrame({"std_delta_len": apart, "not_gamed_baseline": True, "preference": won})
    with _quiet():
        train, test = glm.make_dmatrix_for_model(table, table.assign(std_delta_len=0.0), formula=formula)
        model = glm.fit_LogisticRegressionCV(
            train, "preference", is_ytrue_proba=True, **glm.GLM_INFO["length_controlled_minimal"]["kwargs"]
        )
        return model.predict_proba(test)[:, 1]


def _result(
    rate: float | None, error: float | None, label: str, official: bool, reason: str | None = None
) -> dict[str, Any]:
    found = {"win_rate": rate, "standard_error": error, "label": label, "official": official, "reason": reason}
    return {key: float(value) if isinstance(value, np.floating) else value for key, value in found.items()}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Have alpaca_eval read the calibration from this file, where it would ask the hub for it."""
    module = alpaca("alpaca_eval.metrics.glm_winrate")
    before = module.hf_hub_download
    module.hf_hub_download = lambda **_: str(path)
    try:
        yield
    finally:
        module.hf_hub_download = before
