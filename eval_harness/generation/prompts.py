"""Prompts from a file or a data set, each once."""

from pathlib import Path

from eval_harness.data import read_dataset
from ledpo_plugin.common.problem import listing
from ledpo_plugin.common.problem import problem as make_problem
from ledpo_plugin.modeling.prompt_files import read_prompts as read_file

LARGEST_LIST = 8


class PromptError(ValueError):
    """Prompts that cannot be answered; the message lists every problem."""


def prompts_of_file(path: str | Path) -> list[str]:
    """Return the prompts of a .txt (one a line), .json or .jsonl file.

    Raises:
        PromptError: the file cannot be read, is empty or malformed, or has empty prompts or one twice.
    """
    try:
        prompts = read_file(path)
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}). Name a file that can.") from None
    except ValueError as error:
        text = str(error)
        raise PromptError(text if str(path) in text else f"{path} is malformed ({text}). Mend it.") from None
    seen: dict[str, int] = {}
    problems = []
    for place, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            problems.append(make_problem(f"prompt {place}", prompt, "it is empty", "write one, or take it out"))
        elif prompt in seen:
            why = f"it is prompt {seen[prompt]} again, and its answers could not be told apart"
            problems.append(make_problem(f"prompt {place}", prompt, why, "keep it once"))
        seen.setdefault(prompt, place)
    if problems:
        raise PromptError(listing(f"The prompts of {path}", problems, "nothing was generated", LARGEST_LIST))
    return prompts


def prompts_of_dataset(name: str, dataset_dir: str | Path, limit: int | None = None) -> tuple[list[str], int]:
    """Return the different prompts of one turn of a data set, and how many rows were left out.

    Raises:
        ValueError: the data set cannot be read, or has no such prompt.
    """
    examples = read_dataset(name, dataset_dir)
    prompts = list(dict.fromkeys(example.prompt for example in examples if example.single_turn))
    if not prompts:
        raise PromptError(f"Data set {name} in {dataset_dir} has no prompt of one turn. Name another one.")
    return prompts[:limit], len(examples) - len(prompts)
