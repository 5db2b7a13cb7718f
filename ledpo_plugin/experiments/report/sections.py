"""The sections of a report, in order, from the numbers and texts of a results folder."""

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from ledpo_plugin.common.plain_text import shortened
from ledpo_plugin.common.run_record import without_secrets
from ledpo_plugin.experiments.results.collected import FINISHED, Collected, Run

from . import formatting, plots, tables
from .blocks import Paragraph, Plots, Samples, Section, Terms, Verbatim
from .per_item import LOST
from .strategy_report import doubts, strategy_sections

MOST_SAMPLES = 8
MOST_CHARACTERS = 3000  # of a generated text
MOST_LOG_LINES, MOST_LOG_CHARACTERS = 40, 4000


# Sections of a results folder's own files: its definition, texts, recipes and logs. results.json has none of them.
OF_FILES = {"setup": "Set-up", "texts": "Text quality", "failures": "Runs that failed", "recipes": "Recipes"}


def sections(found: Collected | None, summary: Mapping[str, Any], samples: bool = True) -> list[Section]:
    """Return the report's sections; one that has nothing to say is left out, as are prompts and answers if asked.

    Args:
        found: the results folder; None where there is its results.json only. Then the sections `OF_FILES` are empty.
        summary: the numbers.
        samples: whether prompts and answers are shown.
    """

    def of_files(name: str, make: Callable[[Collected], Section | None]) -> Section | None:
        return Section(name, OF_FILES[name]) if found is None else make(found)

    texts = _texts(found, summary, samples) if found or not samples else Section("texts", OF_FILES["texts"])
    made = [
        Section(
            "answer", "Answer", [Paragraph(summary["answer"], "answer"), *_prediction(summary), *_notices(summary)]
        ),
        _results(summary),
        *strategy_sections(summary),
        of_files("setup", lambda files: _setup(files, summary)),
        _budget(summary),
        _speed(summary),
        _stability(summary),
        _beta(summary),
        _mixture(summary),
        texts,
        _costs(summary),
        _provenance(summary),
        of_files("failures", _failures),
        of_files("recipes", _recipes),
        _definitions(summary),
    ]
    return [section for section in made if section and (section.blocks or found is None)]


def _prediction(summary: Mapping[str, Any]) -> list[Paragraph]:
    """Return what was predicted, to be read beside the answer; results.json of earlier versions has none."""
    text = " ".join(str(summary.get("prediction") or "").split())
    return [Paragraph(f"Predicted before any run: {text}")] if text else []


def _notices(summary: Mapping[str, Any]) -> list[Paragraph]:
    """Return what a reader must know before any number."""
    notices = []
    labels, runs = summary["labels"], summary["runs"]
    phases: dict[str, list[str]] = {}
    for run in runs:
        phases.setdefault(run["phase"], []).append(f"{labels.get(run['variant'], run['variant'])} seed {run['seed']}")
    done = len(phases.pop(FINISHED, ()))
    if done < len(runs) or not runs:
        rest = "; ".join(f"{phase}: {', '.join(names)}" for phase, names in phases.items())
        text = f"This report is of {done} of {formatting.count(len(runs), 'planned run')}"
        notices.append(f"{text}. {rest[:1].upper()}{rest[1:]}." if rest else f"{text}.")
    counts = [sum(run["variant"] == name and run["phase"] == FINISHED for run in runs) for name in labels]
    if done and max(counts) == 1:
        notices.append("There is one seed only: no interval and no test over seeds is possible.")
    notices += [formatting.reuse_words(row, summary) for row in summary["reused"]]
    if summary["per_item"] is None:
        notices.append(LOST)
    for name, row in summary["budget"]["variants"].items():
        if row["off"]:
            seeds = ", ".join(map(str, row["off"]))
            notices.append(
                f"The budget is not equal: {labels[name]} (seed {seeds}) used more or less than declared by more "
                "than one optimizer step."
            )
    for name, row in summary["stability"].items():
        if row["not_finite"]:
            what = formatting.count(row["not_finite"], "logged value")
            notices.append(f"{labels[name]}: {what} of loss or gradient norm not finite.")
    unread = sum(row["unreadable_log_lines"] for each in summary["stability"].values() for row in each["runs"])
    if unread:
        notices.append(
            f"{formatting.count(unread, 'line')} of training logs could not be read; curves lack those steps."
        )
    notices += doubts(summary) + summary["provenance"]["warnings"]
    return [Paragraph(text, "warning") for text in notices]


