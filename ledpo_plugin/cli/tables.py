"""The documents' tables, made from those of the code: `python -m ledpo_plugin.cli.tables FILE...`; `make tables`.

In a document a table stands between `<!-- table: NAME -->` and `<!-- /table -->`; `<!-- table: NAME zh -->` asks for
Chinese headings. Names of keys, formulas and sources stay as they are in every language.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ledpo_plugin.checked_against import BETA_CHECKS, KEY_CHECKS, LOSS_CHECKS, ROLLOUT_CHECKS, Check
from ledpo_plugin.common.lookup import lookup
from ledpo_plugin.experiments.definition.metrics import (
    OF_ANSWERS,
    OF_GENERATIONS,
    OF_INSTRUCTIONS,
    OF_PAIRS,
    OF_SCORES,
)
from ledpo_plugin.experiments.report.formatting import flops
from ledpo_plugin.facts import BETAS, LOSSES, Loss, is_learned, readers
from ledpo_plugin.hparams import argument_fields
from ledpo_plugin.stages import STAGES

RECIPES = Path(__file__).parents[2] / "yaml_recipes"
BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<name>\w+)(?: (?P<lang>\w+))? -->\n).*?(?P<close><!-- /table -->)", re.DOTALL
)

# English, as the functions below write it -> Chinese.
CHINESE = MappingProxyType(
    {
        "Stage": "阶段",
        "Loss": "损失",
        "Default `beta_mode`": "默认 `beta_mode`",
        "Data": "数据",
        "Formula": "公式",
        "Reference": "参考模型",
        "Per token": "按长度归一",
        "Smoothing": "标签平滑",
        "Beta modes": "可用的 beta 模式",
        "Recommended": "推荐值",
        "Learning rate": "学习率",
        "Source": "出处",
        "Learned": "可学习",
        "What it does": "作用",
        "Key": "键",
        "Default": "默认值",
        "Values": "取值",
        "Meaning": "含义",
        "Acts with": "何时起作用",
        "yes": "是",
        "no": "否",
        "pairs": "偏好对",
        "unpaired": "单条回答",
        "prompts": "提示",
        "pairs and prompts": "偏好对和提示",
        "rewards": "奖励",
        "all": "全部",
        "learned": "可学习的",
        "every LEDPO stage": "所有 LEDPO 阶段",
    }
)
LANGUAGES: Mapping[str, Mapping[str, str]] = MappingProxyType({"en": {}, "zh": CHINESE})


def stages_table(lang: str = "en") -> str:
    """Return the table of training stages."""
    say = _words(lang)
    rows = []
    for stage in STAGES.values():
        default = f"`{stage.default_loss}`"
        choice = {"en": f"`pref_loss`, or {default}", "zh": f"`pref_loss`，默认 {default}"}[lang]
        rows.append(
            (
                f"`{stage.name}`",
                say("rewards") if stage.data == "prompts" else choice if stage.any_loss else default,
                f"`{stage.default_beta_mode}`",
                say("pairs and prompts") if stage.rollouts and stage.data == "pairs" else say(stage.data),
            )
        )
    return _table([say(title) for title in ("Stage", "Loss", "Default `beta_mode`", "Data")], rows)


def losses_table(lang: str = "en") -> str:
    """Return the table of losses, with the values that a recipe gets where it leaves them out."""
    say = _words(lang)
    titles = ("Loss", "Formula", "Data", "Reference", "Per token", "Smoothing", "Beta modes", "Recommended")
    rows = []
    for loss in LOSSES.values():
        values = {key: value for key, value in loss.recommended.items() if key != "learning_rate"}
        rows.append(
            (
                f"`{loss.name}`",
                f"`{loss.formula}`",
                say(loss.data),
                say(_yes(loss.needs_reference)),
                say(_yes(loss.length_normalised)),
                say(_yes(loss.label_smoothing)),
                _modes(loss, say),
                ", ".join(f"`{key}: {_number(value)}`" for key, value in values.items()),
                _number(loss.recommended["learning_rate"]),
                loss.source,
            )
        )
    return _table([say(title) for title in (*titles, "Learning rate", "Source")], rows)


def betas_table(lang: str = "en") -> str:
    """Return the table of beta strategies."""
    say = _words(lang)
    rows = [
        (
            f"`{mode.name}`",
            f"`{mode.formula}`",
            say(_yes(mode.kind == "learned")),
            say(_yes(mode.needs_reference)),
            mode.summary,
            mode.source,
        )
        for mode in BETAS.values()
    ]
    titles = ("`beta_mode`", "Formula", "Learned", "Reference", "What it does", "Source")
    return _table([say(title) for title in titles], rows)


def keys_table(lang: str = "en") -> str:
    """Return the table of the recipe keys that the plugin adds."""
    say = _words(lang)
    rows = [
        (f"`{key}`", _default(field.default), _values(field), field.metadata["help"], _acts_with(field, say))
        for key, field in argument_fields().items()
    ]
    return _table([say(title) for title in ("Key", "Default", "Values", "Meaning", "Acts with")], rows)


def checks_table(checks: Mapping[str, Check]) -> str:
    """Return the table of what was compared with what, in English."""
    rows = [
        (f"`{name}`", check.read, check.differs or "–", ", ".join(f"`{test}`" for test in check.tests))
        for name, check in checks.items()
    ]
    return _table(("Name", "Checked against", "Where others differ", "Tests"), rows)


def metrics_table() -> str:
    """Return the table of everything that is measured of an experiment's runs, in English."""
    kinds = (
        ("held-out pairs", OF_PAIRS),
        ("held-out instructions", OF_INSTRUCTIONS),
        ("greedy answers (`gen/`)", OF_GENERATIONS),
        ("drawn answers (`answers/`)", OF_ANSWERS),
        ("scores of drawn answers", OF_SCORES),
    )
    better = {1: "more", -1: "less", 0: "–"}
    rows = [
        (f"`{name}`", kind, row.unit, better[row.better], row.meaning)
        for kind, metrics in kinds
        for name, row in metrics.items()
    ]
    return _table(("Metric", "Of", "Unit", "Better", "What it is"), rows)


