"""Numbers and verdicts in plain words. Pure; every text is plain, to be escaped where it is shown."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ledpo_plugin.experiments.definition.metrics import METRICS, OF_SCORES, SCORERS, Metric

NONE = "–"
SPACE = "\u00a0"  # at which no line breaks
ALPHA = 0.05


_LOGGED = Metric("as logged by the run", "value")
UNITS = MappingProxyType(
    {"steps": "optimizer steps", "examples": "examples", "tokens": "tokens", "flops": "floating point operations"}
)


def metric(name: str) -> Metric:
    """Return how `DATASET/metric` is read."""
    return METRICS.get(name.rpartition("/")[2], _LOGGED)


def term(name: str) -> str:
    """Return what `DATASET/metric` is called in the list of definitions."""
    whose, _, short = name.rpartition("/")
    return name if whose in SCORERS else short


def meaning(name: str) -> str:
    """Return the definition of `DATASET/metric`."""
    whose, _, short = name.rpartition("/")
    if whose in SCORERS and short in OF_SCORES:
        return f"{OF_SCORES[short].meaning} ({whose}: {SCORERS[whose]})"
    return metric(name).meaning


# ---- numbers


def decimals(half_width: float) -> int:
    """Return the decimals that show two significant digits of an interval's half width, 0 to 6."""
    return 3 if half_width <= 0 else min(6, max(0, 1 - math.floor(math.log10(half_width))))


def fixed(value: float | None, places: int, sign: bool = False) -> str:
    """Return a number with so many decimals and thousands separators, with a real minus."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:{'+' if sign else ''},.{places}f}"
    if not any(digit in text for digit in "123456789"):  # no sign of a rounded zero
        text = text.lstrip("+-")
    return text.replace("-", "−")


def significant(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number with so many significant digits; powers of ten where it is very small or large."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -4 <= power < 7:
        return fixed(value, max(0, digits - 1 - power), sign)
    mantissa = fixed(value / 10.0**power, digits - 1, sign)
    return f"{mantissa} × 10^{power}".replace("-", "−")


def estimate(found: Mapping[str, Any] | None, sign: bool = False) -> str:
    """Return `mean [low, high]`, the mean alone where there is no interval; digits follow the interval's width."""
    if not found or found["mean"] is None:
        return NONE
    if found["low"] is None:
        return significant(found["mean"], 3, sign)
    places = decimals((found["high"] - found["low"]) / 2)
    mean, low, high = (fixed(found[key], places, sign) for key in ("mean", "low", "high"))
    return f"{mean} [{low},{SPACE}{high}]"


def p_value(p: float | None) -> str:
    """Return a p value with two digits, or `< 0.001`."""
    if p is None:
        return "not tested"
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def whole(value: float | None) -> str:
    """Return a count with thousands separators."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


def spread(values: Sequence[float | None], show: Any = whole) -> str:
    """Return the one value of all seeds, or `low to high`."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return NONE
    low, high = show(min(known)), show(max(known))
    return low if low == high else f"{low}{SPACE}to{SPACE}{high}"


def flops(value: float | None) -> str:
    """Return operations with an SI prefix: 1.23 PFLOP."""
    if value is None or not math.isfinite(value):
        return NONE
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= factor:
            return f"{significant(value / factor)}{SPACE}{prefix}FLOP"
    return f"{whole(value)} FLOP"


