"""AlpacaEval's length-controlled win rate where its own data are there; otherwise none, with the reason."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .alpaca import alpaca, quiet

CALIBRATION = "df_gamed.csv"
OFFICIAL_PROMPTS = 805
OFFICIAL = "AlpacaEval 2 (length_controlled_v1, official calibration)"
# Its regression was once fitted to the judged comparisons alone. That is withdrawn: docs/evaluation.md, Length.
NONE = "the win rate is given as it is, and how it goes with length beside it"


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

    It (Dubois et al. 2024, arXiv:2404.04475) needs AlpacaEval's calibration data and its 805 prompts, in their order:
    difficulties are looked up by place. Otherwise there is none: comparisons with one baseline cannot tell a judge's
    taste for length from the worth of longer answers (see `length_bias.length_effect` for what is reported instead).

    Args:
        annotations: with output_1, output_2 and preference, one a prompt.
        calibration: AlpacaEval's df_gamed.csv; left out: the one in the hub's cache, if it is there.

    Returns:
        `win_rate`, `standard_error` (both None with a `reason` where there is none), `label`, `official`.
    """
    path = find_calibration(calibration)
    if path is not None and len(annotations) == OFFICIAL_PROMPTS:
        with quiet(), _reading(path):
            found = alpaca("alpaca_eval.metrics").get_length_controlled_winrate(
                [dict(row) for row in annotations], save_weights_dir=None, is_warn_extreme_changes=False
            )
        return _result(found["length_controlled_winrate"], found["lc_standard_error"], OFFICIAL, True)
    if path is None:
        why = f"{CALIBRATION} is not here"
    else:
        why = f"there are {len(annotations)} comparisons, not AlpacaEval's {OFFICIAL_PROMPTS}"
    return _result(None, None, "not controlled for length", False, f"{why}; {NONE}")


def _result(
    rate: float | None, error: float | None, label: str, official: bool, reason: str | None = None
) -> dict[str, Any]:
    found = {"win_rate": rate, "standard_error": error, "label": label, "official": official, "reason": reason}
    return {key: value if isinstance(value, bool | str | None) else float(value) for key, value in found.items()}


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
