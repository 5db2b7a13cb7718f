"""The beta strategy on disk: `beta_head.safetensors` beside `beta_head.json`, in every checkpoint and output folder."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ledpo_plugin.betas import FINISHED, BetaStrategy, Progress, strategy_class
from ledpo_plugin.common.lookup import lookup
from ledpo_plugin.facts import BETAS
from ledpo_plugin.hparams import LedpoArguments

WEIGHTS = "beta_head.safetensors"
CONFIG = "beta_head.json"
TRAINER_STATE = "trainer_state.json"  # the host's
FORMAT = 1


class HeadFileError(ValueError):
    """A beta head on disk is missing, damaged or made for another model or setting."""


def head_config(
    args: LedpoArguments, *, beta0: float, loss: str, hidden_size: int, model: str, seed: int
) -> dict[str, Any]:
    """Return what must be known to build the strategy again and to see whether it fits."""
    return {
        "format": FORMAT,
        "beta_mode": args.beta_mode,
        "beta0": beta0,
        "pref_loss": loss,
        "hidden_size": hidden_size,
        "model": model,
        "seed": seed,
        "arguments": {item.name: getattr(args, item.name) for item in fields(LedpoArguments)},
    }


def build_strategy(config: dict[str, Any]) -> BetaStrategy:
    """Build the strategy that `config` (see `head_config`) describes, freshly initialised."""
    cls = strategy_class(lookup(BETAS, "beta_mode", config["beta_mode"]).name)
    args = LedpoArguments(**config["arguments"])
    return cls.from_arguments(args, beta0=config["beta0"], hidden_size=config["hidden_size"], seed=config["seed"])


def _write(path: Path, write) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    os.replace(temporary, path)


def save_head(folder: str | Path, strategy: BetaStrategy, config: dict[str, Any]) -> None:
    """Write the strategy's parameters, running statistics and configuration into `folder`."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in strategy.state_dict().items()}
    _write(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    _write(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def load_config(folder: str | Path) -> dict[str, Any]:
    """Return the configuration in `folder`.

    Raises:
        HeadFileError: it is missing or not readable.
    """
    path = Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        missing = {"format", "beta_mode", "beta0", "hidden_size", "seed", "arguments"} - set(config)
    except (OSError, ValueError, TypeError) as error:
        raise HeadFileError(
            f"{path} cannot be read ({error}). Point to the folder of a run of a LEDPO stage."
        ) from None
    if missing or config["format"] != FORMAT:
        raise HeadFileError(f"{path} is not a beta head of format {FORMAT} (missing: {sorted(missing)}).")
    return config


def progress_of(folder: str | Path) -> Progress:
    """Return how far the run was that wrote `folder`, a checkpoint or an output folder; over where it does not say."""
    try:
        state = json.loads((Path(folder) / TRAINER_STATE).read_text(encoding="utf-8"))
        return Progress(int(state["global_step"]), int(state["max_steps"]))
    except (OSError, ValueError, TypeError, KeyError):
        return FINISHED


def load_head(folder: str | Path, strategy: BetaStrategy, config: dict[str, Any]) -> None:
    """Load the strategy's state from `folder` into `strategy`, which `config` describes.

    Raises:
        HeadFileError: the files are missing or damaged, or were made for another beta mode, model width or head.
    """
    stored = load_config(folder)
    differing = [key for key in ("beta_mode", "hidden_size") if stored[key] != config[key]]
    if differing:
        raise HeadFileError(
            f"The beta head in {folder} does not fit: "
            + "; ".join(f"{key} is {stored[key]!r} there and {config[key]!r} here" for key in differing)
            + ". Use the model and beta_mode it was trained with, or leave beta_head_path out."
        )
    path = Path(folder) / WEIGHTS
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HeadFileError(f"{path} is missing or damaged ({error}). Restore it or start without it.") from None
    expected = strategy.state_dict()
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    )
    if wrong:
        raise HeadFileError(
            f"{path} does not fit the head of this recipe: {', '.join(wrong)} differ. "
            "Use the beta_head_widths and options it was trained with (they are in beta_head.json)."
        )
    strategy.load_state_dict(tensors)