def _results(summary: Mapping[str, Any]) -> Section | None:
    if not any(run["phase"] == "finished" for run in summary["runs"]):
        return None
    blocks: list[Any] = [tables.results_table(summary)]
    comparisons = tables.comparisons_table(summary)
    if comparisons.rows:
        blocks.append(comparisons)
    blocks.append(Plots(plots.outcome_plots(summary)))
    secondary = tables.secondary_table(summary)
    blocks += [secondary] * bool(secondary) + tables.domain_tables(summary)
    return Section("results", "Results", blocks)


def _setup(found: Collected, summary: Mapping[str, Any]) -> Section:
    return Section("setup", OF_FILES["setup"], [tables.facts_table(found, summary), tables.setup_table(found)])


def _budget(summary: Mapping[str, Any]) -> Section:
    return Section("budget", "Budget and use", [tables.budget_table(summary), tables.resources_table(summary)])


def _speed(summary: Mapping[str, Any]) -> Section:
    table = tables.convergence_table(summary)
    curves = plots.curve_plots(summary)
    blocks: list[Any] = [table] if table else []
    blocks += [Plots(curves)] if curves else []
    return Section("speed", "Speed of convergence", blocks)


def _stability(summary: Mapping[str, Any]) -> Section:
    panels = plots.training_plots(summary)
    large = [plot for plot in panels if not plot.name.startswith("loss-")] + plots.shift_plots(summary)
    small = [plot for plot in panels if plot.name.startswith("loss-")]
    blocks: list[Any] = [tables.stability_table(summary)]
    blocks += [Plots(large)] if large else []
    if small:
        blocks.append(Paragraph("Losses of different kinds have different scales, so each has a panel of its own."))
        blocks.append(Plots(small, small=True))
    return Section("stability", "Stability", blocks)


def _beta(summary: Mapping[str, Any]) -> Section | None:
    if not summary["beta"]:
        return None
    panels = plots.beta_plots(summary)
    large = [plot for plot in panels if not plot.name.startswith("beta-margin-")]
    small = [plot for plot in panels if plot.name.startswith("beta-margin-")]
    blocks: list[Any] = [tables.beta_table(summary)]
    blocks += [Plots(large)] if large else []
    blocks += [Plots(small, small=True)] if small else []
    return Section("beta", "Beta where it moves", blocks)


def _mixture(summary: Mapping[str, Any]) -> Section | None:
    if not summary["mixture"]:
        return None
    panels = plots.mixture_plots(summary)
    return Section(
        "mixture", "Instructions beside preferences", [tables.mixture_table(summary), *[Plots(panels)] * bool(panels)]
    )


def _texts(found: Collected | None, summary: Mapping[str, Any], samples: bool) -> Section | None:
    table = tables.text_table(summary)
    if not samples:
        left_out = Paragraph("Prompts and answers were left out of this report (`ledpo report --no-samples`).")
        return Section("texts", OF_FILES["texts"], [table, left_out] if table else [])
    columns = [(f"{label}, before training" if len(summary["bases"]) > 1 else "Before training", rows, "")
               for label, rows in _base_texts(found, summary)]  # fmt: skip
    for name in found.variants:
        run = _sample_run(found, name)
        if run is not None:
            columns.append((found.label(name), run.generations(), f"seed {run.seed}"))
    columns = [column for column in columns if column[1]]
    prompts = list(dict.fromkeys(str(row.get("prompt", "")) for _, rows, _ in columns for row in rows))
    blocks: list[Any] = [table] if table else []
    if prompts:
        how = "greedily" if found.evaluation.get("generations") else "drawn at temperature 1"
        text = f"What was answered, {how}, to the first {formatting.count(min(len(prompts), MOST_SAMPLES), 'prompt')}."
        blocks.append(Paragraph(f"{text} Written by the models, shown as plain text; hidden characters as [U+…]."))
    for place, prompt in enumerate(prompts[:MOST_SAMPLES], start=1):
        answers = []
        for label, rows, seed in columns:
            row = next((row for row in rows if str(row.get("prompt", "")) == prompt), None)
            if row is not None:
                cut = "ended by itself" if row.get("ended") else "cut off"
                remark = ", ".join(filter(None, (seed, f"{row.get('tokens', formatting.NONE)} tokens", cut)))
                answers.append((label, shortened(str(row.get("output", "")), MOST_CHARACTERS), remark))
        blocks.append(Samples(f"Prompt {place}", shortened(prompt, MOST_CHARACTERS), answers))
    return Section("texts", OF_FILES["texts"], blocks)


