"""From answers, likelihoods and verdicts to one table of scores per method, and what the methods have in common."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval_harness.agreement.agreement import Ratings, repeat_consistency
from eval_harness.agreement.comparing import against_labels, compare
from eval_harness.agreement.comparisons import gain_table, labels, majority
from eval_harness.agreement.figures import Figure, of_mean
from eval_harness.agreement.length_bias import length_bias
from eval_harness.agreement.pairwise import debiased_win_rate, position_bias
from eval_harness.agreement.reading import ANNOTATION
from eval_harness.agreement.reading import read_verdicts as read_people
from eval_harness.agreement.tables import figure_row, length_rows, position_rows, win_rate_rows
from eval_harness.agreement.verdicts import ScoreTable, Verdict
from eval_harness.text import repetition
from ledpo_plugin.common.files import read_json
from ledpo_plugin.experiments.measuring.columns import OF_EACH_PAIR
from ledpo_plugin.experiments.results.collected import newest_columns

from . import kept
from .judged import read_verdicts
from .outputs import SCORES, per_token, read_outputs, read_prompts
from .parts import START, digest, known_of

PEOPLE = "people"
LABEL = "the data's label"
PAIR = ("chosen", "rejected")
# Method -> what it says of a model, and whether more is better. Judges and people are added by their names.
MEANINGS: Mapping[str, tuple[str, bool]] = {
    "margin": ("beta-free margin of the held-out pair on the same prompt (nats)", True),
    "pair accuracy": ("whether that margin is positive; a tie counts one half", True),
    "pair log-probability": ("log-probability per token of the pair's chosen answer (nats); -1 times its NLL", True),
    "answer log-probability": ("log-probability per token of the model's answer by the untrained model (nats)", True),
    "implicit reward": ("beta(x) times the log-ratio of the answer by a trained model to the untrained one", True),
    "length": ("tokens of the answer", True),
    "repetition": ("share of 4-grams of the answer that occurred in it before", False),
}
OF_PAIRS = {"margin": "margin", "pair accuracy": "accuracy"}
OF_START = {"margin": 0.0, "accuracy": 0.5}  # of the untrained model against itself


def agreement(job: Mapping[str, Any], log: Any) -> dict[str, Any]:
    """Return how all methods of a study compare.

    Args:
        job: `outputs` (model -> folder), `parts` (name -> folder of a judge or of likelihoods), `human` (files),
            `measures` (model -> folder), `measured` (data sets), `reference`, `prompts_file`.
        log: called with sentences.
    """
    prompts = read_prompts(job)
    outputs = {name: read_outputs(Path(place)) for name, place in job["outputs"].items()}
    verdicts = {
        name.removeprefix("judge "): read_verdicts(Path(place))
        for name, place in job["parts"].items()
        if name.startswith("judge ")
    }
    verdicts = {own[0].method: own for own in verdicts.values() if own}
    people = [verdict for path in job["human"] for verdict in _people(path, prompts, outputs)]
    of_models = {name: [v for v in own if START in (v.model_1, v.model_2)] for name, own in verdicts.items()}
    if people:
        annotators = sorted({verdict.method for verdict in people})
        of_models[PEOPLE] = majority(people, annotators, PEOPLE)
        of_models |= {name: [v for v in people if v.method == name] for name in annotators if len(annotators) > 1}
    tables = [gain_table(own, name, against=START) for name, own in of_models.items() if own]
    tables += _likelihoods(job, outputs, prompts)
    tables += _of_texts(outputs, prompts)
    tables += _of_measures(job, prompts)
    reference = job["reference"] or (PEOPLE if people else next(iter(of_models)))
    log(f"{len(tables)} methods, {len(outputs)} models, {len(prompts)} prompts")
    lengths = _lengths(outputs)
    compared = compare(tables, reference=reference)
    # Prompts may be somebody's data, and results are shown around.
    compared["items"] = [digest(item) for item in compared["items"]]
    return {
        "models": known_of(job["models"]),
        "prompts": len(prompts),
        "tasks": _counted(prompts),
        "methods": {table.method: _meaning(table.method, of_models) for table in tables},
        "people": sorted({verdict.method for verdict in people}),
        "compared": compared,
        "judges": {name: _of_judge(name, own, lengths) for name, own in of_models.items() if own},
        "labels": _labels(job, verdicts, prompts),
        "worse": _worse(job, tables),
        "per_item": _per_item(job, tables, {**of_models, **verdicts}, lengths),
    }


def _per_item(
    job: Mapping[str, Any],
    tables: Sequence[ScoreTable],
    verdicts: Mapping[str, Sequence[Verdict]],
    lengths: ScoreTable,
) -> dict[str, Any]:
    """Return what every figure can be worked out from again; see `kept`."""
    prompts = read_prompts(job)
    rated, of_pairs = _ratings(job, verdicts, prompts)
    return {
        "how": kept.HOW,
        "scores": {table.method: kept.scores(table) for table in tables},
        "verdicts": {name: kept.verdicts(own) for name, own in verdicts.items() if own},
        "labels": kept.ratings(rated),
        "lengths": {"of models": kept.scores(lengths), "of pairs": kept.scores(of_pairs)},
    }


def _counted(prompts: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    tasks = [row["task"] for row in prompts]
    return {task: tasks.count(task) for task in dict.fromkeys(tasks)}


def _meaning(name: str, judges: Mapping[str, Any]) -> dict[str, Any]:
    if name in judges:
        who = "people" if name == PEOPLE else name
        text = f"what the model's answer gains against the untrained model's by {who}, both orders together (0 to 1)"
        return {"meaning": text, "higher_is_better": True, "judge": True}
    text, better = MEANINGS[name]
    return {"meaning": text, "higher_is_better": better, "judge": False}


def _people(path: str, prompts: Sequence[Mapping[str, Any]], outputs: Mapping[str, Any]) -> list[Verdict]:
    """Return people's verdicts from an export of `ledpo eval annotate`; other prompts or models are refused."""
    known = {row["prompt"].strip() for row in prompts}
    return read_people(path, columns={**ANNOTATION, "item": "prompt"}, items=known, models=list(outputs))