def seconds(value: float | None) -> str:
    """Return a time as `8.3 s`, `4 min 10 s` or `2 h 5 min`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 100:
        return f"{significant(value, 2)}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60:,}{SPACE}h {minutes % 60}{SPACE}min"


def moment(text: str | None) -> str:
    """Return an ISO time of UTC as `2026-11-24 07:01 UTC`; another one as it is."""
    if not text:
        return NONE
    return f"{text[:10]}{SPACE}{text[11:16]}{SPACE}UTC" if text.endswith("+00:00") else text


def memory(value: float | None) -> str:
    """Return bytes as GB (10^9)."""
    return NONE if value is None or not math.isfinite(value) else f"{value / 1e9:.2f}{SPACE}GB"


def amount(value: float | None, unit: str) -> str:
    """Return an amount of budget with its unit."""
    return flops(value) if unit == "flops" else f"{whole(value)} {UNITS.get(unit, unit)}"


def seeds(n: int) -> str:
    """Return `1 seed` or `3 seeds`."""
    return count(n, "seed")


def count(n: int, thing: str) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{n:,} {thing}" + ("" if n == 1 else "s")


def listed(names: Sequence[str]) -> str:
    """Return `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


# ---- verdicts


def verdict(comparison: Mapping[str, Any]) -> str:
    """Return what a comparison showed: untested, none, equivalent, seeds_only, better, worse, higher or lower.

    A difference is shown only if the contrast's own test over seeds shows it and, where there is one, the interval over
    held-out items leaves zero out as well. How many other contrasts a report holds does not enter it.
    """
    p = comparison["difference"]["p"]
    if p is None:
        return "untested"
    if p >= ALPHA:
        return "equivalent" if (comparison.get("equivalence") or {}).get("shown") else "none"
    items = comparison.get("items") or {}
    if items.get("low") is not None and items["low"] <= 0 <= items["high"]:
        return "seeds_only"
    up = comparison["difference"]["mean"] > 0
    better = metric(comparison["metric"]).better
    if not better:
        return "higher" if up else "lower"
    return "better" if up == (better > 0) else "worse"


def verdict_words(comparison: Mapping[str, Any]) -> str:
    """Return a comparison's verdict as a sentence, with what could have been detected where nothing was shown."""
    found, n = comparison["verdict"], comparison["difference"]["n"]
    against = comparison["against_label"]
    tested = comparison.get("equivalence")
    if found == "untested":
        text = _untested(comparison["difference"], against)
    elif found == "none":
        text = f"No difference shown with {seeds(n)}; {detectable(comparison)}."
    elif found == "equivalent":
        text = f"Equivalent to {against} within {_margin(comparison)}, shown with {seeds(n)}; {detectable(comparison)}."
    elif found == "seeds_only":
        text = (
            f"Differs from {against} over {seeds(n)} on these held-out items; not shown for others; "
            f"{detectable(comparison)}."
        )
    else:
        text = f"{found.capitalize()} than {against}, shown with {seeds(n)}."
        if tested and tested["shown"]:
            text += f" The difference is within {_margin(comparison)} all the same."
    if tested and not tested["shown"]:
        text += f" Equivalence within {_margin(comparison)} is not shown."
    return text


def _untested(difference: Mapping[str, Any], against: str) -> str:
    n = difference["n"]
    if difference["why"] == "the same difference with every seed":
        if difference["mean"] == 0:
            return f"Not tested: the same as {against} with each of {seeds(n)}."
        return f"Not tested: the same difference with each of {seeds(n)}."
    return f"Not tested: {difference['why']}."


def _margin(comparison: Mapping[str, Any]) -> str:
    margin = significant(comparison["equivalence"]["margin"], 2)
    return f"the margin of {margin} ({metric(comparison['metric']).unit}) declared beforehand"


def detectable(comparison: Mapping[str, Any]) -> str:
    """Return what difference a comparison could have shown: `detectable with 80 % power: 0.14 (share of pairs)`."""
    found = comparison["detectable"]
    if found["value"] is None:
        return "what could have been detected is not known"
    unit = metric(comparison["metric"]).unit
    return f"detectable with {100 * found['power']:.0f} % power: {significant(found['value'], 2)} ({unit})"


def answer(summary: Mapping[str, Any]) -> str:
    """Return the one paragraph that answers an experiment's question, claiming no more than was tested."""
    primary = summary["primary"]
    values = {
        name: found[primary]
        for name, found in summary["metrics"].items()
        if found.get(primary) and found[primary]["mean"] is not None
    }
    if not values:
        return f"No run has finished with a value of {primary}, so there is nothing to answer with yet."
    sentences = [_best(summary, values)]
    by_verdict: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary["comparisons"]:
        if row["metric"] == primary and row["variant"] in values:
            by_verdict.setdefault(row["verdict"], []).append(row)
    shown = [row for key in ("better", "worse", "higher", "lower") for row in by_verdict.get(key, ())]
    for row in shown:
        by = estimate(row["difference"], sign=True)
        sentences.append(f"{row['label']} is {row['verdict']} than {row['against_label']} (difference {by}).")
    if "seeds_only" in by_verdict:
        names = listed([_with_detectable(row) for row in by_verdict["seeds_only"]])
        sentences.append(f"For {names} a difference is seen on these held-out items only, not shown for others.")
    for row in by_verdict.get("equivalent", ()):
        sentences.append(f"{row['label']} is equivalent to {row['against_label']} within {_margin(row)}.")
    if "none" in by_verdict:
        sentences += [_no_difference(rows) for rows in _by_against(by_verdict["none"])]
        sentences.append("That none is shown does not mean that there is none.")
    tested = [row for rows in by_verdict.values() for row in rows if row["verdict"] != "untested"]
    if len(tested) > 1:
        sentences.append(_by_chance(tested, shown))
    if "untested" in by_verdict:
        names = listed([f"{row['label']} ({row['difference']['why']})" for row in by_verdict["untested"]])
        sentences.append(f"Not tested: {names}.")
    if len(values) > 1:
        sentences.append(f"That the {_top_word(primary)} is better than the next one was not tested.")
    sentences.append("This holds for the model, data sets and budget below, and for no others.")
    return " ".join(sentences)


def _best(summary: Mapping[str, Any], values: Mapping[str, Mapping[str, Any]]) -> str:
    primary, labels = summary["primary"], summary["labels"]
    sign = -1 if metric(primary).better < 0 else 1
    top = max(sign * found["mean"] for found in values.values())
    first = [name for name, found in values.items() if sign * found["mean"] >= top - 1e-12 * abs(top)]
    if len(values) == 1:
        text = f"Only {labels[first[0]]} has finished runs: mean {primary} {estimate(values[first[0]])}"
    elif len(first) == len(values):
        text = f"All {len(values)} variants have the same mean {primary}, {estimate(values[first[0]])}"
    else:
        whom = listed([labels[name] for name in first])
        verb = "has" if len(first) == 1 else "share"
        text = f"{whom} {verb} the {_top_word(primary)} mean {primary} of {len(values)} variants"
        text += f", {estimate(values[first[0]])} over {seeds(values[first[0]]['n'])}"
        baseline = summary["baseline"]
        if baseline in values and baseline not in first:
            text += f"; the baseline {labels[baseline]} has {estimate(values[baseline])}"
    bases = [base["metrics"][primary] for base in summary["bases"] if primary in base["metrics"]]
    if bases:
        text += f"; before training it was {spread(bases, significant)}"
    return text + "."


def _top_word(name: str) -> str:
    return "lowest" if metric(name).better < 0 else "highest"


def _by_against(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["against"], []).append(row)
    return list(groups.values())


def _no_difference(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({row["difference"]["n"] for row in rows})
    many = seeds(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    names = listed([_with_detectable(row) for row in rows])
    power, unit = rows[0]["detectable"]["power"], metric(rows[0]["metric"]).unit
    return (
        f"No difference from {rows[0]['against_label']} is shown with {many} for {names}; in brackets, what difference "
        f"({unit}) was detectable with {100 * power:.0f} % power."
    )


def _with_detectable(row: Mapping[str, Any]) -> str:
    value = row["detectable"]["value"]
    return f"{row['label']} [{'not known' if value is None else significant(value, 2)}]"


def _by_chance(tested: Sequence[Mapping[str, Any]], shown: Sequence[Mapping[str, Any]]) -> str:
    """Return what is to be expected of so many contrasts, each tested by itself."""
    expected = significant(ALPHA * len(tested), 2)
    text = (
        f"Each of {len(tested)} contrasts was tested by itself at 5 %: by chance {expected} would be shown if nothing"
    )
    text += " differed."
    if not shown:
        return text
    left = [row["label"] for row in shown if row["p_holm"] is not None and row["p_holm"] < ALPHA]
    whom, stays = str(len(left)) if left else "none", "stay" if len(left) > 1 else "stays"
    whom += f" ({listed(left)})" if left else ""
    return f"{text} Corrected for all of them together (Holm), {whom} of those shown {stays} below 5 %."


def reuse_words(row: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return a sentence on the runs that stand in another report as well, and on their verdict there."""
    by_variant: dict[str, list[int]] = {}
    for run in row["runs"]:
        by_variant.setdefault(run["variant"], []).append(run["seed"])
    names = listed([f"{summary['labels'][name]} (seed {', '.join(map(str, own))})" for name, own in by_variant.items()])
    text = (
        f"Reused: the runs of {names} stand in the report of {row['experiment']} (profile {row['profile']}), too, or "
        "were run there again with the same numbers. What both show is one finding, not two."
    )
    here = {(one["variant"], one["against"]): one for one in summary["comparisons"] if "verdict" in one}
    for one in row["contrasts"]:
        own = here[one["variant"], one["against"]]
        if own["verdict"] != one["verdict"]:
            text += (
                f" Of {own['label']} against {own['against_label']} that report says {one['verdict']!r}, as an earlier "
                f"version did; what the same runs show is {own['verdict']!r}. Make it anew: ledpo report."
            )
    return text
