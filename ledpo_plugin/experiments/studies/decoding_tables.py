"""From answers, likelihoods and verdicts to what each decoding is worth, overall and by kind of prompt."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval_harness.agreement.comparisons import gains
from eval_harness.agreement.figures import Figure, of_mean
from eval_harness.agreement.length_bias import length_bias
from eval_harness.agreement.pairwise import position_bias, win_rate
from eval_harness.agreement.selection import choose
from eval_harness.agreement.selection import judge as judge_choices
from eval_harness.agreement.tables import figure_row, length_rows, position_rows, win_rate_rows
from eval_harness.agreement.verdicts import ScoreTable, Verdict
from eval_harness.text import distinct, numeric_accuracy, repetition, self_bleu
from ledpo_plugin.common.files import read_json

from . import kept
from .judged import read_verdicts
from .outputs import DATA, SCORES, per_token, read_outputs, read_prompts
from .parts import compared, key_of, known_of

ALL = "all prompts"
TERCILES = ("low", "middle", "high")
# Metric -> what it is, and whether more of it is better (1), worse (-1) or neither (0).
METRICS: Mapping[str, tuple[str, int]] = {
    "win rate": (
        "what an answer gains against the baseline decoding's of the same model, by the first judge; 0.5: equal",
        1,
    ),
    "implicit reward": (
        "beta(x) times the log-ratio of the answer, by the model named under reward, to the untrained",
        1,
    ),
    "accuracy": ("share of answers whose last number is the right one; of tasks that have one", 1),
    "log-probability": (
        "of the answer per token, by the model itself at temperature 1 (nats): typical answers have more",
        0,
    ),
    "entropy": ("of the model's next token, mean over the answer (nats)", 0),
    "distinct-2": ("distinct bigrams of tokens as a share of all, over the answers to all prompts", 1),
    "self-BLEU": ("BLEU of an answer against the other samples for the same prompt, 0 to 1: less is more diverse", -1),
    "repetition": ("share of 4-grams of an answer that occurred in it before", -1),
    "length": ("tokens of the answer", 0),
    "ended": ("share of answers that end by themselves", 0),
}
OF_SETS = ("distinct-2",)  # of all answers together, so that there is no mean over prompts


def summary(job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Return every figure of the study.

    Args:
        job: `outputs` (name of answers -> folder), `parts`, `models`, `decodings`, `baseline`, `against`, `speeds`.
        log: called with sentences.
    """
    prompts = read_prompts(job)
    verdicts = [own for name, place in job["parts"].items() if name.startswith("judge ")
                if (own := read_verdicts(Path(place)))]  # fmt: skip
    values = _values(job, prompts, verdicts[0] if verdicts else [])
    kinds = _kinds(job, prompts)
    log(f"{len(values)} sets of settings, {len(prompts)} prompts, {len(verdicts)} judges")
    return {
        "models": known_of(job["models"]),
        "decodings": job["decodings"],
        "baseline": job["baseline"],
        "left_out": job["left_out"],
        "same": _same(job),
        "metrics": {name: {"meaning": text, "better": better} for name, (text, better) in METRICS.items()},
        "n": len(prompts),
        "kinds": {name: {group: len(places) for group, places in groups.items()} for name, groups in kinds.items()},
        "settings": [
            {"model": model, "decoding": name, "speed": _speed(job, model, name), "figures": _figures(own), "by": {
                kind: {group: _figures(own, places) for group, places in groups.items()}
                for kind, groups in kinds.items()}}
            for (model, name), own in values.items()
        ],
        "best": _best(job, values, kinds),
        "judges": [_of_judge(job, own) for own in verdicts],
        "trained": _trained(job, values, verdicts),
        "per_item": {
            "how": kept.HOW,
            "items": [kept.item(row["prompt"]) for row in prompts],
            "values": {
                model: {name: kept.columns({metric: own for metric, own in of.items() if metric not in OF_SETS})
                        for (who, name), of in values.items() if who == model}
                for model in dict.fromkeys(who for who, _ in values)
            },
            "groups": kinds,
            "verdicts": {own[0].method: kept.verdicts(own) for own in verdicts},
            "lengths": kept.scores(_lengths(job, verdicts)),
        },
    }  # fmt: skip


