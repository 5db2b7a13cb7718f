"""The report's part on evaluation methods: what each says, how they agree, what judges are worth, what to choose by."""

from collections.abc import Mapping, Sequence
from typing import Any

from eval_harness.agreement.selection import LEAST
from ledpo_plugin.experiments.report import formatting
from ledpo_plugin.experiments.report.blocks import Paragraph, Plots, Section, Table, Terms
from ledpo_plugin.experiments.results.collected import Collected

from .methods_plots import correlation_plot, stability_plot, win_rate_plot
from .shown import (
    POSITION,
    SHARES,
    cell,
    excludes,
    labels_of,
    named,
    reasons,
    result_of,
    shares_words,
    turned_words,
)

CHANCE = 0.5
FAIR = 0.6  # kappa from which agreement is called substantial (Landis and Koch 1977: above 0.6)


def report(found: Collected) -> list[Section]:
    """Return the sections, the answer first; nothing where the study did not come to its end."""
    result = result_of(found, "agreement")
    if result is None:
        return []
    names = labels_of(found, result["models"])
    made = [
        Section("methods-answer", "Which methods agree", _answer(result, names, found)),
        _scores(result, names),
        _correlations(result),
        _judges(result, names),
        _known(result),
        _worse(result, found),
        _choices(result, names),
        _stability(result),
        Section("methods-terms", "What the methods are", [Terms(_terms(result))]),
    ]
    return [section for section in made if section and section.blocks]


def _answer(result: Mapping[str, Any], names: Mapping[str, str], found: Collected) -> list[Any]:
    compared = result["compared"]
    said = [
        f"{formatting.count(len(compared['methods']), 'method')} scored "
        f"{formatting.count(len(compared['models']), 'model')} on "
        f"{formatting.count(len(compared['items']), 'prompt')} in common."
    ]
    pairs = [row for row in compared["per_model"] if row["name"] == "spearman"]
    sure = [row for row in pairs if excludes(row, 0.0)]
    said.append(
        f"Of {formatting.count(len(pairs), 'pair')} of methods, the order in which they put the models correlates with "
        f"an interval that leaves out 0 in {len(sure)} ({0.05 * len(pairs):.0f} would by chance where none correlates)"
        + (": " + "; ".join(f"{r['first']} and {r['second']} {cell(r)}" for r in sure[:6]) if sure else "")
        + ("; and more, in the table below." if len(sure) > 6 else ".")
    )
    said += [_judge_words(name, own) for name, own in result["judges"].items()]
    if result["labels"]:
        said.append(_label_words(result["labels"]))
    if result["worse"]:
        said.append(_worse_words(result["worse"], found))
    blocks: list[Any] = [Paragraph(text, "answer") for text in said]
    if not result["people"]:
        blocks.append(
            Paragraph(
                "No people's ratings were given to this study, so nothing here says how far any method agrees with "
                "people. `ledpo eval annotate` collects them from the study's own answers (the files "
                "study/answers/*/outputs.json); `human:` in the study takes them in.",
                "warning",
            )
        )
    blocks += [
        Paragraph(f"Under 90 % of the verdicts of {name} were understood: its figures are unreliable.", "warning")
        for name, own in result["judges"].items()
        if not _parsed(own)["reliable"]
    ]
    return blocks


def _parsed(own: Mapping[str, Any]) -> Mapping[str, Any]:
    return named(own["position"], name="parsed")


def _judge_words(name: str, own: Mapping[str, Any]) -> str:
    """Return one sentence on what a judge is worth: its liking for a place or for length, and its steadiness."""
    first = named(own["position"], name="first_position")
    longer = named(own["length"], name="length_log_odds")
    place = {
        1: "favours the answer shown first",
        -1: "favours the answer shown second",
        0: "shows no liking for a place",
    }
    text = f"{name} {place[excludes(first, CHANCE)]} (first in {cell(first)} of its verdicts on different texts)"
    text += f"; {shares_words(own['position'])}"
    if longer and longer["value"] is not None:
        liking = {1: "it favours longer answers", -1: "it favours shorter answers", 0: "no effect of length is shown"}
        text += f"; {liking[excludes(longer, 0.0)]} (log-odds {cell(longer, True)} for a standard deviation of length)"
    return text + "."


def _label_words(found: Mapping[str, Any]) -> str:
    kappas = [row for row in found["with_labels"] if row["name"] == "cohen_kappa" and row["value"] is not None]
    sure = [row for row in kappas if excludes(row, 0.0) > 0]
    text = f"On {formatting.count(found['n'], 'pair')} whose better answer the data names, "
    if not sure:
        return text + "no method agrees with the data beyond chance (all intervals of Cohen's kappa hold 0)."
    best = sorted(sure, key=lambda row: -row["value"])
    listed = "; ".join(f"{row['first']} {cell(row)}" for row in best)
    strong = [row for row in best if row["value"] > FAIR]
    tail = "" if strong else " None of them is above 0.6, from where agreement is called substantial."
    said = f"{text}Cohen's kappa has an interval above 0 for {listed}; the intervals are not corrected for there being "
    return f"{said}{formatting.count(len(kappas), 'method')}.{tail}"


