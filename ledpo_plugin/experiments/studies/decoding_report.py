"""The report's part on decoding: every setting, quality against diversity, kinds of prompts, and what to use."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval_harness.agreement.selection import LEAST
from ledpo_plugin.experiments.report import formatting
from ledpo_plugin.experiments.report.blocks import Paragraph, Plots, Section, Table, Terms
from ledpo_plugin.experiments.results.collected import Collected

from .decoding_plots import front_plot, setting_plots
from .decoding_tables import ALL
from .shown import POSITION, SHARES, cell, labels_of, named, reasons, result_of, turned_words

QUALITY = ("win rate", "implicit reward", "accuracy")


def report(found: Collected) -> list[Section]:
    """Return the sections, the answer first; nothing where the study did not come to its end."""
    result = result_of(found, "summary")
    if result is None:
        return []
    names = labels_of(found, result["models"])
    made = [
        Section("decoding-answer", "Which decoding is best", _answer(result, names)),
        _settings(result, names),
        _kinds(result, names),
        _best(result, names),
        _trained(result, names),
        _judges(result),
        Section("decoding-terms", "What was decoded how", [_decodings(result), Terms(_terms(result))]),
    ]
    return [section for section in made if section and section.blocks]


def _answer(result: Mapping[str, Any], names: Mapping[str, str]) -> list[Any]:
    blocks: list[Any] = []
    for model, label in names.items():
        for metric in QUALITY:
            row = named(result["best"], model=model, group=ALL, metric=metric)
            if row:
                blocks.append(Paragraph(f"{label}: {_best_words(row)}", "answer"))
    for model, groups in result["same"].items():
        for group in groups:
            text = f"{names[model]} gave the same answers to all prompts under {' and '.join(group)}."
            blocks.append(Paragraph(text))
    for model, left_out in result["left_out"].items():
        text = f"{names[model]} has no beta(x), so that {', '.join(left_out)} could not be run with it."
        blocks.append(Paragraph(text))
    return blocks


def _best_words(row: Mapping[str, Any]) -> str:
    if row["best"] is None:
        return f"by {row['metric']}, no setting can be recommended: {row['reason']}."
    text = f"by {row['metric']}, {row['best']} was highest on {formatting.count(row['chosen_on'], 'prompt')}, and has "
    text += f"{formatting.significant(row['value'])} on the {row['n']} others"
    if not row["not_worse"]:
        return f"{text}, where it is shown to be better than every other setting."
    if not row["worse"]:
        return f"{text}, where no setting is shown to be worse."
    return f"{text}, where {', '.join(row['worse'])} are shown to be worse. The others cannot be told from it."


def _settings(result: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    blocks: list[Any] = []
    for model, label in names.items():
        own = [row for row in result["settings"] if row["model"] == model]
        if not own:
            continue
        metrics = [m for m in result["metrics"] if any(_value(row["figures"], m) is not None for row in own)]
        rows = [
            (
                row["decoding"],
                *(cell(named(row["figures"], name=metric)) for metric in metrics),
                formatting.significant(row["speed"]["tokens_per_second"]),
            )
            for row in own
        ]
        shown = [named(row["figures"], name=metric) for row in own for metric in metrics]
        note = (
            "Mean over prompts [95 % bootstrap interval over prompts]; several samples of a prompt are averaged first. "
            f"Win rates are against {result['baseline']} of the same model." + reasons(shown)
        )
        blocks.append(Table(f"Every setting, {label}", ("Setting", *metrics, "tokens a second"), rows, note=note))
        plots = [plot for plot in (front_plot(result, model, label), *setting_plots(result, model, label)) if plot]
        blocks += [Plots(plots)] if plots else []
    return Section("decoding-settings", "Quality, diversity, typicality and speed", blocks)


def _value(rows: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    return (named(rows, name=metric) or {"value": None})["value"]


def _kinds(result: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    blocks: list[Any] = []
    for model, label in names.items():
        own = [row for row in result["settings"] if row["model"] == model]
        for metric in QUALITY:
            for kind, groups in result["kinds"].items():
                rows = [
                    (row["decoding"], *(cell(named(row["by"][kind][group], name=metric)) for group in groups))
                    for row in own
                ]
                if any(text != formatting.NONE for row in rows for text in row[1:]):
                    head = ("Setting", *(f"{group} (n = {n})" for group, n in groups.items()))
                    blocks.append(Table(f"{metric} by {kind}, {label}", head, rows))
    note = "Low, middle and high are thirds of the prompts. Difficulty: how unlikely the data's own answer is to the "
    blocks.append(Paragraph(note + "untrained model, per token."))
    return Section("decoding-kinds", "By task, length and difficulty", blocks)


def _best(result: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    rows = [
        (
            names[row["model"]],
            row["group"],
            row["metric"],
            f"{row['chosen_on']} / {row['n']}",
            row["best"],
            formatting.significant(row["value"]),
            ", ".join(row["worse"]) or formatting.NONE,
            ", ".join(row["not_worse"]) or formatting.NONE,
        )
        for row in result["best"]
        if row["best"] is not None
    ]
    few = sum(row["best"] is None for row in result["best"])
    blocks: list[Any] = []
    if rows:
        head = ("Model", "Prompts", "By", "n", "Chosen", "Value", "Shown to be worse", "Not shown to be worse")
        note = (
            "A random half of the prompts chooses the setting with the highest mean, the other half judges it (n: both "
            "numbers); the value is of the half that judges. Shown to be worse: by paired t-tests on that half, 5 %, "
            "corrected (Holm) for every test over all prompts, and once more for every test over kinds of prompts."
        )
        blocks.append(Table("Recommended settings", head, rows, text_columns=(1, 2, 4, 6, 7), note=note))
    if few:
        text = f"In {formatting.count(few, 'case')} (a model, a kind of prompts and a measure) nothing is recommended: "
        blocks.append(Paragraph(f"{text}under {LEAST} prompts would judge the choice."))
    return Section("decoding-best", "What to use", blocks)


def _trained(result: Mapping[str, Any], names: Mapping[str, str]) -> Section | None:
    if not result["trained"]:
        return None
    rows, shown = [], []
    for row in result["trained"]:
        rates = [named(own, name="win_rate", interval="bootstrap") for own in row["win_rates"]]
        shown += [*row["differences"], *rates]
        models = f"{names[row['model']]} − {names[row['against']]}"
        won = "; ".join(map(cell, rates)) or formatting.NONE
        rows.append((models, row["decoding"], won, *(cell(own, True) for own in row["differences"])))
    metrics = [own["name"] for own in result["trained"][0]["differences"]]
    table = Table(
        "The same decoding, trained differently", ("Models", "Setting", "Win rate", *metrics), rows, text_columns=(1,),
        note="Differences of means over prompts [95 % bootstrap interval, not corrected for their number], win rate of "
        "the first model over the second."
        + reasons(shown),
    )  # fmt: skip
    return Section("decoding-trained", "Does training change which decoding to use", [table])


def _judges(result: Mapping[str, Any]) -> Section | None:
    rows, shown = [], []
    for own in result["judges"]:
        position = [named(own["position"], name=key) for key in POSITION]
        length = [named(own["length"], name=key) for key in ("longer_preferred", "length_log_odds")]
        shown += [*position, *length]
        rows.append((own["judge"], f"{position[0]['n']:,}", *map(cell, [*position, *length])))
    if not rows:
        return None
    head = ("Judge", "Verdicts", *POSITION.values(), "Longer preferred", "Log-odds of length")
    note = f"Both orders of every comparison. {SHARES} In win rates, "
    note += turned_words([own["position"] for own in result["judges"]]) + reasons(shown)
    table = Table("What the judges are worth", head, rows, note=note)
    return Section("decoding-judges", "Judges", [table])


def _decodings(result: Mapping[str, Any]) -> Table:
    rows = [
        (name, ", ".join(f"{key} {value}" for key, value in settings.items()))
        for name, settings in result["decodings"].items()
    ]
    return Table("Settings", ("Setting", "Keys"), rows, text_columns=(1,))


def _terms(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    better = {1: "", -1: "; less is better", 0: "; neither more nor less is better in itself"}
    return [(name, own["meaning"] + better[own["better"]]) for name, own in result["metrics"].items()]
