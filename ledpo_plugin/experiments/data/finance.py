"""The finance domain: interest, prices, loans and ratios with computed answers. Synthetic, and only held out."""

from .arithmetic import Ask, Topic, make_rows
from .rows import Row

SEED, VERSION = 22, 1
HELD_OUT = 24
HOW_HELD_OUT = "The whole domain is held out: nothing of it is ever trained on."


def _payment(v: dict) -> float:
    rate = v["r"] / 100
    return v["p"] * rate / (1 - (1 + rate) ** -v["t"])


TOPICS = (
    Topic(
        "simple_interest",
        ("A deposit of {p} euros earns {r} percent simple interest a year for {t} years.",),
        lambda r: {"p": r.choice(range(500, 9000, 250)), "r": r.randint(2, 9), "t": r.randint(2, 8)},
        (
            Ask(
                "How much interest is that?", "{p} x {r} / 100 x {t}", lambda v: v["p"] * v["r"] / 100 * v["t"], "euros"
            ),
            Ask(
                "What is the final balance?",
                "{p} + {p} x {r} / 100 x {t}",
                lambda v: v["p"] * (1 + v["r"] / 100 * v["t"]),
                "euros",
            ),
        ),
        (("{p} x {r} / 100", lambda v: v["p"] * v["r"] / 100),),
    ),
    Topic(
        "compound_interest",
        ("A deposit of {p} euros grows by {r} percent a year, compounded yearly, for {t} years.",),
        lambda r: {"p": r.choice(range(500, 9000, 250)), "r": r.randint(3, 9), "t": r.randint(2, 5)},
        (
            Ask(
                "What is the final balance?",
                "{p} x (1 + {r} / 100)^{t}",
                lambda v: v["p"] * (1 + v["r"] / 100) ** v["t"],
                "euros",
            ),
            Ask(
                "How much interest is earned?",
                "{p} x (1 + {r} / 100)^{t} - {p}",
                lambda v: v["p"] * ((1 + v["r"] / 100) ** v["t"] - 1),
                "euros",
            ),
        ),
        (("{p} x (1 + {r} / 100 x {t})", lambda v: v["p"] * (1 + v["r"] / 100 * v["t"])),),
    ),
    Topic(
        "percent_change",
        ("A share rose from {a} to {b} dollars.", "A price went up from {a} to {b} dollars."),
        lambda r: (lambda a: {"a": a, "b": a + r.randint(5, a)})(r.randint(20, 200)),
        (
            Ask(
                "By how many percent did it rise?",
                "({b} - {a}) / {a} x 100",
                lambda v: (v["b"] - v["a"]) / v["a"] * 100,
                "percent",
            ),
        ),
        (
            ("({b} - {a}) / {b} x 100", lambda v: (v["b"] - v["a"]) / v["b"] * 100),
            ("{b} / {a} x 100", lambda v: v["b"] / v["a"] * 100),
        ),
    ),
    Topic(
        "margin",
        ("An article costs the shop {c} euros and sells for {p} euros.",),
        lambda r: (lambda c: {"c": c, "p": c + r.randint(4, c)})(r.randint(20, 160)),
        (
            Ask(
                "What is the margin in percent of the selling price?",
                "({p} - {c}) / {p} x 100",
                lambda v: (v["p"] - v["c"]) / v["p"] * 100,
                "percent",
            ),
            Ask(
                "What is the markup in percent of the cost?",
                "({p} - {c}) / {c} x 100",
                lambda v: (v["p"] - v["c"]) / v["c"] * 100,
                "percent",
            ),
        ),
    ),
    Topic(
        "currency",
        ("One euro is worth {x} dollars; {m} is to be changed.",),
        lambda r: {"x": f"1.{r.randint(12, 39)}", "m": r.choice(range(100, 3000, 50))},
        (
            Ask(
                "How many dollars is that, if it is in euros?", "{m} x {x}", lambda v: v["m"] * float(v["x"]), "dollars"
            ),
            Ask("How many euros is that, if it is in dollars?", "{m} / {x}", lambda v: v["m"] / float(v["x"]), "euros"),
        ),
    ),
    Topic(
        "annuity",
        ("A loan of {p} euros at {r} percent a year is paid back in {t} equal yearly payments.",),
        lambda r: {"p": r.choice(range(1000, 20000, 500)), "r": r.randint(2, 9), "t": r.randint(3, 10)},
        (
            Ask("How much is one payment?", "{p} x 0.01 x {r} / (1 - (1 + 0.01 x {r})^-{t})", _payment, "euros"),
            Ask(
                "How much is paid in all?",
                "{t} x {p} x 0.01 x {r} / (1 - (1 + 0.01 x {r})^-{t})",
                lambda v: _payment(v) * v["t"],
                "euros",
            ),
        ),
        (("{p} x (1 + 0.01 x {r}) / {t}", lambda v: v["p"] * (1 + v["r"] / 100) / v["t"]),),
    ),
    Topic(
        "present_value",
        ("A payment of {f} euros is due in {t} years; the discount rate is {r} percent a year.",),
        lambda r: {"f": r.choice(range(1000, 20000, 500)), "r": r.randint(3, 9), "t": r.randint(2, 8)},
        (
            Ask(
                "What is its present value?",
                "{f} / (1 + {r} / 100)^{t}",
                lambda v: v["f"] / (1 + v["r"] / 100) ** v["t"],
                "euros",
            ),
        ),
        (
            ("{f} x (1 + {r} / 100)^{t}", lambda v: v["f"] * (1 + v["r"] / 100) ** v["t"]),
            ("{f} x (1 - {r} / 100 x {t})", lambda v: v["f"] * (1 - v["r"] / 100 * v["t"])),
        ),
    ),
    Topic(
        "sales_tax",
        ("A price of {p} euros is shown without the sales tax of {r} percent.",),
        lambda r: {"p": r.choice(range(20, 900, 5)), "r": r.choice([5, 7, 10, 19, 20, 21, 25])},
        (
            Ask("What is the price with tax?", "{p} x (1 + {r} / 100)", lambda v: v["p"] * (1 + v["r"] / 100), "euros"),
            Ask("How much is the tax?", "{p} x {r} / 100", lambda v: v["p"] * v["r"] / 100, "euros"),
        ),
        (("{p} x (1 - {r} / 100)", lambda v: v["p"] * (1 - v["r"] / 100)),),
    ),
    Topic(
        "discount",
        ("A coat costs {p} euros; {a} percent are taken off, and then {b} percent off the reduced price.",),
        lambda r: {"p": r.choice(range(80, 600, 20)), "a": r.choice([10, 20, 25, 30]), "b": r.choice([5, 10, 15])},
        (
            Ask(
                "What is the final price?",
                "{p} x (1 - {a} / 100) x (1 - {b} / 100)",
                lambda v: v["p"] * (1 - v["a"] / 100) * (1 - v["b"] / 100),
                "euros",
            ),
        ),
        (
            ("{p} x (1 - ({a} + {b}) / 100)", lambda v: v["p"] * (1 - (v["a"] + v["b"]) / 100)),
            ("{p} x (1 + {a} / 100) x (1 - {b} / 100)", lambda v: v["p"] * (1 + v["a"] / 100) * (1 - v["b"] / 100)),
        ),
    ),
    Topic(
        "break_even",
        ("A firm has fixed costs of {f} euros, sells at {p} euros a piece and pays {c} euros for making one.",),
        lambda r: (lambda c: {"f": r.choice(range(2000, 30000, 500)), "c": c, "p": c + r.randint(3, 25)})(
            r.randint(5, 40)
        ),
        (
            Ask(
                "How many pieces must it sell to break even?",
                "{f} / ({p} - {c})",
                lambda v: v["f"] / (v["p"] - v["c"]),
                "pieces",
            ),
            Ask(
                "At what revenue does it break even?",
                "{f} / ({p} - {c}) x {p}",
                lambda v: v["f"] / (v["p"] - v["c"]) * v["p"],
                "euros",
            ),
        ),
        (("{f} / {p}", lambda v: v["f"] / v["p"]),),
    ),
    Topic(
        "dividend",
        ("A share costs {p} dollars and pays a dividend of {d} dollars a year; earnings per share are {e} dollars.",),
        lambda r: {"p": r.randint(40, 250), "d": r.randint(2, 6), "e": r.randint(7, 20)},
        (
            Ask("What is the dividend yield?", "{d} / {p} x 100", lambda v: v["d"] / v["p"] * 100, "percent"),
            Ask("What is the payout ratio in percent?", "{d} / {e} x 100", lambda v: v["d"] / v["e"] * 100, "percent"),
            Ask("What is the price-earnings ratio?", "{p} / {e}", lambda v: v["p"] / v["e"], "times earnings"),
        ),
    ),
    Topic(
        "depreciation",
        (
            "A machine costs {p} euros, is used for {t} years and is then worth {s} euros "
            "(straight-line depreciation); {k} years have gone by.",
        ),
        lambda r: {
            "p": r.choice(range(10000, 60000, 1000)),
            "t": r.randint(5, 10),
            "s": r.choice(range(1000, 6000, 500)),
            "k": r.randint(2, 4),
        },
        (
            Ask(
                "How much is written off each year?", "({p} - {s}) / {t}", lambda v: (v["p"] - v["s"]) / v["t"], "euros"
            ),
            Ask(
                "What is its book value now?",
                "{p} - {k} x ({p} - {s}) / {t}",
                lambda v: v["p"] - v["k"] * (v["p"] - v["s"]) / v["t"],
                "euros",
            ),
        ),
        (("{p} / {t}", lambda v: v["p"] / v["t"]),),
    ),
)


def make_finance(held_out: int = HELD_OUT) -> dict[str, list[Row]]:
    """Return `finance_heldout`, topics in turn.

    Raises:
        ValueError: the topics do not give so many different prompts.
    """
    return {"finance_heldout": make_rows("finance", SEED, TOPICS, "heldout", held_out)}