# ---- tables of scores


def _table(name: str, values: Mapping[str, Sequence[float | None]], prompts: Sequence[Mapping[str, Any]]) -> ScoreTable:
    """Return model -> column as a table; None is a gap."""
    scores: dict[str, dict[str, float]] = {}
    missing = {}
    for place, row in enumerate(prompts):
        item = row["prompt"].strip()
        for model, column in values.items():
            if column[place] is None:
                missing[item, model] = "nothing to measure"
            else:
                scores.setdefault(item, {})[model] = float(column[place])
    return ScoreTable(name, scores, MEANINGS[name][1], missing)


def _of_texts(outputs: Mapping[str, Sequence[Mapping[str, Any]]], prompts: Sequence[Any]) -> list[ScoreTable]:
    lengths = {name: [row["tokens"] for row in rows] for name, rows in outputs.items()}
    repeated = {name: [repetition(row["ids"], 4) for row in rows] for name, rows in outputs.items()}
    return [_table("length", lengths, prompts), _table("repetition", repeated, prompts)]


def _likelihoods(job: Mapping[str, Any], outputs: Mapping[str, Any], prompts: Sequence[Any]) -> list[ScoreTable]:
    place = next((folder for name, folder in job["parts"].items() if name.startswith("likelihoods ")), None)
    if place is None:
        return []
    found = read_json(Path(place) / SCORES)
    likely = {name: per_token(columns, "reference_logps") for name, columns in found.items() if name in outputs}
    rewards = {name: columns["rewards"] for name, columns in found.items() if name in outputs}
    return [_table("answer log-probability", likely, prompts), _table("implicit reward", rewards, prompts)]


def _of_measures(job: Mapping[str, Any], prompts: Sequence[Mapping[str, Any]]) -> list[ScoreTable]:
    """Return what was measured of the held-out pairs on the same prompts; the untrained model is its own reference."""
    found: dict[str, dict[str, list[float | None]]] = {name: {} for name in (*OF_PAIRS, "pair log-probability")}
    for model, folder in job["measures"].items():
        columns = {name: newest_columns(Path(folder), f"pairs/{name}.json") for name in job["measured"]}
        rows = [_of_row(columns.get(row["dataset"]), row) for row in prompts]
        for name, short in OF_PAIRS.items():
            found[name][model] = [None if own is None else float(OF_EACH_PAIR[short](own)[0]) for own in rows]
            found[name][START] = [None if own is None else OF_START[short] for own in rows]
        for who, key in ((model, "chosen_logps"), (START, "reference_chosen_logps")):
            found["pair log-probability"][who] = [
                None if own is None else float(own[key][0] / own["chosen_length"][0]) for own in rows
            ]
    return [
        _table(name, values, prompts)
        for name, values in found.items()
        if any(value is not None for column in values.values() for value in column)
    ]