def experiments_table() -> str:
    """Return the index of `yaml_recipes/`, in English: each experiment with its question, sizes and status.

    Raises:
        FileNotFoundError: there is no `yaml_recipes/` beside the package: it is not that of a checkout.
    """
    found = sorted(RECIPES.glob("*/experiment.yaml"))
    if not found:
        raise FileNotFoundError(f"{RECIPES} holds no experiment. Run this in a checkout of the repository.")
    rows = []
    for path in found:
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
        sizes = []
        for profile, own in definition["profiles"].items():
            ((unit, amount),) = own["budget"].items()
            size = f"{len(own.get('variants') or definition['variants'])} x {len(own['seeds'])}"
            shown = flops(float(amount)).replace("\u00a0", " ") if unit == "flops" else f"{amount} {unit}"
            sizes.append(f"{profile}: {size}, {shown}")
        name = path.parent.name
        question = " ".join(definition["question"].split())
        rows.append((f"[{name}]({name}/experiment.yaml)", question, "; ".join(sizes), definition["status"]))
    return _table(("Experiment", "Question", "Size", "Status"), rows)


def _checked(checks: Mapping[str, Check]) -> Callable[[str], str]:
    return lambda lang: checks_table(checks)


# Those of README.md and the pages in docs/, in English and Chinese.
TABLES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"stages": stages_table, "losses": losses_table, "betas": betas_table, "keys": keys_table}
)
# Those of docs/checked_against.md, which is in English alone.
CHECK_TABLES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {
        "checked_losses": _checked(LOSS_CHECKS),
        "checked_betas": _checked(BETA_CHECKS),
        "checked_keys": _checked(KEY_CHECKS),
        "checked_rollouts": _checked(ROLLOUT_CHECKS),
    }
)
# Those of docs/metrics.md and yaml_recipes/README.md, in English, too.
OTHER_TABLES: Mapping[str, Callable[[str], str]] = MappingProxyType(
    {"metrics": lambda lang: metrics_table(), "experiments": lambda lang: experiments_table()}
)


def refresh(text: str) -> str:
    """Return the document with every table between markers made anew.

    Raises:
        KeyError: a marker names an unknown table or language.
        ValueError: a marker is not closed.
    """
    if text.count("<!-- table: ") != len(BLOCK.findall(text)):
        raise ValueError("A marker '<!-- table: NAME -->' is misspelt or has no '<!-- /table -->'.")
    return BLOCK.sub(_made_anew, text)


def _made_anew(block: re.Match[str]) -> str:
    make = lookup({**TABLES, **CHECK_TABLES, **OTHER_TABLES}, "table", block["name"])
    language = block["lang"] or "en"
    lookup(LANGUAGES, "language", language)
    return f"{block['open']}{make(language)}{block['close']}"


def _words(lang: str) -> Callable[[str], str]:
    words = lookup(LANGUAGES, "language", lang)
    return lambda english: words.get(english, english)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n" for cells in lines)


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _number(value: float) -> str:
    """Return 0.1, 50, 5e-7: as short as it goes, small numbers as recipes write them."""
    text = f"{value:g}" if value == 0 or abs(value) >= 1e-3 else f"{value:e}"
    mantissa, separator, exponent = text.partition("e")
    if not separator:
        return text
    return f"{float(mantissa):g}e{int(exponent)}"


def _modes(loss: Loss, say: Callable[[str], str]) -> str:
    if loss.beta_modes == set(BETAS):
        return say("all")
    named = [f"`{mode}`" for mode in BETAS if mode in loss.beta_modes and not is_learned(mode)]
    return ", ".join([*named, *[say("learned")] * ("learned" in loss.admits)])


def _default(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value if isinstance(value, str) else _number(value)}`"


def _values(field: Field) -> str:
    """Return what the key may be: its choices, or its bounds."""
    facts = field.metadata
    if "choices" in facts:
        return ", ".join(f"`{choice}`" for choice in facts["choices"])
    if isinstance(field.default, bool):
        return "`true`, `false`"
    low, high = facts.get("low"), facts.get("high")
    bounds = [] if low is None else [f"{'>' if facts.get('open_low') else '≥'} {_number(low)}"]
    bounds += [] if high is None else [f"≤ {_number(high)}"]
    return ", ".join(bounds) or "–"


def _acts_with(field: Field, say: Callable[[str], str]) -> str:
    facts = {**field.metadata, "losses": losses} if (losses := readers().get(field.name)) else field.metadata
    for fact, key in (("modes", "beta_mode"), ("losses", "pref_loss"), ("stages", "stage")):
        if fact in facts:
            return f"`{key}`: " + ", ".join(facts[fact])
    return say(facts["data"]) if "data" in facts else say("every LEDPO stage")


def main(paths: Sequence[str]) -> int:
    """Rewrite the documents whose tables are out of date, and say which."""
    for path in map(Path, paths):
        text = path.read_text(encoding="utf-8")
        fresh = refresh(text)
        if fresh != text:
            path.write_text(fresh, encoding="utf-8")
        if BLOCK.search(text):
            print(f"{path}: {'up to date' if fresh == text else 'rewritten'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
