"""The tables of a report, from the numbers of `results.json`. Cells are plain text."""

from collections.abc import Mapping, Sequence
from typing import Any

from ledpo_plugin.experiments.definition.metrics import OF_GENERATIONS, SCORERS
from ledpo_plugin.experiments.results.collected import Collected

from . import formatting
from .blocks import Table
from .formatting import NONE, SPACE


def setup_table(found: Collected) -> Table:
    """Return the variants with the values of the keys they change, and why."""
    rows = []
    for name in found.variants:
        against = found.compares_to(name)
        settings = found.settings(name)
        # `changes` is declared for all profiles: in this one a key may be the same.
        phases = found.phases(name) if settings.get("phases") else []
        changes = [_phases(settings["phases"])] if settings.get("phases") else []
        changes += [
            _change(found, name, against, key)
            for key in settings.get("changes") or ()
            if not phases and (against is None or found.value(name, key) != found.value(against, key))
        ]
        changes += [f"phase {one['name']}: {_own(one['recipe'], settings)}" for one in phases]
        rows.append(
            (
                found.label(name),
                found.label(against) if against else "baseline",
                "; ".join(changes) or NONE,
                str(settings.get("note") or NONE),
            )
        )
    return Table(
        "Variants", ("Variant", "Compared to", "What it changes (there)", "Why"), rows, text_columns=(1, 2, 3),
        note="All other keys are the same; the recipes are at the end.",
    )  # fmt: skip