def _same(job: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Return, per model, the settings whose first samples are the same for every prompt: what they filter is alike."""
    found: dict[str, list[list[str]]] = {}
    for model in (one["model"] for one in job["models"]):
        groups: dict[str, list[str]] = {}
        for name in job["decodings"]:
            place = job["outputs"].get(key_of(model, name, 0))
            if place:
                groups.setdefault(str([row["ids"] for row in read_outputs(Path(place))]), []).append(name)
        found[model] = [names for names in groups.values() if len(names) > 1]
    return found


# ---- values of each prompt


def _values(
    job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict]
) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Return (model, decoding) -> metric -> value of each prompt [N] (mean over samples), nan where there is none."""
    rewards = next((read_json(Path(place) / SCORES) for name, place in job["parts"].items()
                    if name.startswith("likelihoods ")), None) or {}  # fmt: skip
    won = gains(verdicts, verdicts[0].method) if verdicts else {}
    found = {}
    for model in (one["model"] for one in job["models"]):
        for name in job["decodings"]:
            keys = [key for key in job["outputs"] if key.rpartition(".")[0] == f"{model}.{name}"]
            if keys:
                samples = [read_outputs(Path(job["outputs"][key])) for key in keys]
                own = [read_json(Path(job["outputs"][key]) / SCORES)["columns"] for key in keys]
                scored = [rewards.get(key) for key in keys]
                base = key_of(model, job["baseline"], 0)
                found[model, name] = _of_samples(samples, own, scored, prompts) | {
                    "win rate": _gained(won, base, key_of(model, name, 0), prompts)
                }
    return found


def _of_samples(
    samples: Sequence[Sequence[Mapping[str, Any]]],
    own: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any] | None],
    prompts: Sequence[Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    count = len(prompts)

    def mean(of_sample: Callable[[int], Sequence[Any]]) -> np.ndarray:
        columns = [[math.nan if value is None else float(value) for value in of_sample(i)] for i in range(len(samples))]
        return np.mean(columns, axis=0)

    sets = [distinct([row["ids"] for row in rows], 2) for rows in samples]
    several = len(samples) > 1
    return {
        "implicit reward": mean(lambda i: scored[i]["rewards"]) if all(scored) else np.full(count, math.nan),
        "accuracy": mean(lambda i: [
            numeric_accuracy(row["output"], prompt["answer"]) if prompt.get("answer") else None
            for row, prompt in zip(samples[i], prompts, strict=True)
        ]),
        "log-probability": mean(lambda i: per_token(own[i], "logps")),
        "entropy": mean(lambda i: own[i]["entropy"]),
        "distinct-2": np.full(count, math.nan if None in sets else float(np.mean(sets))),
        "self-BLEU": np.asarray([
            self_bleu([rows[place]["output"] for rows in samples]) if several else math.nan for place in range(count)
        ], dtype=float),
        "repetition": mean(lambda i: [repetition(row["ids"], 4) for row in samples[i]]),
        "length": mean(lambda i: [row["tokens"] for row in samples[i]]),
        "ended": mean(lambda i: [row["ended"] for row in samples[i]]),
    }  # fmt: skip


def _gained(won: Mapping[Any, float], base: str, own: str, prompts: Sequence[Mapping[str, Any]]) -> np.ndarray:
    if own == base:
        return np.full(len(prompts), 0.5 if won else math.nan)
    first, second = sorted((base, own))
    found = [won.get((row["prompt"].strip(), first, second)) for row in prompts]
    return np.asarray([math.nan if g is None else (g if first == own else 1 - g) for g in found], dtype=float)


def _figures(values: Mapping[str, np.ndarray], places: Sequence[int] | None = None) -> list[dict[str, Any]]:
    rows = []
    for name, column in values.items():
        if name in OF_SETS:
            one = (
                Figure(len(column), float(column[0])) if math.isfinite(column[0]) else Figure(0, None, why="no bigram")
            )
            rows += [figure_row(name, one)] if places is None else []
            continue
        own = column if places is None else column[list(places)]
        own = own[np.isfinite(own)]
        rows.append(figure_row(name, of_mean(own) if len(own) else Figure(0, None, why=f"no {name} here")))
    return rows


def _speed(job: Mapping[str, Any], model: str, name: str) -> dict[str, float]:
    own = [row for key, row in job["speeds"].items() if key.rpartition(".")[0] == f"{model}.{name}"]
    seconds, tokens = (math.fsum(row[key] for row in own) for key in ("seconds", "tokens"))
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds if seconds else 0.0}


# ---- kinds of prompts