def _base_texts(found: Collected, summary: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    return [
        (base["model"].rstrip("/").rpartition("/")[2], found.bases[base["base"]].generations())
        for base in summary["bases"]
    ]


def _sample_run(found: Collected, variant: str) -> Run | None:
    """Return the run whose texts are shown: of the first seed that all variants have, or else its own first."""
    seeds = [{run.seed for run in found.finished(name)} for name in found.variants if found.finished(name)]
    common = set.intersection(*seeds) if seeds else set()
    runs = found.finished(variant)
    return next((run for run in runs if not common or run.seed == min(common)), None)


def _costs(summary: Mapping[str, Any]) -> Section:
    return Section("cost", "Cost", [tables.cost_table(summary)])


def _provenance(summary: Mapping[str, Any]) -> Section:
    return Section("provenance", "Provenance", [tables.provenance_table(summary), tables.runs_table(summary)])


def _failures(found: Collected) -> Section | None:
    blocks: list[Any] = []
    for run in found.runs:
        if run.error or run.phase in ("failed", "unreadable"):
            name = f"{found.label(run.variant)}, seed {run.seed}"
            blocks.append(Paragraph(f"{name}: {run.error or run.phase}", "warning"))
            tail = "\n".join(run.log_tail[-MOST_LOG_LINES:])[-MOST_LOG_CHARACTERS:]
            if tail:
                blocks.append(Verbatim(f"Last lines of the log of {name}", tail))
    return Section("failures", OF_FILES["failures"], blocks) if blocks else None


def _recipes(found: Collected) -> Section:
    blocks = []
    for name in found.variants:
        runs = found.finished(name)
        seed = f" (as run with seed {runs[0].seed})" if runs else ""
        for phase, recipe, resolved in found.recipes(name):
            of = f", phase {phase}" if phase else ""
            blocks.append(Verbatim(f"Recipe of {found.label(name)}{of}{seed}", _recipe_text(recipe, resolved)))
    for name, result in found.prerequisites.items():
        recipe = without_secrets(result.get("recipe") or {})
        blocks.append(Verbatim(f"Recipe of {name}, which was trained first", _recipe_text(recipe, {})))
    return Section("recipes", OF_FILES["recipes"], blocks)


def _recipe_text(recipe: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=1000)
    if resolved:
        filled = yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True, width=1000)
        text += "\n# filled in by the plugin\n" + "".join(f"# {line}\n" for line in filled.splitlines())
    return text


def _definitions(summary: Mapping[str, Any]) -> Section:
    names = [
        summary["primary"],
        *summary["secondary"],
        *(n for row in summary["metrics"].values() for n in row),
    ]
    rows = list(dict.fromkeys((formatting.term(name), formatting.meaning(name)) for name in names))
    rows.append(("nats", "units of natural logarithms: a probability that is e times as large is 1 nat more"))
    rows.append(("beta-free margin", "the same yardstick for every loss: no reward of a loss's own enters it"))
    rows.append(("before training", "the untrained model, measured in the same way; step 0 of the curves"))
    rows.append(("operations, FLOP", "floating point operations, estimated: 2 per weight, token and pass"))
    return Section("definitions", "What the metrics mean", [Terms(rows)])
