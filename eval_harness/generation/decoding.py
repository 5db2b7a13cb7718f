"""How answers are decoded: one checked value for every setting, and the rule that sets one of them from beta(x)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ledpo_plugin.common.files import read_yaml
from ledpo_plugin.common.problem import Problem, listing, problem, unknown

METHODS = ("greedy", "beam", "sample")
OF_SAMPLING = ("temperature", "top_p", "top_k", "typical_p", "min_p", "adaptive")
OF_BEAMS = ("num_beams", "length_penalty")
ADAPTED = ("temperature", "top_p", "min_p")
CENTRES = ("beta0", "mean")
SAME = 1e-6  # deviation of ln beta below which betas differ by rounding alone
# key -> lowest and highest value, and whether the lowest itself is allowed.
RANGES: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 100.0, False),
    "top_p": (0.0, 1.0, False),
    "typical_p": (0.0, 0.999999, False),  # 1 would filter nothing
    "min_p": (0.0, 1.0, True),
    "top_k": (1, 1_000_000, True),
    "num_beams": (2, 64, True),
    "length_penalty": (-10.0, 10.0, True),
    "repetition_penalty": (0.0, 10.0, False),
}
WHOLE = ("top_k", "num_beams")


class DecodingError(ValueError):
    """Settings that cannot be decoded with; the message lists every problem."""


@dataclass(frozen=True)
class Adaptive:
    """Which setting follows beta(x), and how; see `adapted`."""

    of: str  # temperature, top_p or min_p
    power: float = 1.0
    spread: float | None = None  # in place of power: the deviation of the setting's logarithm over the prompts
    low: float | None = None  # bounds of the setting; left out: a quarter and four times its value, within its range
    high: float | None = None
    centre: str = "mean"  # the beta at which the setting has its value: the run's beta0, or the prompts' geometric mean


@dataclass(frozen=True)
class Decoding:
    """Settings of decoding; None: not used. Filters act in transformers' order, temperature first."""

    method: str = "greedy"
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    min_p: float | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    repetition_penalty: float | None = None
    adaptive: Adaptive | None = None

    @property
    def draws(self) -> bool:
        """Whether another seed gives another answer."""
        return self.method == "sample"

    def settings(self) -> dict[str, Any]:
        """Return what is set, as `read_decoding` takes it."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_decoding(given: "Mapping[str, Any] | Decoding | str | Path") -> Decoding:
    """Return settings from a mapping or a YAML file, checked.

    Raises:
        DecodingError: with everything that is wrong with them.
    """
    if isinstance(given, Decoding):
        return given
    if isinstance(given, str | Path):
        given = read_yaml(Path(given))
    problems: list[Problem] = []
    if not isinstance(given, Mapping):
        raise DecodingError(
            listing("The decoding", [problem("decoding", given, "a mapping of keys to values is expected here",
                                             "write for example {method: greedy}")], "nothing was generated")
        )  # fmt: skip
    known = [item.name for item in fields(Decoding)]
    problems += [unknown(str(key), key, "key of a decoding", known) for key in given if key not in known]
    values = {key: value for key, value in given.items() if key in known and value is not None}
    method = values.get("method", "greedy")
    if method not in METHODS:
        problems.append(unknown("method", method, "method of decoding", METHODS))
    for key in RANGES:
        if key in values:
            problems += _out_of_range(key, values[key])
    problems += _combinations(method, values)
    adaptive = None
    if "adaptive" in values:
        adaptive, found = _adaptive(values["adaptive"], values)
        problems += found
    if problems:
        raise DecodingError(listing("The decoding", problems, "nothing was generated"))
    kinds = {key: int(values[key]) if key in WHOLE else float(values[key]) for key in RANGES if key in values}
    return Decoding(**values | kinds | {"method": method, "adaptive": adaptive})


def _out_of_range(key: str, value: Any) -> list[Problem]:
    low, high, closed = RANGES[key]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    good = number and (low <= value if closed else low < value) and value <= high
    good = good and (key not in WHOLE or value == int(value))
    if good:
        return []
    what = "a whole number" if key in WHOLE else "a number"
    bound = "from" if closed else "above"
    return [problem(key, value, f"{what} {bound} {low:g} up to {high:g} is expected here", f"set {key} to one")]


def _combinations(method: str, values: Mapping[str, Any]) -> list[Problem]:
    found = []
    for key in OF_SAMPLING:
        if key in values and method in ("greedy", "beam"):
            fix = f"set method: sample, or remove {key}"
            found.append(problem(key, values[key], f"method {method} takes the likeliest tokens and draws none", fix))
    for key in OF_BEAMS:
        if key in values and method != "beam":
            found.append(
                problem(key, values[key], f"method {method} has no beams", f"set method: beam, or remove {key}")
            )
    if method == "beam" and "num_beams" not in values:
        found.append(problem("num_beams", None, "beam search needs to know how many beams", "set num_beams: 4"))
    return found


def _adaptive(value: Any, values: Mapping[str, Any]) -> tuple[Adaptive | None, list[Problem]]:
    known = [item.name for item in fields(Adaptive)]
    if not isinstance(value, Mapping):
        fix = "write adaptive: {of: temperature}"
        return None, [problem("adaptive", value, "a mapping of keys to values is expected here", fix)]
    found = [unknown(f"adaptive.{key}", key, "key", known) for key in value if key not in known]
    own = {key: item for key, item in value.items() if key in known}
    of = own.get("of")
    if of not in ADAPTED:
        return None, [*found, unknown("adaptive.of", of, "setting that can follow beta", ADAPTED)]
    if own.get("centre", "mean") not in CENTRES:
        found.append(unknown("adaptive.centre", own["centre"], "centre", CENTRES))
    if of not in values:
        found.append(problem(of, None, f"adaptive.of is {of}, which then needs a value to start from", f"set {of}"))
    elif not found and not _out_of_range(of, values[of]) and values[of] == 0:
        found.append(problem(of, values[of], "a multiple of 0 is 0 whatever beta is", f"set {of} above 0"))
    power = own.get("power", 1.0)
    if isinstance(power, bool) or not isinstance(power, int | float) or not math.isfinite(power):
        found.append(problem("adaptive.power", power, "a number is expected here", "set 1, or 0 for no effect"))
    if own.get("spread") is not None:
        if not _positive(own["spread"]):
            found.append(problem("adaptive.spread", own["spread"], "a number above 0 is expected here", "set 0.3"))
        if own.get("power") is not None or own.get("centre", "mean") != "mean":
            why = "it decides the power by itself, around the mean"
            found.append(problem("adaptive.spread", own["spread"], why, "remove power and centre, or spread"))
    for key in ("low", "high"):
        if own.get(key) is not None:
            found += [Problem(f"adaptive.{key}", bad.value, bad.message) for bad in _out_of_range(of, own[key])]
    if found:
        return None, found
    start, (least, most, _) = values[of], RANGES[of]
    low = own.get("low") if own.get("low") is not None else max(start / 4, least)
    high = own.get("high") if own.get("high") is not None else min(start * 4, most)
    if not low <= start <= high:
        why = f"{of} is {start:g}, outside of adaptive.low {low:g} and adaptive.high {high:g}"
        return None, [problem("adaptive", f"{low:g} to {high:g}", why, f"have low <= {of} <= high")]
    spread = None if own.get("spread") is None else float(own["spread"])
    return Adaptive(of, float(power), spread, float(low), float(high), own.get("centre", "mean")), []


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def adapted(decoding: Decoding, betas: Sequence[float], beta0: float) -> list[float]:
    """Return the value of the adapted setting for each prompt.

    temperature and top_p: value (centre / beta(x))^power; min_p: value (beta(x) / centre)^power; both within low and
    high. So a prompt at which the head holds the policy close (high beta) is decoded close to the likeliest tokens,
    and one at which it lets go is explored. LEDPO's own; power 0 is the fixed setting. With `spread`, the power is
    spread over the standard deviation of ln beta(x), so that a head that hardly differs between prompts acts as much as
    one that does; where all betas are the same, nothing is adapted.

    Args:
        decoding: with `adaptive`.
        betas: beta(x) of each prompt, positive.
        beta0: of the run; the centre, if that is `beta0`.

    Raises:
        ValueError: a beta is not positive and finite.
    """
    rule = decoding.adaptive
    if not all(beta > 0 and math.isfinite(beta) for beta in betas):
        raise ValueError("A beta is not a positive number, so that no setting follows from it. Check the run's head.")
    if not betas:
        return []
    centre = beta0 if rule.centre == "beta0" else math.exp(math.fsum(map(math.log, betas)) / len(betas))
    sign = 1 if rule.of == "min_p" else -1
    start = getattr(decoding, rule.of)
    power = rule.power
    if rule.spread is not None:
        logs = [math.log(beta / centre) for beta in betas]
        deviation = math.sqrt(math.fsum(log * log for log in logs) / len(logs))
        power = rule.spread / deviation if deviation > SAME else 0.0
    exponents = [sign * power * math.log(beta / centre) for beta in betas]
    return [min(rule.high, max(rule.low, start * math.exp(min(50.0, max(-50.0, e))))) for e in exponents]
