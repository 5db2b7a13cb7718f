"""What a run did to the held-out pairs: before and after, with intervals, in plain words."""

import json
from pathlib import Path
from typing import Any

from .intervals import newcombe, standard_error, wilson

ACCURACY, LIKELIER, MARGIN = "eval_rewards/accuracies", "eval_logps/accuracies", "eval_margins/beta_free"
ROWS = (
    ("accuracy of the implicit reward", ACCURACY),
    ("chosen answer likelier than rejected", LIKELIER),
    ("beta-free margin", MARGIN),
    ("loss", "eval_loss"),
    ("beta, mean", "eval_beta/mean"),
    ("beta, 10 % quantile", "eval_beta/q10"),
    ("beta, 90 % quantile", "eval_beta/q90"),
)
OWN_PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Is it safe to look at the sun through binoculars?",
)
Eval = dict[str, float]


class RunError(RuntimeError):
    """There is no finished run in the folder; the message says how to make one."""


def show(run_dir: Path) -> str:
    """Return a report on the run in `run_dir`: held-out results before and after, beta per prompt, files.

    Raises:
        RunError: the folder holds no finished run, or one that was never evaluated.
    """
    run_dir = Path(run_dir)
    evals = read_evals(run_dir)
    n = heldout_size(run_dir)
    parts = [_table(evals, n), _words(evals, n), _betas(run_dir), _files(run_dir)]
    return "\n\n".join(part for part in parts if part)


def read_evals(run_dir: Path) -> list[Eval]:
    """Return the first and the last evaluation of a run; just one if there was one.

    The evaluation that LLaMA-Factory makes after training (`do_eval`) is not in trainer_state.json, which is
    written before it, but in eval_results.json.

    Raises:
        RunError: there is no trainer_state.json, or no evaluation.
    """
    path = run_dir / "trainer_state.json"
    if not path.is_file():
        raise RunError(f"{path} does not exist: no run was finished in {run_dir}. `make quickstart` makes one.")
    state = json.loads(path.read_text(encoding="utf-8"))
    evals = [entry for entry in state.get("log_history", []) if "eval_loss" in entry]
    final = run_dir / "eval_results.json"
    if final.is_file():
        evals.append({"step": state.get("global_step"), **json.loads(final.read_text(encoding="utf-8"))})
    if not evals:
        raise RunError(
            f"The run in {run_dir} was never evaluated. Set eval_dataset (or val_size), eval_on_start: true and "
            f"do_eval: true in its recipe, as yaml_recipes/quickstart.yaml does."
        )
    return [evals[0], evals[-1]] if len(evals) > 1 else evals


def heldout_size(run_dir: Path) -> int | None:
    """Return how many pairs the run's recipe evaluates on; None if its record or data are not there any more."""
    try:
        recipe = _read(run_dir / "ledpo_run.json")["recipe"]
        folder = Path(recipe["dataset_dir"])
        info = _read(folder / "dataset_info.json")
        names = [name.strip() for name in recipe["eval_dataset"].split(",")]
        return sum(len(_read(folder / info[name]["file_name"])) for name in names)
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(evals: list[Eval], n: int | None) -> str:
    before, after = evals[0], evals[-1]
    pairs = "held-out pairs" if n is None else f"{n} held-out pairs"
    titles = [f"step {entry.get('step', '?')}" for entry in evals]
    lines = [f"{pairs:<40}" + "".join(f"{title:>12}" for title in titles)]
    for title, key in ROWS:
        if any(key in entry for entry in evals):
            cells = (f"{entry[key]:.4f}" if key in entry else "-" for entry in evals)
            lines.append(f"{title:<40}" + "".join(f"{cell:>12}" for cell in cells))
    missing = [key for _, key in ROWS if key not in before and key not in after]
    if missing:
        lines.append(f"Not logged by this run: {', '.join(missing)}.")
    return "\n".join(lines)


def _words(evals: list[Eval], n: int | None) -> str:
    before, after = evals[0], evals[-1]
    if len(evals) == 1:
        return "There is one evaluation only, so before and after cannot be compared."
    if n is None:
        return "How many pairs were held out is not known any more, so no interval can be given."
    said = []
    if ACCURACY in after:
        said.append(_words_on_accuracy(after[ACCURACY], n))
    if LIKELIER in before and LIKELIER in after:
        low, high = newcombe(before[LIKELIER], after[LIKELIER], n)
        change = after[LIKELIER] - before[LIKELIER]
        verdict = "which includes 0: no change is shown" if low <= 0 <= high else "which excludes 0"
        said.append(
            f"The share of pairs whose chosen answer is the likelier one changed by {change:+.3f}\n"
            f"(95 % interval {low:+.3f} to {high:+.3f}, {verdict})."
        )
    if n < 100:
        said.append(
            f"With {n} pairs any such number is a hint, not a result: the quickstart shows that everything works."
        )
    return "\n".join(said)


def _words_on_accuracy(share: float, n: int) -> str:
    low, high = wilson(share, n)
    if low > 0.5:
        verdict = "above chance"
    elif high < 0.5:
        verdict = "below chance"
    else:
        verdict = "chance, 0.5, lies inside"
    return (
        f"Accuracy of the implicit reward after training: {share:.3f}, n = {n}, standard error "
        f"{standard_error(share, n):.3f},\n95 % interval {low:.3f} to {high:.3f} ({verdict}). Before training it is "
        f"0.5 by definition:\nthe model is its own reference, so every pair is a tie and counts one half."
    )


def _prompts(run_dir: Path, count: int = 4) -> list[str]:
    """Return single-turn user messages from the run's held-out pairs, or, where they are gone, three of our own."""
    try:
        recipe = _read(run_dir / "ledpo_run.json")["recipe"]
        rows = _read(Path(recipe["dataset_dir"]) / f"{recipe['eval_dataset']}.json")
        turns = [row["conversations"] for row in rows]
        return [talk[0]["value"] for talk in turns if len(talk) == 1][:count] or list(OWN_PROMPTS)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return list(OWN_PROMPTS)


def _betas(run_dir: Path) -> str:
    try:
        from ledpo_plugin.modeling.inference import beta_of_prompts

        rows = beta_of_prompts(run_dir, _prompts(run_dir))
    except Exception as error:  # the report on a finished run must not fail for its last, optional part
        return f"Beta per prompt is not available: {type(error).__name__}: {error}"
    lines = ["Beta of some held-out prompts (`ledpo beta` prints it for yours):"]
    for row in rows:
        prompt = " ".join(row["prompt"].split())
        lines.append(f"  {row['beta']:.4f}  {prompt if len(prompt) <= 90 else prompt[:89] + '…'}")
    return "\n".join(lines)


def _files(run_dir: Path) -> str:
    plots = ", ".join(path.name for path in sorted(run_dir.glob("*.png"))) or "none (plot_loss is off)"
    adapter = run_dir / "adapter_model.safetensors"
    weights = f"Adapter: {adapter}\n" if adapter.is_file() else ""
    return f"{weights}Plots:   {plots} in {run_dir}"
