"""A prepared folder, run by lm-eval in this process; its results as plain values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_harness.generation.loading import Loaded
from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.common.lookup import unknown_name

from .preparing import PROVENANCE, model_arguments, stock_tokenizer

RESULTS = "results.json"


def evaluate(
    loaded: Loaded, folder: Path, tasks: Sequence[str] | None = None, *, batch_size: int = 8, limit: int | None = None
) -> dict[str, Any]:
    """Run tasks of a prepared folder on a model; return rows of task, metric, value, standard error and n.

    Args:
        loaded: the model; the one that the folder was prepared with.
        folder: a prepared folder.
        tasks: names; left out: all that were prepared.
        batch_size: requests at a time.
        limit: documents a task at most.

    Raises:
        ValueError: the folder is none, was prepared for another model, or a task is unknown.
    """
    made = read_json(folder / PROVENANCE)
    if not isinstance(made, dict):
        raise ValueError(f"{folder} was not prepared: it holds no {PROVENANCE}. Prepare it with `ledpo eval tasks`.")
    if made["model_identity"] != loaded.identity:
        raise ValueError(
            f"{folder} was prepared for {made['model']} ({made['model_identity']}), and this is {loaded.name} "
            f"({loaded.identity}): tokens, references and betas would not fit. Prepare a folder for it."
        )
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = list(tasks or made["tasks"])
    ours = [*made["tasks"], *made["groups"]]
    # To read lm-eval's own tasks takes seconds, so that is done where they are asked for.
    manager = TaskManager(include_path=str(folder), include_defaults=any(name not in ours for name in tasks))
    wrong = [name for name in tasks if name not in manager.all_tasks]
    if wrong:
        own = [name for name in manager.all_tasks if name.startswith("ledpo_")]
        raise ValueError(f"{unknown_name('task', wrong[0], own)} And all of lm-eval's own.")
    # The weights are there: another copy of the model would take its memory once more.
    model = HFLM(
        pretrained=loaded.model, tokenizer=stock_tokenizer(loaded), batch_size=batch_size, backend="causal",
        add_bos_token=False,
    )  # fmt: skip
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        apply_chat_template=made["form"] == "chat",
        log_samples=False,
        bootstrap_iters=100,  # standard errors of means are worked out, not drawn
        verbosity="ERROR",
    )
    result = {"provenance": made, "model_args": model_arguments(loaded), "rows": _rows(found)}
    write_json(folder / RESULTS, result)
    return result


def _rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            name, _, kind = key.partition(",")
            if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{name}_stderr,{kind}")
            counts = found.get("n-samples", {}).get(task) or {}
            rows.append(
                {
                    "task": task,
                    "version": found.get("versions", {}).get(task),
                    "metric": name,
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None,
                    "n": counts.get("effective"),
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as text for a terminal."""
    lines = [f"{'task':<36} {'metric':<20} {'value':>10} {'SE':>8} {'n':>6}"]
    for row in rows:
        error = "" if row["standard_error"] is None else f"{row['standard_error']:.4f}"
        lines.append(f"{row['task']:<36} {row['metric']:<20} {row['value']:>10.4f} {error:>8} {row['n'] or '':>6}")
    return "\n".join(lines)
