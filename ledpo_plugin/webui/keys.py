"""The recipe keys of the accordion "LEDPO": each one's widget, place, and the stages, losses and modes it is for.

All of the plugin's keys are here by themselves, read from `ledpo_plugin.hparams`. Of LLaMA-Factory's own keys those are
named that act in the plugin's stages and that the train tab has no widget for, or one of the wrong width (its
`pref_beta` ends at 1, its `pref_loss` knows six losses).

What only the checks need is imported where they are called: the UI starts without it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_type_hints

from ledpo_plugin.facts import LOSSES, REWARDS, readers
from ledpo_plugin.hparams import LedpoArguments, argument_fields
from ledpo_plugin.recipes import rollouts
from ledpo_plugin.recipes.combinations import idle_keys
from ledpo_plugin.recipes.ranges import BOUNDS
from ledpo_plugin.recipes.reading import is_number, loss_of, mode_of, stage_of
from ledpo_plugin.recipes.types import alternatives
from ledpo_plugin.stages import Stage

# What other keys act by, beside the stage; a form with these values says which of the others are shown.
DECIDING = (
    *("pref_loss", "beta_mode", "advantage_estimator", "kl_control", "rollout_pairs"),
    *("reward_model", "reward_model_type"),
)
AUTO = ""  # the value of a dropdown whose key is left out of the recipe
SECTIONS = ("loss", "beta", "mixture", "rollout", "speed", "other")

Widget = Literal["dropdown", "checkbox", "slider", "number", "text", "datasets"]


@dataclass(frozen=True)
class Key:
    """One recipe key as the form shows it; a value of None, False or "" leaves it out of the recipe."""

    name: str
    section: str
    widget: Widget
    default: Any
    choices: tuple[Any, ...] = ()
    several: bool = False  # a dropdown that also takes choices separated by commas
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    help: str = ""

    @property
    def limits(self) -> str:
        """Return the bounds in signs, which every language reads; "" where there are none."""
        low = "" if self.low is None else f"{'>' if self.open_low else '≥'} {self.low:g}"
        high = "" if self.high is None else f"{'<' if self.open_high else '≤'} {self.high:g}"
        return ", ".join(part for part in (low, high) if part)

    @property
    def step(self) -> float:
        """Return the step of a slider on which the bounds and the default all lie."""
        numbers = (self.low, self.high, self.default)
        places = max(2, *(len(f"{number:.6f}".rstrip("0").partition(".")[2]) for number in numbers))
        return round(10.0**-places, places)


_REWARD = "Folder of a reward model or a LEDPO run, address of a server, or module:function; several by commas."
_KIND = "What reward_model is; for several, separated by commas."

# LLaMA-Factory's keys: name, section, widget, choices, help. Left out of the recipe unless something is entered.
_HOST = (
    ("pref_loss", "loss", "dropdown", (), "The loss."),
    ("pref_beta", "loss", "number", (), "Beta, or where a learned beta starts. Left out: the loss's recommended one."),
    ("dpo_label_smoothing", "loss", "number", (), "Share of pairs that are taken to be labelled the wrong way round."),
    ("simpo_gamma", "loss", "number", (), "Margin that the loss asks for. Left out: the loss's recommended one."),
    ("pref_ftx", "loss", "number", (), "Weight of the chosen answer's NLL, added to the loss."),
    ("pref_bco_weight", "loss", "number", (), "Weight of the BCO loss, added to the loss."),
    ("kto_chosen_weight", "loss", "number", (), "Weight of the desirable answers."),
    ("kto_rejected_weight", "loss", "number", (), "Weight of the undesirable answers."),
    ("ld_alpha", "loss", "number", (), "LD-DPO: weight of what the longer answer has beyond the shorter one's length."),
    ("ref_model", "loss", "text", (), "Folder or name of the reference. Left out: the model without its adapter."),
    ("ref_model_adapters", "loss", "text", (), "Folders of the reference's adapters."),
    ("reward_model", "rollout", "text", (), _REWARD),
    ("reward_model_type", "rollout", "dropdown", tuple(REWARDS), _KIND),
    ("ppo_buffer_size", "rollout", "number", (), "Batches of prompts in a rollout."),
    ("ppo_epochs", "rollout", "number", (), "How often a rollout is trained on."),
    ("ppo_target", "rollout", "number", (), "KL per answer, in nats, that kl_control adaptive holds to."),
    ("ppo_score_norm", "rollout", "checkbox", (), "Divide rewards by their running standard deviation."),
    ("ppo_whiten_rewards", "rollout", "checkbox", (), "Whiten the rewards before the advantages are computed."),
    ("max_new_tokens", "rollout", "number", (), "Longest answer that is generated, in tokens."),
    ("temperature", "rollout", "number", (), "Temperature of the answers that are generated."),
    ("top_p", "rollout", "number", (), "Share of probability that the answers' tokens are drawn from."),
)
_ROLLOUT_ONLY = frozenset(row[0] for row in _HOST if row[1] == "rollout")


def pairwise_losses() -> tuple[str, ...]:
    """Return the losses that `pref_loss` chooses among."""
    return tuple(name for name, loss in LOSSES.items() if loss.data == "pairs")


@cache
def form_keys() -> Mapping[str, Key]:
    """Return every key of the form, section by section."""
    hints = get_type_hints(LedpoArguments)
    keys = [*_host_keys(), *(_plugin_key(name, hints) for name in argument_fields())]
    return {key.name: key for section in SECTIONS for key in keys if key.section == section}


def _host_keys() -> Iterator[Key]:
    bounds = {item.key: item for item in BOUNDS}
    for name, section, widget, choices, help in _HOST:
        facts: dict[str, Any] = {}
        if name in bounds:
            row = bounds[name]
            facts = {"low": _finite(row.low), "high": _finite(row.high)}
            facts |= {"open_low": row.open_low, "open_high": row.open_high}
        default: Any = False if widget == "checkbox" else AUTO if widget in ("dropdown", "text") else None
        if name == "pref_loss":
            choices, default = pairwise_losses(), "sigmoid"
        several = name == "reward_model_type"
        yield Key(name, section, widget, default, tuple(choices), several, help=help, **facts)


def _finite(bound: float) -> float | None:
    return bound if abs(bound) < float("inf") else None


def _plugin_key(name: str, hints: Mapping[str, Any]) -> Key:
    field = argument_fields()[name]
    facts, default = field.metadata, field.default
    kinds = alternatives(hints[name])
    numeric = int in kinds or float in kinds
    low, high = facts.get("low"), facts.get("high")
    widget: Widget
    if bool in kinds:
        widget = "checkbox"
    elif "choices" in facts:
        widget = "dropdown"
    elif name.endswith("_dataset"):
        widget = "datasets"
    elif numeric and low is not None and high is not None and is_number(default):
        widget = "slider"
    else:
        widget = "number" if numeric else "text"
    blank = {"dropdown": AUTO, "text": AUTO, "datasets": []}
    return Key(
        name,
        _section(name, facts),
        widget,
        blank.get(widget) if default is None else default,
        tuple(facts.get("choices", ())),
        low=low,
        high=high,
        open_low=facts.get("open_low", False),
        help=facts["help"],
    )


def _section(name: str, facts: Mapping[str, Any]) -> str:
    if "stages" in facts:
        return "rollout"
    if name in readers() or name == "reference_adapter":
        return "loss"
    if "modes" in facts or name == "beta_mode":
        return "beta"
    if name.startswith(("sft_", "budget_")):
        return "mixture"
    return "speed" if name.startswith(("disable_", "fill_")) else "other"


def understood(stage: str | None, values: Mapping[str, Any]) -> tuple[Stage | None, Any, str | None]:
    """Return stage, loss and beta mode that a form with these values means; None where one cannot be told."""
    raw = {"stage": stage, "beta_mode": values.get("beta_mode") or None}
    found = stage_of(raw)
    if found is not None and found.any_loss:
        raw["pref_loss"] = values.get("pref_loss") or None
    loss = loss_of(raw, found)
    return found, loss, mode_of(raw, found, loss)


def acting(stage: str | None, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that act at a stage with what else is chosen, in the form's order.

    Args:
        stage: a stage's name; none act where it is not the plugin's.
        values: what the form says; those of `DECIDING` are read.
    """
    found, loss, mode = understood(stage, values)
    if found is None:
        return ()
    if loss is None or mode is None:
        return tuple(name for name in form_keys() if name in ("pref_loss", "beta_mode"))
    from ledpo_plugin.recipes import rewards

    chosen = {name: values.get(name) or None for name in DECIDING}
    idle = {*idle_keys(found, loss, mode), *rollouts.idle_in(chosen, found, mode)}
    idle |= set(rewards.idle_in(chosen)) if found.rollouts else _ROLLOUT_ONLY
    if not loss.label_smoothing:
        idle.add("dpo_label_smoothing")
    if not found.any_loss:
        idle.add("pref_loss")
    return tuple(name for name in form_keys() if name not in idle)


def entered(stage: str | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a form says as recipe keys: those that act and were given a value, also where it is the default.

    A default stands in a form without anybody having chosen it. So of those only the ones are kept that the plugin
    would itself fill in, and a form that is left as it is never has a key that acts with none of what is chosen.
    """
    from ledpo_plugin.recipes.check import resolve_recipe

    said: dict[str, Any] = {}
    for name in acting(stage, values):
        value = values.get(name)
        if isinstance(value, list | tuple):
            value = ",".join(str(item) for item in value)
        if isinstance(value, str):
            value = value.strip()
        if value is not None and value is not False and value != AUTO:
            said[name] = value
    usual = {name for name, value in said.items() if value == form_keys()[name].default}
    chosen = {name: value for name, value in said.items() if name not in usual}
    try:
        kept = resolve_recipe({"stage": stage, **chosen})
    except (KeyError, TypeError, ValueError):  # the check of the recipe says what is wrong with what was chosen
        return said
    return {name: value for name, value in said.items() if name in chosen or name in kept}