def _of_row(columns: Mapping[str, np.ndarray] | None, row: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Return what was measured of a prompt's pair, each `[1]`; None where its place in the columns is not known."""
    # Rows that could not be used were left out of the measurement: then places do not tell the prompt.
    if columns is None or len(columns["margin"]) != row["of"]:
        return None
    return {key: values[[row["row"]]] for key, values in columns.items()}


def _worse(job: Mapping[str, Any], tables: Sequence[ScoreTable]) -> dict[str, Any] | None:
    """Return by how much each method puts a variant that is known to be worse below the other trained ones.

    The difference of means over models, per prompt, turned so that above 0 the method sees it; with its interval over
    prompts.
    """
    if not job["worse"]:
        return None
    bad = [model["model"] for model in job["models"] if model["variant"] == job["worse"]]
    others = [model["model"] for model in job["models"] if model["variant"] not in (job["worse"], START)]
    rows = []
    for table in tables:
        models = [name for name in (*others, *bad) if name in table.models]
        items = table.complete_items(models)
        if not items or not set(bad) & set(models) or not set(others) & set(models):
            rows.append(figure_row(table.method, Figure(0, None, why="no prompt with a score of all models")))
            continue
        values = table.better(items, models)
        count = sum(name in others for name in models)
        rows.append(figure_row(table.method, of_mean(values[:, :count].mean(axis=1) - values[:, count:].mean(axis=1))))
    return {"variant": job["worse"], "rows": rows}


# ---- judges


def _lengths(outputs: Mapping[str, Sequence[Mapping[str, Any]]]) -> ScoreTable:
    scores: dict[str, dict[str, float]] = {}
    for model, rows in outputs.items():
        for row in rows:
            scores.setdefault(row["instruction"].strip(), {})[model] = float(len(row["output"]))
    return ScoreTable("characters", scores)


def _of_judge(name: str, verdicts: Sequence[Verdict], lengths: ScoreTable) -> dict[str, Any]:
    models = sorted({model for verdict in verdicts for model in (verdict.model_1, verdict.model_2)} - {START})
    rates = [row for model in models for row in win_rate_rows(debiased_win_rate(verdicts, name, model, START))]
    return {
        "win_rates": rates,
        "position": position_rows(position_bias(verdicts, name)),
        "length": length_rows(length_bias(verdicts, name, lengths, draws=kept.LENGTH_DRAWS)),
        "repeat": figure_row("repeat_consistency", repeat_consistency(verdicts, name)),
    }


# ---- pairs whose better answer is known


def _labels(
    job: Mapping[str, Any], verdicts: Mapping[str, Sequence[Verdict]], prompts: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return how far judges and models agree with the labels of the data's own pairs; None if that was not asked."""
    own = {name: [v for v in every if {v.model_1, v.model_2} == set(PAIR)] for name, every in verdicts.items()}
    if not job["labels"] or not any(own.values()):
        return None
    ratings, lengths = _ratings(job, verdicts, prompts)
    found: dict[str, Any] = {"judges": {}, "n": len(ratings[LABEL])}
    for name, every in own.items():
        if every:
            found["judges"][name] = {
                "position": position_rows(position_bias(every, name)),
                "length": length_rows(length_bias(every, name, lengths, draws=kept.LENGTH_DRAWS)),
                "repeat": figure_row("repeat_consistency", repeat_consistency(every, name)),
            }
    return found | against_labels(ratings, LABEL)


def _ratings(
    job: Mapping[str, Any], verdicts: Mapping[str, Sequence[Verdict]], prompts: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Ratings], ScoreTable]:
    """Return which answer of the data's own pairs each judge and model prefers, and the answers' lengths."""
    pairs = [row for row in prompts if row.get("chosen") is not None and row.get("rejected") is not None]
    side = {row["prompt"].strip(): _side(row["prompt"]) for row in pairs}
    lengths = ScoreTable(
        "characters", {row["prompt"].strip(): {kind: float(len(row[kind])) for kind in PAIR} for row in pairs}
    )
    ratings: dict[str, Ratings] = {}
    own = {name: [v for v in every if {v.model_1, v.model_2} == set(PAIR)] for name, every in verdicts.items()}
    if not job["labels"] or not any(own.values()):
        return ratings, lengths
    ratings[LABEL] = {(item,): float(sign) for item, sign in side.items()}
    for name, every in own.items():
        if every:
            ratings[name] = {(key[0],): float(side[key[0]] * sign) for key, sign in labels(every, name).items()}
    ratings["the longer answer"] = {
        (row["prompt"].strip(),): float(
            side[row["prompt"].strip()] * np.sign(len(row["chosen"]) - len(row["rejected"]))
        )
        for row in pairs
    }
    return ratings | _of_margins(job, pairs, side), lengths


def _side(prompt: str) -> int:
    """Return 1 or -1, by the prompt: which answer counts as the first. Were it always the chosen one, chance would
    agree with the labels as often as any judge that says the same of every pair."""
    return 1 if hashlib.sha256(prompt.encode()).digest()[0] % 2 else -1


def _of_margins(
    job: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], side: Mapping[str, int]
) -> dict[str, Ratings]:
    """Return which answer each variant's first run prefers: by its margin, and the untrained model's by likelihood."""
    first = {model["variant"]: model["model"] for model in reversed(job["models"]) if model["model"] != START}
    found: dict[str, Ratings] = {}
    for variant, model in sorted(first.items()):
        rated, start = {}, {}
        columns = {name: newest_columns(Path(job["measures"][model]), f"pairs/{name}.json") for name in job["measured"]}
        for row in pairs:
            own = _of_row(columns.get(row["dataset"]), row)
            if own is not None:
                item = row["prompt"].strip()
                rated[(item,)] = float(side[item] * np.sign(own["margin"][0]))
                per = [own[f"reference_{kind}_logps"][0] / own[f"{kind}_length"][0] for kind in PAIR]
                start[(item,)] = float(side[item] * np.sign(per[0] - per[1]))
        if rated:
            found[f"margin of {variant}"] = rated
            found.setdefault("the likelier answer per token, untrained", start)
    return found