def _scores(result: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    compared = result["compared"]
    rows = []
    for model in compared["models"]:
        cells = []
        for method in compared["methods"]:
            row = named(compared["rankings"][method], name=model)
            cells.append(f"{cell(row)} ({row['rank']})" if row["rank"] else formatting.NONE)
        rows.append((names[model], *cells))
    kept = "; ".join(
        f"{row['method']} {row['n'] and round(row['value'] * row['n'])} of {row['n']}" for row in compared["kept"]
    )
    note = (
        "Mean over the prompts that all methods scored [95 % bootstrap interval over prompts] (place, 1 is best). "
        f"Prompts kept: {kept}."
    )
    table = Table("Every model by every method", ("Model", *compared["methods"]), rows, note=note)
    return Section("methods-scores", "What each method says", [table, *_plots(win_rate_plot(result, names))])


def _plots(*plots: Any) -> list[Any]:
    drawn = [plot for plot in plots if plot]
    return [Plots(drawn)] if drawn else []


def _correlations(result: Mapping[str, Any]) -> Section:
    compared = result["compared"]
    blocks: list[Any] = []
    for key, what, note in (
        ("per_model", "the models' mean scores", "n is the number of models; intervals draw prompts, not models"),
        ("per_example", "differences between every two models, prompt by prompt", "n is the number of prompts"),
    ):
        rows = []
        for row in compared[key]:
            if row["name"] == "spearman":
                pair = {"first": row["first"], "second": row["second"]}
                rows.append((f"{row['first']} / {row['second']}", str(row["n"]), cell(row),
                             cell(named(compared[key], name="kendall", **pair))))  # fmt: skip
        blocks.append(
            Table(
                f"Correlation of {what}", ("Methods", "n", "Spearman", "Kendall's tau-b"), rows,
                note=f"95 % bootstrap intervals; {note}.{reasons(compared[key])}",
            )
        )  # fmt: skip
    return Section("methods-correlations", "Correlations", [*_plots(correlation_plot(result)), *blocks])


def _judges(result: Mapping[str, Any], names: Mapping[str, str]) -> Section | None:
    rows, rates, shown = [], [], []
    for name, own in result["judges"].items():
        position = [named(own["position"], name=key) for key in POSITION]
        length = [named(own["length"], name=key) for key in ("longer_preferred", "length_log_odds")]
        shown += [*position[1:], *length, own["repeat"]]
        rows.append((name, f"{position[0]['n']:,}", *map(cell, [*position, *length, own["repeat"]])))
        for row in own["win_rates"]:
            if row["name"] == "win_rate" and row.get("interval") == "bootstrap":
                error = named(own["win_rates"], name="win_rate_standard_error", model=row["model"])
                counts = f"{row['wins']} / {row['ties']} / {row['losses']} ({row.get('turned', formatting.NONE)})"
                rates.append((f"{names[row['model']]} by {name}", str(row["n"]), counts, cell(row), cell(error)))
    if not rows:
        return None
    head = ("Judge", "Verdicts", *POSITION.values(), "Longer preferred", "Log-odds of length", "Same when repeated")
    judges = Table(
        "What judges are worth", head, rows,
        note=f"{SHARES} Longer preferred: share of verdicts on different texts, one half without a liking. Log-odds: "
        "for an answer that is a standard deviation longer, models and places held fixed." + reasons(shown),
    )  # fmt: skip
    wins = Table(
        "Win rates against the untrained model",
        ("Model", "n", "Wins / ties / losses (turned)", "Win rate", "Standard error"),
        rates, note="Both orders of every comparison, each with half the weight; "
        + turned_words([own["position"] for own in result["judges"].values()]),
    )  # fmt: skip
    return Section("methods-judges", "Judges", [judges, wins])


def _known(result: Mapping[str, Any]) -> Section | None:
    found = result["labels"]
    if not found:
        return None
    rows, shown = [], []
    for row in found["with_labels"]:
        if row["name"] == "percent_agreement":
            kappa = named(found["with_labels"], name="cohen_kappa", first=row["first"])
            right = named(found["with_labels"], name="accuracy", first=row["first"])
            shown += [row, kappa, right]
            rows.append((row["first"], str(row["n"]), cell(right), cell(row), cell(kappa)))
    of_judges = [
        (
            name,
            *(cell(named(own["position"], name=key)) for key in POSITION),
            cell(named(own["length"], name="longer_preferred")),
            cell(own["repeat"]),
        )
        for name, own in found["judges"].items()
    ]
    between = [(f"{row['first']} / {row['second']}", str(row["n"]), cell(row)) for row in found["between"]]
    alphas = "; ".join(f"{row['name'].replace('_', ' ')} {cell(row)}" for row in found["alpha"])
    blocks = [
        Table("Agreement with the data's own labels",
              ("Method", "Pairs", "Right", "Same as the label", "Cohen's kappa"), rows,
              note="Right: a tie counts one half, so that 0.5 is chance for every method. Same as the label: a tie "
              "never is, so that a judge in letters that draws lots in each order is at 0.25, and one that always "
              "turns at 0. Of kappa, 0 is chance. Which answer counts as the first is drawn by prompt."
              + reasons(shown)),
        Table("Judges on these pairs", ("Judge", *POSITION.values(), "Longer preferred", "Same when repeated"),
              of_judges, note=SHARES),
        Table("Agreement of every two methods", ("Methods", "Pairs", "Cohen's kappa"), between,
              note=f"Krippendorff's alpha of all: {alphas}." + reasons([*found["between"], *found["alpha"]])),
    ]  # fmt: skip
    return Section("methods-labels", "Pairs whose better answer is known", blocks)


def _worse_words(worse: Mapping[str, Any], found: Collected) -> str:
    """Return which methods tell the variant that is known to be worse, and which are taken in."""
    seen, taken_in, blind = (
        [row["name"] for row in worse["rows"] if excludes(row, 0.0) == sign] for sign in (1, -1, 0)
    )
    text = f"The models that were {found.label(worse['variant'])} are put below the other trained ones by "
    text += ", ".join(seen) if seen else "no method"
    text += f"; above them by {', '.join(taken_in)}" if taken_in else ""
    return text + (f"; not told from them by {', '.join(blind)}." if blind else ".")


def _worse(result: Mapping[str, Any], found: Collected) -> Section | None:
    worse = result["worse"]
    if not worse:
        return None
    verdicts = {1: "put below the others", -1: "put above the others", 0: "not told from the others"}
    rows = [(row["name"], str(row["n"]), cell(row, True), verdicts[excludes(row, 0.0)]) for row in worse["rows"]]
    label = found.label(worse["variant"])
    table = Table(
        f"What the methods make of the models that were {label}",
        ("Method", "Prompts", "The others minus these", "In words"),
        rows,
        text_columns=(3,),
        note="Difference of the means over models, in the method's own unit, turned so that above 0 the method "
        "sees the harm [95 % bootstrap interval over prompts]." + reasons(worse["rows"]),
    )
    return Section("methods-worse", "A harm that is known", [table])


def _choices(result: Mapping[str, Any], names: Mapping[str, str]) -> Section:
    rows = [
        (
            row["method"],
            ", ".join(names[name] for name in row["chosen"]) or formatting.NONE,
            ", ".join(names[name] for name in row["best"]) or formatting.NONE,
            cell(row),
        )
        for row in result["compared"]["choices"]
    ]
    reference = result["compared"]["reference"]
    judged = max((row["n"] for row in result["compared"]["choices"]), default=0)
    few = f" {formatting.count(judged, 'prompt')} judge, too few to recommend a method by." if judged < LEAST else ""
    table = Table(
        "Which model each method would have chosen", ("Method", "Its choice", f"Best by {reference}", "Regret"), rows,
        text_columns=(1, 2),
        note=f"Every method chooses on one half of the prompts. Regret: how much less its choice scores by {reference} "
        f"than {reference}'s own, on the other half; below 0, the choice was the better one. {reference} is taken as "
        "the yardstick here, which does not make it right." + few,
    )  # fmt: skip
    return Section("methods-choices", "What to choose by", [table])


def _stability(result: Mapping[str, Any]) -> Section:
    rows, shown = [], []
    for method, own in result["compared"]["stability"].items():
        enough = named(own, name="prompts_until_stable")
        half = [row for row in own if row["name"] == "tau" and row["prompts"] * 2 >= enough["prompts"]]
        shown.append(enough)
        rows.append((method, str(enough["prompts"]), cell(enough), cell(half[0]) if half else formatting.NONE))
    table = Table(
        "How many prompts until the order of the models is stable",
        ("Method", "Prompts", "Enough", "Kendall's tau at half"),
        rows,
        note="Enough: the smallest number of prompts from which on 95 % of random subsets give the order of all of "
        "them. Tau: with the order of all prompts, mean over subsets of half of them [95 % of the subsets]."
        + reasons(shown),
    )
    return Section("methods-stability", "Sensitivity to prompts", [*_plots(stability_plot(result)), table])


def _terms(result: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    rows = []
    for name, own in result["methods"].items():
        better = "" if own["higher_is_better"] else "; less is better"
        rows.append((name, own["meaning"] + better))
    return rows
