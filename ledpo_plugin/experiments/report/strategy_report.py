"""The part of a report on answers that runs drew: what they are worth, signs of gaming, efficiency, rollouts."""

from collections.abc import Mapping
from typing import Any

from ledpo_plugin.experiments.definition.metrics import OF_ANSWERS, OF_SCORES, SCORERS
from ledpo_plugin.experiments.measuring.operations import KINDS

from . import formatting, plots
from .blocks import Paragraph, Plots, Section, Table
from .formatting import NONE, SPACE
from .reward_hacking import COLUMNS

GOOD = 0.65  # accuracy on held-out pairs, below which a reward model's numbers are doubted aloud
NEARLY_ALL = 0.8  # share of the start's answers that are cut off, from which on their length says little


def doubts(summary: Mapping[str, Any]) -> list[str]:
    """Return what must be known of the reward models before any of their numbers is read."""
    texts = []
    for one in summary["prerequisites"]:
        if one["accuracy"] is not None and one["accuracy"] < GOOD:
            right = f"{one['accuracy']:.2f} of the held-out pairs ({one['evaluated_on']})"
            what = "what is gained or lost by it" if "reward" in one["roles"] else "its verdicts"
            texts.append(f"{one['label']}: it is right on {right}, where chance is 0.50: {what} may mean little.")
    return texts


def strategy_sections(summary: Mapping[str, Any]) -> list[Section]:
    """Return the sections; none where no answers were drawn."""
    if not summary["strategies"]:
        return []
    return [_answers(summary), _signs(summary), _efficiency(summary)]


def _answers(summary: Mapping[str, Any]) -> Section:
    blocks: list[Any] = [scores_table(summary), answers_table(summary)]
    drawn = plots.answer_plots(summary)
    blocks += [Plots(drawn)] if drawn else []
    return Section("drawn", "Answers drawn by the trained models", blocks)


def _signs(summary: Mapping[str, Any]) -> Section:
    found = summary["strategies"]
    blocks: list[Any] = [Paragraph(text) for text in found["words"].values()]
    if found["cut_off"] is not None and found["cut_off"] >= NEARLY_ALL:
        share = formatting.significant(found["cut_off"], 2)
        text = f"A share of {share} of the start's answers is cut off by the limit of tokens: that answers grow longer"
        blocks.append(Paragraph(f"{text} could hardly be seen here.", "warning"))
    if not any(name.startswith("judge/") for row in summary["metrics"].values() for name in row):
        text = "There is no judge beside the reward model, so that a reward that is gamed can look like a gain."
        blocks.append(Paragraph(text, "warning"))
    blocks.append(signs_table(summary))
    rollouts = rollouts_table(summary)
    blocks += [rollouts] if rollouts else []
    return Section("signs", "Signs of reward hacking", blocks)


def _efficiency(summary: Mapping[str, Any]) -> Section:
    blocks: list[Any] = [efficiency_table(summary)]
    kinds = kinds_table(summary)
    blocks += [kinds] if kinds else []
    needed = prerequisites_table(summary)
    blocks += [needed] if needed else []
    return Section("efficiency", "Efficiency, and where the operations went", blocks)


def scores_table(summary: Mapping[str, Any]) -> Table:
    """Return scores and win rates of drawn answers by every reward model."""
    names = [f"{role}/{short}" for role in SCORERS for short in OF_SCORES]
    names = [name for name in names if any(name in row for row in summary["metrics"].values())]
    who = "; ".join(f"{role}: {text}" for role, text in SCORERS.items() if any(n.startswith(role) for n in names))
    note = (
        f"Mean over seeds [95 % t-interval over seeds]. Win rates are against the start's answers to the same held-out "
        f"prompts, a tie one half. {who}. What each is worth is in the table of what was trained first."
    )
    return Table("Scores of drawn answers", ("Variant", *map(_head, names)), _rows(summary, names), note=note)


def answers_table(summary: Mapping[str, Any]) -> Table:
    """Return KL, entropy and text statistics of drawn answers."""
    names = [f"answers/{short}" for short in OF_ANSWERS]
    names = [name for name in names if any(name in row for row in summary["metrics"].values())]
    note = "Answers drawn at temperature 1 to held-out prompts, nothing cut from the distribution, the same random "
    note += "streams for all. Mean over seeds [95 % t-interval over seeds]."
    return Table("Drawn answers", ("Variant", *map(_head, names)), _rows(summary, names), note=note)


def signs_table(summary: Mapping[str, Any]) -> Table:
    """Return in how many seeds each sign was seen, and by which rules."""
    found = summary["strategies"]
    names = [name for name in COLUMNS if name in found["rules"]]
    rows = [
        (summary["labels"][variant], *(_met(row[name]) for name in ("reward", *names)))
        for variant, row in found["signs"].items()
    ]
    head = ("Variant", "Reward rose", *(COLUMNS[name] for name in names))
    told = {"reward": "Reward rose", **COLUMNS}
    rules = "; ".join(f"{told[name]}: {found['rules'][name]}" for name in ("reward", *names))
    note = (
        f"Seeds that show it, of those measured, at the end of training. {rules}. A sign that one of few seeds shows "
        "may be chance."
    )
    return Table("Seeds that show a sign", head, rows, note=note)