def _kinds(job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Return kind -> group -> places of prompts: by task, by length, by difficulty where that is known."""
    tasks: dict[str, list[int]] = {}
    for place, row in enumerate(prompts):
        tasks.setdefault(row["task"], []).append(place)
    found = {"task": tasks, "length of the prompt": _terciles([len(row["prompt"]) for row in prompts])}
    scores = next((read_json(Path(place) / SCORES) for name, place in job["parts"].items()
                   if name.startswith("likelihoods ")), None) or {}  # fmt: skip
    if DATA in scores:
        hard = [None if value is None else -value for value in per_token(scores[DATA], "reference_logps")]
        found["difficulty"] = _terciles(hard)
    return found


def _terciles(values: Sequence[float | None]) -> dict[str, list[int]]:
    """Return low, middle, high -> places, of equal size up to one; places without a value are in none."""
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    parts = np.array_split(np.asarray([place for _, place in order], dtype=int), 3)
    return {name: sorted(map(int, part)) for name, part in zip(TERCILES, parts, strict=True) if len(part)}


# ---- conclusions


def _best(
    job: Mapping[str, Any], values: Mapping[tuple[str, str], Mapping[str, np.ndarray]], kinds: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return, per model, group of prompts and measure of quality, the decoding that half of the prompts choose, and
    which others the other half shows to be worse.

    Over all prompts there is one family of tests (every model, measure and setting), over kinds of prompts another.
    """
    found = []
    groups = {ALL: None} | {f"{kind}: {group}": places for kind, own in kinds.items()
                                      for group, places in own.items()}  # fmt: skip
    for model in (one["model"] for one in job["models"]):
        for group, places in groups.items():
            for metric in ("win rate", "implicit reward", "accuracy"):
                own = {name: of[metric] if places is None else of[metric][places]
                       for (who, name), of in values.items() if who == model}  # fmt: skip
                row = choose(own)
                if row:
                    found.append({"model": model, "group": group, "metric": metric, **row})
    whole = [row for row in found if row["group"] == ALL]
    judge_choices(whole)
    judge_choices([row for row in found if row["group"] != ALL])
    return found


def _of_judge(job: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    name = verdicts[0].method
    rates = []
    for base, own in compared(job):
        rates += win_rate_rows(win_rate(verdicts, name, own, base))
    return {
        "judge": name,
        "win_rates": rates,
        "position": position_rows(position_bias(verdicts, name)),
        "length": length_rows(length_bias(verdicts, name, _lengths(job, [verdicts]), draws=kept.LENGTH_DRAWS)),
    }


def _lengths(job: Mapping[str, Any], verdicts: Sequence[Sequence[Verdict]]) -> ScoreTable:
    """Return the lengths in characters of all answers that were judged."""
    scores: dict[str, dict[str, float]] = {}
    for key in sorted({model for own in verdicts for v in own for model in (v.model_1, v.model_2)}):
        for row in read_outputs(Path(job["outputs"][key])):
            scores.setdefault(row["instruction"].strip(), {})[key] = float(len(row["output"]))
    return ScoreTable("characters", scores)


def _trained(
    job: Mapping[str, Any],
    values: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    verdicts: Sequence[Sequence[Verdict]],
) -> list[dict[str, Any]]:
    """Return how each variant differs from the baseline variant under the same decoding and seed."""
    found = []
    firsts = [model for model in job["models"] if model["variant"] == job["against"]]
    for first in firsts:
        for second in job["models"]:
            if second["variant"] == job["against"] or second["seed"] != first["seed"]:
                continue
            for name in job["decodings"]:
                pair = [values.get((model["model"], name)) for model in (second, first)]
                if None in pair:
                    continue
                row: dict[str, Any] = {"model": second["model"], "against": first["model"], "decoding": name}
                row["differences"] = [
                    figure_row(metric, of_mean(apart) if len(apart) else Figure(0, None, why=f"no {metric} here"))
                    for metric in ("implicit reward", "accuracy", "log-probability", "repetition", "length")
                    for apart in [_finite(pair[0][metric] - pair[1][metric])]
                ]
                keys = [key_of(model["model"], name, 0) for model in (second, first)]
                row["win_rates"] = [
                    win_rate_rows(win_rate(own, own[0].method, *keys))
                    for own in verdicts
                    if any({v.model_1, v.model_2} == set(keys) for v in own)
                ]
                found.append(row)
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
