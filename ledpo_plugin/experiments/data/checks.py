"""Check answers of the medical and finance domains from the texts alone: no part of the generators is used here."""

import math
import re
from collections.abc import Callable

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
Rule = Callable[[list[float], str], float]  # the numbers of the prompt, in order, and the prompt -> the right result


def _dose(n: list[float], q: str) -> float:
    day = n[0] * n[1]
    return day * n[3] if "in all?" in q else day if "per day?" in q else day / n[2]


def _half_life(n: list[float], q: str) -> float:
    left = n[1] * math.exp(-math.log(2) * n[2] / n[0])
    return n[1] - left if "gone" in q else left


def _draw_up(n: list[float], q: str) -> float:
    per_ml = n[0] / n[1]
    return per_ml if "concentration" in q else n[1] - n[2] / per_ml if "stay" in q else n[2] / per_ml


def _loan(n: list[float], q: str) -> float:
    principal, growth, years = n[0], 1 + n[1] / 100, int(n[2])
    payment = principal / sum(growth**-year for year in range(1, years + 1))
    return payment * years if "in all" in q else payment


def _fluid(n: list[float], q: str) -> float:
    kilos = n[0]
    hourly = 4 * min(kilos, 10) + 2 * min(max(kilos - 10, 0), 10) + max(kilos - 20, 0)
    return hourly * 24 if "per day" in q else hourly


RULES: dict[str, Rule] = {
    "weight_dose": _dose,
    "tablets": lambda n, q: n[0] / n[3] * (n[1] * n[2] if "in all" in q else n[1] if "per day?" in q else 1),
    "infusion_rate": lambda n, q: n[0] / n[1] * (n[2] if "have run until" in q else 1 / 60 if "per minute" in q else 1),
    "drops": lambda n, q: n[0] / n[1] * n[2] * (1 / 60 if "per minute" in q else 1),
    "draw_up": _draw_up,
    "bmi": lambda n, q: n[2] * n[0] * n[0] if "which weight" in q else n[1] / (n[0] * n[0]),
    "gram_units": lambda n, q: n[0] * 1000 / (n[1] if "how many doses" in q else 1),
    "pounds": lambda n, q: n[0] / n[1] * (n[2] if "the dose?" in q else 1),
    "fever": lambda n, q: n[0] * 1.8 + 32,
    "glucose": lambda n, q: n[0] * n[1] - (n[2] if "above the limit" in q else 0),
    "creatinine_clearance": lambda n, q: (140 - n[0]) * n[1] / (72 * n[2]) * (0.85 if "woman" in q else 1),
    "half_life": _half_life,
    "weight_rate": lambda n, q: n[3] * n[2] * 0.06 / (n[0] / n[1] if "ml per hour" in q else 1),
    "arterial_pressure": lambda n, q: n[0] - n[1] if "pulse" in q else n[1] + (n[0] - n[1]) / 3,
    "anion_gap": lambda n, q: n[0] - n[2] - n[3] + (n[1] if "with potassium" in q else 0),
    "corrected_calcium": lambda n, q: n[0] + 3.2 - 0.8 * n[1],
    "bottle": lambda n, q: (
        n[1] * n[2] * n[3] if "are used" in q else n[0] / n[1] / (1 if "how many doses" in q else n[2])
    ),
    "oxygen": lambda n, q: n[0] - n[1] * n[2] if "left now" in q else n[0] / n[1] / (60 if "hours" in q else 1),
    "loading_dose": lambda n, q: n[0] * n[1] * (n[2] if "loading" in q else 1),
    "heart_rate": lambda n, q: (220 - n[0]) * (n[1] / 100 if "target" in q else 1),
    "body_surface": lambda n, q: math.sqrt(n[0] * n[1]) / 60 * (n[2] if "the dose," in q else 1),
    "maintenance_fluid": _fluid,
    "simple_interest": lambda n, q: n[0] * n[1] * n[2] / 100 + (n[0] if "balance" in q else 0),
    "compound_interest": lambda n, q: n[0] * math.exp(n[2] * math.log1p(n[1] / 100)) - (n[0] if "earned" in q else 0),
    "percent_change": lambda n, q: 100 * n[1] / n[0] - 100,
    "margin": lambda n, q: 100 - 100 * n[0] / n[1] if "margin" in q else 100 * n[1] / n[0] - 100,
    "currency": lambda n, q: n[1] * n[0] if "how many dollars" in q else n[1] / n[0],
    "annuity": _loan,
    "present_value": lambda n, q: n[0] * math.exp(-n[1] * math.log1p(n[2] / 100)),
    "sales_tax": lambda n, q: n[0] * n[1] / 100 + (n[0] if "with tax" in q else 0),
    "discount": lambda n, q: n[0] * (100 - n[1]) * (100 - n[2]) / 10_000,
    "break_even": lambda n, q: n[0] / (n[1] - n[2]) * (n[1] if "revenue" in q else 1),
    "dividend": lambda n, q: n[0] / n[2] if "price-earnings" in q else 100 * n[1] / (n[2] if "payout" in q else n[0]),
    "depreciation": lambda n, q: n[0] - n[3] * (n[0] - n[2]) / n[1] if "book" in q else (n[0] - n[2]) / n[1],
}
CLASSES = ((18.5, "underweight"), (25.0, "normal weight"), (30.0, "overweight"), (math.inf, "obese"))


def expected(task: str, prompt: str) -> float:
    """Return the right result of a prompt, computed from the numbers in it.

    Raises:
        KeyError: there is no rule for the task.
    """
    return RULES[task]([float(number) for number in NUMBER.findall(prompt)], prompt.lower())


def is_right(task: str, prompt: str, answer: str) -> bool:
    """Return whether an answer ends in the right result: to half a unit of the second decimal, and the right class."""
    result = expected(task, prompt)
    stated = re.findall(r"(?:is|makes|gives|it is) (-?\d+(?:\.\d+)?)", answer)
    if not stated or any(abs(float(number) - result) > 0.00501 for number in stated[-1:]):
        return False
    if "class" not in prompt:
        return True
    return next(name for limit, name in CLASSES if result < limit) in answer