def rollouts_table(summary: Mapping[str, Any]) -> Table | None:
    """Return what training on rollouts logged; None where no variant did."""
    found = summary["strategies"]["rollouts"]
    if not found:
        return None
    names = list(dict.fromkeys(name for row in found.values() for name in row if name != "answers"))
    rows = [
        (
            summary["labels"][variant],
            formatting.spread(row["answers"]),
            *(formatting.estimate(row.get(name)) for name in names),
        )
        for variant, row in found.items()
    ]
    note = (
        "As logged while training, on training prompts: first and last are means of three rollouts. Mean over seeds "
        "[95 % t-interval over seeds]. kl/sequence: nats per answer; policy/entropy: mean surprise of the drawn "
        "tokens."
    )
    return Table("Rollouts while training", ("Variant", "Answers", *names), rows, note=note)


def efficiency_table(summary: Mapping[str, Any]) -> Table:
    """Return what every variant gained over the start, for its compute and its time."""
    found = summary["strategies"]["efficiency"]
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    head = ["Variant"]
    for name in names:
        head += [f"Gain in {name}", f"per{SPACE}PFLOP", f"per{SPACE}hour"]
    rows = []
    for variant, row in found.items():
        cells = [
            formatting.estimate((row.get(name) or {}).get(key), sign=True)
            for name in names
            for key in ("gain", "per_petaflop", "per_hour")
        ]
        rows.append((summary["labels"][variant], *cells))
    note = (
        "End less start; of training alone, what was trained first not counted. Mean over seeds [95 % t-interval over "
        "seeds]. Hours depend on the machine and on what else it did."
    )
    return Table("What was gained for what", tuple(head), rows, note=note)


def kinds_table(summary: Mapping[str, Any]) -> Table | None:
    """Return the operations of a run by kind; None where they are not known."""
    rows = []
    for variant, cost in summary["cost"].items():
        kinds = cost.get("by_kind")
        if kinds:
            total = sum(kinds.values())
            cells = [
                f"{formatting.flops(kinds[kind])} ({100 * kinds[kind] / total:.0f} %)" if kinds[kind] else "0"
                for kind in KINDS
            ]
            rows.append((summary["labels"][variant], *cells, formatting.flops(total)))
    if not rows:
        return None
    note = (
        "Mean of a run, estimated from shapes. Training: forward and backward of the policy. Reference: its passes, "
        "cached or not. Generation: prompts and drawn tokens of rollouts. Scoring: the policy's own log-probabilities "
        "of them. Reward: the reward model's passes."
    )
    head = ("Variant", "Training", "Reference", "Generation", "Scoring", "Reward", "All")
    return Table("Operations by kind", head, rows, note=note)


def prerequisites_table(summary: Mapping[str, Any]) -> Table | None:
    """Return what was trained before the runs; None where nothing was."""
    found = summary["prerequisites"]
    if not found:
        return None
    rows = []
    for one in found:
        used = "; ".join(summary["labels"].get(name, name) for name in one["used_by"]) or "measuring alone"
        held_out = NONE if one["accuracy"] is None else f"{one['accuracy']:.2f} ({one['evaluated_on']})"
        took = formatting.seconds(one["train_seconds"])
        rows.append(
            (
                one["label"],
                used,
                str(one["dataset"] or NONE),
                held_out,
                formatting.flops(one["flops"]),
                took,
                one["note"],
            )
        )
    note = (
        "Trained once, by LLaMA-Factory's stage rm, the same for all; its cost is in no run's budget. Only the named "
        "variants need it to train. Accuracy: share of held-out pairs whose chosen answer scores higher, which is what "
        "its verdicts are worth; one half is chance. Operations are estimated like those of the runs."
    )
    head = ("What", "Trained on by", "Its data", "Held-out accuracy", "Operations", "Training", "Note")
    return Table("What was trained first", head, rows, note=note, text_columns=(1, 2, 3, 6))


def _met(row: Mapping[str, Any]) -> str:
    return f"{len(row['met'])} of {len(row['judged'])}" if row["judged"] else NONE


def _head(name: str) -> str:
    return f"{name}{SPACE}/ {formatting.metric(name).unit}"


def _rows(summary: Mapping[str, Any], names: list[str]) -> list[tuple[str, ...]]:
    before = [
        ("Before training", *(formatting.significant(base["metrics"].get(name)) for name in names))
        for base in summary["bases"]
    ]
    return before + [
        (label, *(formatting.estimate(summary["metrics"][name].get(metric)) for metric in names))
        for name, label in summary["labels"].items()
    ]