def facts_table(found: Collected, summary: Mapping[str, Any]) -> Table:
    """Return profile, seeds, budget, data and evaluation."""
    evaluation = found.evaluation
    sizes = summary["datasets"]
    measured = [f"{name} ({size:,} pairs)" for name, size in sizes["pairs"].items()]
    measured += [f"{name} ({size:,} instructions)" for name, size in sizes["instructions"].items()]
    trained = dict.fromkeys(
        str(recipe[key]) for name in found.variants for _, recipe, _ in found.recipes(name)
        for key in ("dataset", "sft_dataset", "prompt_dataset") if recipe.get(key)
    )  # fmt: skip
    models = dict.fromkeys(
        str(found.value(name, "model_name_or_path")) for name in found.variants
        if found.value(name, "model_name_or_path")
    )  # fmt: skip
    budget = summary["budget"]
    generated = evaluation.get("generations")
    rows = [
        ("Profile", str(summary["profile"] or NONE)),
        ("Model", ", ".join(models) or NONE),
        ("Seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in found.runs}))),
        ("Budget of each run", formatting.amount(budget["amount"], budget["unit"])),
        ("Trained on", "; ".join(trained) or NONE),
        ("Measured on (held out)", "; ".join(measured) or NONE),
        ("Measured", f"after each of {found.profile.get('checkpoints', 1)} equal parts of training"
         if not found.profile.get("checkpoint_steps") else _every(found.profile["checkpoint_steps"])),
        ("Metric of the question", f"{summary['primary']}: {formatting.meaning(summary['primary'])}"),
    ]  # fmt: skip
    if generated:
        text = f"{generated['count']} prompts of {generated['prompts']}, greedy"
        text += f", {generated['max_new_tokens']} tokens at most"
        rows.append(("Generated", text))
    answers = evaluation.get("answers")
    if answers:
        text = f"{answers['count']} prompts of {answers['prompts']}, temperature 1, {answers['max_new_tokens']} tokens"
        by = [f"{role} by {answers[role]}" for role in SCORERS if answers.get(role)]
        rows.append(("Drawn", f"{text} at most" + (f"; scored: {', '.join(by)}" if by else "")))
    return Table("What was run", ("", ""), rows, text_columns=(1,))


def _every(steps: Any) -> str:
    if isinstance(steps, Mapping):
        return "after every " + ", ".join(f"{number} steps of {name}" for name, number in steps.items())
    return "after every step" if steps == 1 else f"after every {steps} steps"


def results_table(summary: Mapping[str, Any]) -> Table:
    """Return mean and interval over seeds of the primary and secondary metrics, the untrained model first."""
    metrics = [summary["primary"], *summary["secondary"]]
    rows = [
        (_before(summary, base), NONE, *(formatting.significant(base["metrics"].get(name)) for name in metrics))
        for base in summary["bases"]
    ]
    for name, label in summary["labels"].items():
        finished = sum(run["variant"] == name and run["phase"] == "finished" for run in summary["runs"])
        cells = [_cell(summary["metrics"][name].get(metric), finished) for metric in metrics]
        rows.append((label, str(finished), *cells))
    note = (
        "Mean over seeds [95 % t-interval over seeds]: what other seeds of the same recipe would give on the same "
        "held-out items. No interval: one seed, or the same value with every seed."
    )
    head = ("Variant", "Seeds", *(_head(name) for name in metrics))
    return Table("Results at the end of training", head, rows, note=note)


def comparisons_table(summary: Mapping[str, Any]) -> Table:
    """Return the differences in the primary metric, tested over seeds, with intervals over items and what could have
    been detected."""
    rows = []
    margin = (summary.get("equivalence") or {}).get(summary["primary"])
    for row in summary["comparisons"]:
        if row["metric"] == summary["primary"]:
            items = row.get("items")
            interval = _interval(items) if items and items["low"] is not None else NONE
            if items and items["low"] is None:
                interval = f"none: {items['why']}"
            rows.append(
                (
                    row["label"],
                    row["against_label"],
                    str(row["difference"]["n"]),
                    formatting.estimate(row["difference"], sign=True),
                    formatting.p_value(row["difference"]["p"]),
                    formatting.p_value(row["p_holm"]),
                    interval,
                    _detectable(row),
                    *([_equivalent(row)] if margin is not None else []),
                    row["words"],
                )
            )
    tested = sum(row.get("p_holm") is not None for row in summary["comparisons"])
    note = (
        "Difference: mean of the seeds' differences [95 % t-interval over seeds], which covers other seeds on the same "
        "held-out items. p: two-sided paired t-test over seeds, a family of its own for each contrast, so that the "
        "same runs have the same verdict in every report. p of the report: corrected by Holm for the "
        f"{formatting.count(tested, 'contrast')} tested here; it says whether anything here differs, and decides no "
        "row. Over held-out items: 95 % interval of 10,000 draws of items, each with all its seeds, which covers other "
        "held-out items of the same kind with these very runs. Detectable: the least true difference that would be "
        "shown with 80 % power, by the test over seeds or by the interval over items, whichever needs the larger one; "
        "of few seeds it is itself uncertain. A difference counts as shown if p is below 0.05 and the interval over "
        "items, where there is one, leaves out 0."
    )
    head = ["Variant", "Against", "Seeds", f"Difference in {_head(summary['primary'])}", "p", "p of the report",
            "Over held-out items", "Detectable"]  # fmt: skip
    if margin is not None:
        head.append(f"Equivalent within {margin:g}: p, 90 % over seeds, over items")
        note += (
            " Equivalent: two one-sided t-tests over seeds against the margin that was declared before the runs; shown "
            "if p is below 0.05 and the 90 % interval over items lies within the margin, too."
        )
    head.append("In words")
    return Table("Comparisons in the metric of the question", head, rows, note=note, text_columns=(1, len(head) - 1))


def _detectable(row: Mapping[str, Any]) -> str:
    found = row["detectable"]
    if found["value"] is None:
        return NONE
    by = "items" if found["items"] is not None and found["items"] > found["seeds"] else "seeds"
    return f"{formatting.significant(found['value'], 2)} ({by})"


def _equivalent(row: Mapping[str, Any]) -> str:
    found = row["equivalence"]
    if found["p"] is None:
        return f"not tested: {found['why']}"
    items = found.get("items")
    over = f"; {_interval(items)}" if items and items["low"] is not None else ""
    return f"{formatting.p_value(found['p'])}; {_interval(found)}{over}"


def _interval(found: Mapping[str, Any]) -> str:
    places = formatting.decimals((found["high"] - found["low"]) / 2)
    return f"[{formatting.fixed(found['low'], places, True)},{SPACE}{formatting.fixed(found['high'], places, True)}]"


def secondary_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the differences in the secondary metrics, which are not tested; None where there are none."""
    metrics = summary["secondary"]
    found = {(row["variant"], row["metric"]): row for row in summary["comparisons"]}
    pairs = [row for row in summary["comparisons"] if row["metric"] == summary["primary"]]
    if not metrics or not pairs:
        return None
    rows = [
        (
            row["label"],
            row["against_label"],
            *(_secondary(found[row["variant"], name]) for name in metrics),
        )
        for row in pairs
    ]
    note = (
        "Mean of the seeds' differences [95 % t-interval over seeds]; d: detectable with 80 % power over seeds. Not "
        "tested, and not corrected for their number."
    )
    if any("equivalence" in row for row in found.values() if row["metric"] in metrics):
        note += (
            " Equivalent: two one-sided t-tests over seeds against the margin declared before the runs, p below 0.05."
        )
    head = ("Variant", "Against", *(_head(name) for name in metrics))
    return Table("Differences in the other metrics", head, rows, note=note, text_columns=(1,))


def _secondary(row: Mapping[str, Any]) -> str:
    text, least = formatting.estimate(row["difference"], sign=True), row["detectable"]["seeds"]
    if least is not None:
        text += f"; d {formatting.significant(least, 2)}"
    if row.get("equivalence"):
        found = row["equivalence"]
        text += f"; {'' if found['shown'] else 'not '}shown equivalent within {found['margin']:g}"
    return text


def budget_table(summary: Mapping[str, Any]) -> Table:
    """Return what each variant was to use and used."""
    budget = summary["budget"]
    rows = []
    for name, used in budget["variants"].items():
        kind = "answers" if used["answers"] else "pairs"
        instructions = formatting.spread(used["sft_examples"])
        examples = f"{formatting.spread(used['examples'])} {kind}"
        if instructions not in (NONE, "0"):
            examples += f" + {instructions} instructions"
        show = formatting.flops if budget["unit"] == "flops" else formatting.whole
        off = f"NO: seed {', '.join(map(str, used['off']))}" if used["off"] else "yes" if used["used"] else NONE
        rows.append(
            (
                summary["labels"][name],
                show(budget["amount"]),
                formatting.spread(used["used"], show),
                off,
                formatting.spread(used["steps"]),
                examples if used["used"] else NONE,
                formatting.spread(used["policy_tokens"]),
                formatting.spread(used["reference_tokens"]),
                formatting.spread(used["reference_tokens_run"]),
                formatting.spread(used["flops"], formatting.flops),
            )
        )
    unit = "" if budget["unit"] == "flops" else f"{SPACE}/ {formatting.UNITS.get(budget['unit'], budget['unit'])}"
    head = ("Variant", f"Declared{unit}", f"Used{unit}", "Equal", "Steps", "Examples", "Tokens through policy",
            "Tokens through reference", "Of these run, not cached", "Operations")  # fmt: skip
    note = (
        "Of one run; least to greatest where seeds differ. Equal: used and declared differ by one optimizer step at "
        "most. Two single answers count as one example. Operations are estimated from shapes, and count the reference "
        "whether it ran or its results were cached."
    )
    return Table("Budget, declared and used", head, rows, note=note, text_columns=(3, 5))


def resources_table(summary: Mapping[str, Any]) -> Table:
    """Return time, memory and generated tokens of a run of each variant."""
    rows = [
        (
            summary["labels"][name],
            formatting.spread(used["seconds"], formatting.seconds),
            formatting.spread(used["measure_seconds"], formatting.seconds),
            formatting.spread(used["peak_memory_bytes"], formatting.memory),
            formatting.spread(used["generated_tokens"]),
            formatting.spread(used["measure_tokens"]),
        )
        for name, used in summary["budget"]["variants"].items()
    ]
    head = ("Variant", "Training", "Measuring", "Peak memory", "Tokens generated in training", "in measuring")
    note = "Of one run; least to greatest where seeds differ. Times depend on what else the machine did."
    return Table("Time and memory", head, rows, note=note)


SHOWN = ("seconds", "measure_seconds", "flops", "policy_tokens", "generated_tokens", "measure_tokens")


def cost_table(summary: Mapping[str, Any]) -> Table:
    """Return what all finished runs cost together."""
    rows, total = (
        [],
        dict.fromkeys(("runs", *SHOWN), 0),
    )
    for name, cost in summary["cost"].items():
        rows.append((summary["labels"][name], *_cost(cost)))
        total = {key: value + cost[key] for key, value in total.items()}
    rows.append(("All", *_cost(total)))
    head = ("Variant", "Finished runs", "Training", "Measuring", "Operations", "Tokens trained on",
            "Tokens generated in training", "in measuring")  # fmt: skip
    return Table(
        "Cost of the experiment", head, rows, note="Sums over finished runs; what failed runs used is not in them."
    )


def convergence_table(summary: Mapping[str, Any]) -> Table | None:
    """Return how soon the target was reached; None where no target is set."""
    found = summary["convergence"]
    if not found:
        return None
    rows = []
    for name, row in found["variants"].items():
        rows.append(
            (
                summary["labels"][name],
                f"{row['reached']} of {row['n']}" if row["n"] else NONE,
                _reached(row["median_steps"], row, formatting.whole),
                _reached(row["median_flops"], row, formatting.flops),
                ", ".join("not reached" if step is None else formatting.whole(step) for step in row["steps"]) or NONE,
            )
        )
    bound = f"at least {found['at_least']:g}" if found["at_least"] is not None else ""
    if found["at_most"] is not None:
        bound = f"{bound} and at most {found['at_most']:g}".removeprefix(" and ")
    note = (
        f"Target: {found['metric']} {bound}, at the first measurement that reaches it (0: before training). Median "
        "over seeds; a seed that did not reach it counts as later than all others."
    )
    head = ("Variant", "Seeds that reached it", "Steps (median)", "Operations (median)", "Steps of each seed")
    return Table("To the target", head, rows, note=note)


def stability_table(summary: Mapping[str, Any]) -> Table:
    """Return spikes, gradient variation, spread over seeds and the likelihood of chosen answers."""
    primary, rows = summary["primary"], []
    for name, row in summary["stability"].items():
        n = len(row["runs"])
        final = summary["metrics"][name].get(primary) or {}
        rows.append(
            (
                summary["labels"][name],
                f"{row['spikes']} of {row['judged']:,}" if row["judged"] else "not judged",
                str(row["not_finite"]) if n else NONE,
                formatting.significant(row["gradient_variation"], 2),
                formatting.significant(final.get("sd"), 2),
                formatting.estimate(row["chosen_shift"], sign=True),
                f"{row['below_start']} of {n}" if n else NONE,
                f"{row['fell']} of {row['checkpoints']}" if row["checkpoints"] else NONE,
            )
        )
    head = ("Variant", "Loss spikes, of steps judged", "Values not finite", "Variation of gradient norm",
            f"SD over seeds of {primary}", "Shift of chosen answers / nats per token", "Seeds where chosen fell",
            "Measurements where chosen fell")  # fmt: skip
    note = (
        "A spike: training loss above the median of the 10 before it by more than 5 of their median absolute "
        "deviations (at least 1 % of the median); the first 10 steps of a run cannot be judged. Variation: sd / mean "
        "of the gradient norm in the second half of training, mean over seeds. Shift: final change of the chosen "
        "answers' log-probability against the start [95 % interval over seeds]; well below 0, the likelihood of what "
        "should be said collapses."
    )
    return Table("Losses, gradients and chosen answers", head, rows, note=note)


def beta_table(summary: Mapping[str, Any]) -> Table:
    """Return beta on held-out prompts of the variants whose beta moves."""
    keys = ("beta_mean", "beta_std", "beta_q10", "beta_q90", "beta_margin_corr")
    rows = [
        (
            summary["labels"][name],
            str(row["mode"] or NONE),
            formatting.significant(row["start"]) if isinstance(row["start"], int | float) else NONE,
            *(formatting.estimate(row["metrics"][key]) for key in keys),
        )
        for name, row in summary["beta"].items()
    ]
    head = ("Variant", "beta_mode", "Start", "Mean", "SD over prompts", "10 % quantile", "90 % quantile",
            "Correlation with margin")  # fmt: skip
    return Table("Beta of held-out prompts", head, rows, note="Mean over seeds [95 % t-interval].", text_columns=(1,))


def mixture_table(summary: Mapping[str, Any]) -> Table:
    """Return the declared share of instructions, and its least and greatest value in any step."""
    rows = [
        (
            summary["labels"][name],
            formatting.significant(row["declared"]),
            row["by"],
            formatting.significant(row["least"], 4),
            formatting.significant(row["greatest"], 4),
            formatting.whole(row["logged"]),
        )
        for name, row in summary["mixture"].items()
    ]
    head = ("Variant", "Declared share", "Of", "Least in any step", "Greatest in any step", "Steps looked at")
    return Table(
        "Share of instructions", head, rows, text_columns=(2,), note="Shares are of the examples of a step, as logged."
    )


def text_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the metrics of generated text; None where nothing was generated."""
    names = [f"gen/{short}" for short in OF_GENERATIONS]
    names = [name for name in names if any(name in found for found in summary["metrics"].values())]
    if not names:
        return None
    rows = _of_metrics(summary, names)
    head = ("Variant", *(f"{formatting.term(name)}{SPACE}/ {formatting.metric(name).unit}" for name in names))
    return Table("Generated text", head, rows, note="Mean over seeds [95 % t-interval over seeds].")


def domain_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Return accuracy, margin and NLL on every held-out data set that the main table leaves out, a table of each."""
    shown = {summary["primary"], *summary["secondary"]}
    made = []
    for short, kind in (("accuracy", "pairs"), ("margin", "pairs"), ("nll", "instructions")):
        names = [f"{dataset}/{short}" for dataset in summary["datasets"][kind]]
        names = [
            name for name in names if name not in shown and any(name in row for row in summary["metrics"].values())
        ]
        if not names:
            continue
        rows = _of_metrics(summary, names)
        title = f"{short} on other held-out data, {formatting.metric(short).unit}"
        head = ("Variant", *(name.rpartition("/")[0] for name in names))
        made.append(
            Table(title[0].upper() + title[1:], head, rows, note="Mean over seeds [95 % t-interval over seeds].")
        )
    return made


def runs_table(summary: Mapping[str, Any]) -> Table:
    """Return every planned run: how it ended, and its recipe's hash."""
    rows = []
    for run in summary["runs"]:
        final = (run["final"] or {}).get(summary["primary"])
        lines = run["unreadable_log_lines"]
        rows.append(
            (
                summary["labels"].get(run["variant"], run["variant"]),
                str(run["seed"]),
                run["phase"],
                formatting.significant(final, 4),
                (run["recipe_sha256"] or NONE)[:12],
                NONE if lines is None else formatting.whole(lines),
                formatting.moment(run["ended"]),
            )
        )
    head = ("Variant", "Seed", "State", summary["primary"], "Recipe SHA-256 (start)", "Unreadable log lines", "Ended")
    return Table("Runs", head, rows, text_columns=(2, 4, 6))


def provenance_table(summary: Mapping[str, Any]) -> Table:
    """Return versions, hardware, git state, hashes and dates."""
    found = summary["provenance"]
    rows = [("Date", f"{formatting.moment(found['started'])} to {formatting.moment(found['ended'])}")]
    rows.append(("Git commit", "; ".join(found["git"]) or NONE))
    rows += [(f"Hardware: {name}", "; ".join(values)) for name, values in found["hardware"].items()]
    rows += [(f"Version: {name}", "; ".join(values)) for name, values in found["versions"].items()]
    rows += [(f"Model SHA-256: {name}", "; ".join(values)) for name, values in found["model_sha256"].items()]
    rows += [(f"Data SHA-256: {name}", "; ".join(values)) for name, values in found["data_sha256"].items()]
    return Table("Where the numbers come from", ("", ""), rows, text_columns=(1,))


def _change(found: Collected, name: str, against: str | None, key: str) -> str:
    ours = found.value(name, key)
    theirs = found.value(against, key) if against else None
    return f"{key}: {_value(ours)} ({_value(theirs)})"


def _phases(shares: Mapping[str, float]) -> str:
    parts = [
        f"{name} ({100 * share:g} %{' of the budget' * (place == 0)})"
        for place, (name, share) in enumerate(shares.items())
    ]
    return ", then ".join(parts)


def _own(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    keys = [key for key in settings.get("changes") or () if recipe.get(key) is not None]
    return ", ".join(f"{key} {_value(recipe[key])}" for key in keys) or "as it is"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_metrics(summary: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a row of the metrics for every untrained model and every variant."""
    before = [
        (_before(summary, base), *(formatting.significant(base["metrics"].get(name)) for name in names))
        for base in summary["bases"]
    ]
    return before + [
        (label, *(formatting.estimate(summary["metrics"][name].get(metric)) for metric in names))
        for name, label in summary["labels"].items()
    ]


def _before(summary: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    model = base["model"].rstrip("/").rpartition("/")[2]
    return f"Before training ({model})" if len(summary["bases"]) > 1 else "Before training"


def _head(name: str) -> str:
    return f"{name}{SPACE}/ {formatting.metric(name).unit}"


def _cell(found: Mapping[str, Any] | None, finished: int) -> str:
    text = formatting.estimate(found)
    if found and found["mean"] is not None and found["n"] != finished:
        text += f" ({formatting.seeds(found['n'])}: others not finite)"
    return text


def _cost(cost: Mapping[str, Any]) -> Sequence[str]:
    return (
        str(cost["runs"]),
        formatting.seconds(cost["seconds"]),
        formatting.seconds(cost["measure_seconds"]),
        formatting.flops(cost["flops"]),
        formatting.whole(cost["policy_tokens"]),
        formatting.whole(cost["generated_tokens"]),
        formatting.whole(cost["measure_tokens"]),
    )


def _reached(value: float | None, row: Mapping[str, Any], show: Any) -> str:
    if value is None:
        return "not reached" if row["n"] else NONE
    return show(value)
