"""Whether a value is of the type its recipe key is annotated with; the host itself does not check.

Only annotations made of bool, int, float, str, None, mappings, lists of text, Literals and enumerations are
judged; any other is left to the host.
"""

import math
import re
import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from ledpo_plugin.common.problem import Problem, problem

from .reading import Reading, is_number

WHOLE_NUMBER = re.compile(r"[-+]?\d{1,300}")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
YES, NO = ("true", "yes", "t", "y", "1", "on"), ("false", "no", "f", "n", "0", "off")

# What the host or the plugin takes besides the annotated type.
_ALSO_ACCEPTED: Mapping[str, Any] = {
    "dataset_dir": dict,
    "resume_from_checkpoint": bool,
    "beta_head_widths": int,
    "reward_weights": float,
    **dict.fromkeys(("dataset", "eval_dataset", "lora_target", "oft_target", "additional_target"), list[str]),
    **dict.fromkeys(("galore_target", "apollo_target", "freeze_trainable_modules"), list[str]),
    "freeze_extra_modules": list[str],
}
_FILLED_IN = (
    "pref_beta",
    "simpo_gamma",
    "dpo_label_smoothing",
    "learning_rate",
)  # null: take the recommended value
_JUDGED_ELSEWHERE = ("stage", "pref_loss")  # the host's own lists of these are too short
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a mapping"}


def check_types(recipe: Reading) -> Iterator[Problem]:
    """Yield a problem for every value whose type its key does not take."""
    for key, value in recipe.raw.items():
        if key in _JUDGED_ELSEWHERE or key not in recipe.host_keys:
            continue
        found = _check_type(key, value, recipe.host_keys[key])
        if found is not None:
            yield found


def _check_type(key: str, value: object, annotation: Any) -> Problem | None:
    kinds = alternatives(annotation)
    if not kinds or (value is None and (type(None) in kinds or key in _FILLED_IN)):
        return None
    if key in _ALSO_ACCEPTED and _fits(value, _ALSO_ACCEPTED[key]):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return problem(key, value, "this is not a finite number", "write an ordinary number")
    if isinstance(value, int) and float in kinds and not isinstance(value, bool) and not is_number(value):
        return problem(key, value, "this number is too large", "write an ordinary number")
    if any(_fits(value, kind) for kind in kinds):
        return None
    wanted = _describe(kinds)
    return problem(key, value, f"{key} must be {wanted}, not {_kind_of(value)}", _advice(value, kinds, wanted))


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """Return the plain types an annotation allows, or () where it allows one that is not judged here."""
    parts = _flatten(annotation)
    if any(_is_enum(part) for part in parts):  # `SchedulerType | str`: the text is the enumeration's value
        parts = tuple(part for part in parts if part is not str)
    return parts if parts and all(_is_judged(part) for part in parts) else ()


def _flatten(annotation: Any) -> tuple[Any, ...]:
    if annotation is None:
        return (type(None),)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _flatten(member))
    if get_origin(annotation) is dict:
        return (dict,)
    return (annotation,)


def _is_judged(part: Any) -> bool:
    return part in (type(None), *_WORDS) or part == list[str] or get_origin(part) is Literal or _is_enum(part)


def _is_enum(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, Enum)


def _fits(value: object, kind: Any) -> bool:
    if _is_enum(kind) or get_origin(kind) is Literal:
        return isinstance(value, kind if _is_enum(kind) else ()) or any(
            type(value) is type(choice) and value == choice for choice in _choices(kind)
        )
    if kind == list[str]:
        return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if kind in (int, float):
        return not isinstance(value, bool) and isinstance(value, int if kind is int else int | float)
    return isinstance(value, Mapping if kind is dict else kind)


def _choices(kind: Any) -> tuple[Any, ...]:
    return tuple(member.value for member in kind) if _is_enum(kind) else get_args(kind)


def _describe(kinds: tuple[Any, ...]) -> str:
    words = []
    for kind in kinds:
        if _is_enum(kind) or get_origin(kind) is Literal:
            words.append("one of " + ", ".join(str(choice) for choice in _choices(kind)))
        elif kind is not type(None):
            words.append("a list of texts" if kind == list[str] else _WORDS[kind])
    return " or ".join(words)


def _kind_of(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    named = (
        (int, "a whole number"),
        (float, "a number with a fraction"),
        (str, "text"),
        (Mapping, "a mapping"),
    )
    if isinstance(value, float) and value.is_integer():
        return "a number with a decimal point or an exponent"
    return next((name for kind, name in named if isinstance(value, kind)), f"a {type(value).__name__}")


def _advice(value: object, kinds: tuple[Any, ...], wanted: str) -> str:
    if isinstance(value, str):
        return _advice_for_text(value.strip(), kinds) or f"write {wanted}"
    if bool in kinds and isinstance(value, int) and value in (0, 1):
        return f"write {str(value == 1).lower()}"
    if int in kinds and isinstance(value, float) and value.is_integer():
        return f"write {value:.0f}"
    if isinstance(value, bool) and any("no" in _choices(kind) for kind in kinds if _is_enum(kind)):
        return "write 'no' in quotes (YAML reads a bare no as false)" if value is False else f"write {wanted}"
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return f"write it in quotes: '{value}'"
    return f"write {wanted}" + ("" if value is not None else ", or remove the key")


def _advice_for_text(text: str, kinds: tuple[Any, ...]) -> str | None:
    if bool in kinds and text.lower() in YES + NO:
        return f"write {str(text.lower() in YES).lower()} without quotes"
    if int in kinds and WHOLE_NUMBER.fullmatch(text):
        return f"write {text} without quotes"
    if float in kinds and NUMBER.fullmatch(text):
        return f"write {float(text)!r} without quotes"
    choices = [
        str(choice) for kind in kinds if _is_enum(kind) or get_origin(kind) is Literal for choice in _choices(kind)
    ]
    near = get_close_matches(text, choices, n=1)
    return f"write {near[0]}" if near else None
