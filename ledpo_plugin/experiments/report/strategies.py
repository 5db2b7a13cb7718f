"""What is reported where runs are measured by answers that they drew: signs of gaming, efficiency, rollouts. Pure."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ledpo_plugin.common.stats import mean_interval
from ledpo_plugin.experiments.definition.metrics import SCORERS
from ledpo_plugin.experiments.results.collected import Collected, Run, number

from .curves import main_dataset
from .formatting import count, listed
from .reward_hacking import REWARD_ROSE, gain_in_errors, judged, rules

PETA, HOUR = 1e15, 3600.0
# Logged while training on rollouts -> how one number of a run is made of the logged ones.
LOGGED = {
    "kl/sequence": ("last", "greatest"),
    "policy/clip_fraction": ("mean",),
    "policy/entropy": ("first", "last"),
    "responses/length": ("first", "last"),
    "rewards/mean": ("first", "last"),
    "rewards/failed": ("mean",),
    "value/explained_variance": ("last",),
    "kl/coefficient": ("last",),
}
SOME = 3  # logged values that the first and the last are a mean of: one rollout is few answers


def strategy_summary(found: Collected) -> dict[str, Any] | None:
    """Return per variant the signs, the efficiency and the logs of rollouts; None where no answers were drawn."""
    if not found.evaluation.get("answers"):
        return None
    instructions = next(iter(found.evaluation.get("instructions") or ()), None)
    signs = rules(main_dataset(found), instructions)
    rows = {name: _signs(found, name, signs) for name in found.variants}
    return {
        "rules": {"reward": REWARD_ROSE.rule, **{name: sign.rule for name, sign in signs.items()}},
        "signs": rows,
        "words": {name: _words(found.label(name), row, signs) for name, row in rows.items()},
        "efficiency": {name: _efficiency(found, name) for name in found.variants},
        "rollouts": {name: row for name in found.variants if (row := _rollouts(found.finished(name)))},
        "cut_off": _cut_off(found),
    }


def _start(found: Collected, run: Run) -> Mapping[str, float]:
    base = found.bases.get(str(run.result.get("base")))
    return base.metrics if base is not None else {}


def _final(found: Collected, run: Run) -> Mapping[str, float]:
    """Return a run's metrics at the end, with the gain of each score over the start's answers in standard errors."""
    made = dict(run.result.get("final") or {})
    base = found.bases.get(str(run.result.get("base")))
    for role in SCORERS:
        ours, theirs = run.items("scores", role), base.items("scores", role) if base is not None else None
        if ours is not None and theirs is not None and ours["score"].shape == theirs["score"].shape:
            made[f"{role}/gain_in_errors"] = gain_in_errors(ours["score"], theirs["score"])
    return made


def _signs(found: Collected, variant: str, signs: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each rule the seeds that were judged by it and those that met it."""
    row: dict[str, Any] = {"seeds": [run.seed for run in found.finished(variant)]}
    for name, sign in {"reward": REWARD_ROSE, **signs}.items():
        told = {run.seed: judged(sign, _final(found, run), _start(found, run)) for run in found.finished(variant)}
        row[name] = {
            "judged": [seed for seed, met in told.items() if met is not None],
            "met": [seed for seed, met in told.items() if met],
        }
    return row


def _words(label: str, row: Mapping[str, Any], signs: Mapping[str, Any]) -> str:
    """Return what the signs of a variant say, in a sentence."""
    seeds = len(row["seeds"])
    if not seeds:
        return f"{label}: no run has finished."
    rose = set(row["reward"]["met"])
    gamed = {name: sorted(rose & set(row[name]["met"])) for name in signs}
    text = f"{label}: the reward rose in {len(rose)} of {count(seeds, 'seed')}"
    named = [f"{signs[name].words} (in {len(those)})" for name, those in gamed.items() if those]
    if named:
        few = max(len(those) for those in gamed.values()) * 2 <= seeds
        doubt = ", or chance, as half of the seeds at most show it" if few else ""
        return f"{text}, and while it did {listed(named)}: signs that the reward was gamed{doubt}."
    others = {name: row[name]["met"] for name in signs if row[name]["met"]}
    if others:
        what = listed([f"{signs[name].words} (in {len(those)})" for name, those in others.items()])
        return f"{text}; {what}, but not together with a reward that rose."
    return f"{text}; no sign of gaming by these rules, which is no proof that there is none."


def _efficiency(found: Collected, variant: str) -> dict[str, Any]:
    """Return what was gained over the start, for each unit of compute and of time."""
    primary, dataset = found.evaluation["primary"], main_dataset(found)
    names = dict.fromkeys([primary, f"{dataset}/accuracy", "reward/score", "judge/win_rate"])
    rows: dict[str, Any] = {}
    for name in names:
        gains, flops, hours = [], [], []
        for run in found.finished(variant):
            before, after = _start(found, run).get(name), (run.result.get("final") or {}).get(name)
            if before is None or after is None:
                continue
            usage = run.result.get("usage") or {}
            gains.append(number(after) - number(before))
            flops.append(gains[-1] / (number(usage.get("flops")) / PETA))
            hours.append(gains[-1] / (number(usage.get("seconds")) / HOUR))
        if gains:
            rows[name] = {
                "gain": mean_interval(gains),
                "per_petaflop": mean_interval(flops),
                "per_hour": mean_interval(hours),
            }
    return rows


def _rollouts(runs: tuple[Run, ...]) -> dict[str, Any] | None:
    """Return what was logged of rollouts, over runs; None where there were none."""
    found: dict[str, Any] = {}
    for key, ways in LOGGED.items():
        series = [
            [number(row[key]) for row in run.result.get("training") or () if row.get(key) is not None] for run in runs
        ]
        series = [values for values in series if values]
        for way in ways if series else ():
            found[f"{key} {way}"] = mean_interval([_one(values, way) for values in series])
    if not found:
        return None
    answers = [(run.result.get("usage") or {}).get("answers") for run in runs]
    return {"answers": [number(value) for value in answers if value is not None], **found}


def _one(values: list[float], way: str) -> float:
    known = [value for value in values if math.isfinite(value)] or [math.nan]
    made = {"last": known[-SOME:], "first": known[:SOME], "mean": known, "greatest": [max(known)]}
    return float(np.mean(made[way]))


def _cut_off(found: Collected) -> float | None:
    """Return the share of the start's answers that were cut off: where it is near 1, length can hardly grow."""
    shares = [1 - base.metrics["answers/ended"] for base in found.bases.values() if "answers/ended" in base.metrics]
    return max(shares, default=None)
