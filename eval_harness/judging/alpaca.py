"""What is asked of alpaca_eval: its annotators, its parsers, its win rates; and what has to be done for it to work."""

import hashlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from .judge import PARSERS, Judge

CONFIG = "configs.yaml"
# Its prompts are numbers, which stand for questions made by us: in a prompt it would take "{output_2}" in an answer for
# a placeholder, and its tables (pandas) take texts for the same that differ behind a NUL.
PROMPT = "{question}"


def alpaca(name: str = "alpaca_eval") -> ModuleType:
    """Return one of alpaca_eval's modules.

    Raises:
        ImportError: it is not installed, or setuptools is too new for it; the message says what to do.
    """
    level = logging.getLogger().level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == "pkg_resources":
            raise ImportError(
                "alpaca_eval imports pkg_resources, which setuptools has no more from version 81 on: "
                "pip install 'setuptools<81'."
            ) from None
        raise ImportError(f"{error.name} is not installed: pip install 'ledpo-plugin[eval]'.") from None
    finally:
        logging.getLogger().setLevel(level)  # alpaca_eval sets the root logger to INFO when it is imported


def annotate(
    judge: Judge, rows: Sequence[dict[str, Any]], completions: Callable[[Sequence[str]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows that alpaca_eval's annotator understood a verdict of, with `preference` and what was said.

    Args:
        judge: whose prompt and parser are used.
        rows: each with instruction, output_1, output_2 and question; no two alike.
        completions: from questions to `completions` (texts) and `completions_all` (OpenAI's choices).
    """
    annotators = alpaca("alpaca_eval.annotators")
    parser, arguments, read = PARSERS[judge.parser]
    config = {
        judge.name: {
            "prompt_template": "",  # its file, below
            "fn_completions": "test_completions",  # replaced below: a function cannot be written in YAML
            "completions_kwargs": {},
            "fn_completion_parser": parser,
            "completion_parser_kwargs": dict(arguments),
            "completion_key": read,
            "batch_size": 1,
            "is_shuffle": False,
            "is_randomize_output_order": False,  # both orders are asked for anyway
        }
    }
    with tempfile.TemporaryDirectory(prefix="ledpo-judge-") as folder, quiet():
        path = Path(folder) / judge.name
        path.mkdir()
        (path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
        config[judge.name]["prompt_template"] = str(path / "prompt.txt")
        (path / CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
        annotator = annotators.PairwiseAnnotator(
            annotators_config=path,
            base_dir=Path(folder),
            input_keys=("instruction", "question"),
            caching_path=None,  # answers are kept by us, one by one
            is_avoid_reannotations=False,
            is_store_missing_annotations=False,
        )
        (single,) = annotator.annotators.values()
        single.fn_completions = lambda prompts, **_: completions([rows[int(place)]["question"] for place in prompts])
        found = annotator([_stand_in(place, row) for place, row in enumerate(rows)], chunksize=None)
    understood = [row for row in found if row.get("preference") is not None and row["preference"] == row["preference"]]
    return [rows[int(row["question"])] | {"preference": row["preference"]} for row in understood]


def _stand_in(place: int, row: dict[str, Any]) -> dict[str, str]:
    """Return what stands for a row: equal texts stay equal, for equal answers are a tie."""
    texts = ("instruction", "output_1", "output_2")
    hashes = {key: hashlib.sha256(row[key].encode("utf-8", "surrogatepass")).hexdigest() for key in texts}
    return hashes | {"question": str(place)}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep its logging (which has every prompt in it) and its libraries' warnings to itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def official_win_rate(annotations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return alpaca_eval's own win rate of generator_2 in percent, standard error, and counts.

    Raises:
        ValueError: there is no annotation.
    """
    if not annotations:
        raise ValueError("There is no annotation to compute a win rate of.")
    with quiet():
        found = alpaca("alpaca_eval.metrics").get_winrate(list(annotations))
    return {key: float(value) for key, value in found.items()}
