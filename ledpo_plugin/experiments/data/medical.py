"""The medical domain: doses, rates and rules with computed answers. Synthetic; not medical advice."""

from random import Random

from .arithmetic import Ask, Topic, Values, make_rows
from .rows import Row, prompt_of, stream

SEED, VERSION = 21, 1
TRAIN, HELD_OUT = 480, 24
NOTE = "Synthetic exercises in arithmetic, not medical advice."


def _bmi_class(bmi: float) -> str:
    name = "underweight" if bmi < 18.5 else "normal weight" if bmi < 25 else "overweight" if bmi < 30 else "obese"
    return f"kg/m^2, {name}"


def _half_life(rng: Random) -> Values:
    h, k = rng.choice([2, 3, 4, 5, 6, 8, 12]), rng.randint(1, 4)
    return {"h": h, "k": k, "t": h * k, "m": rng.choice(range(40, 1000, 20))}


def _tablets(rng: Random) -> Values:
    s = rng.choice([5, 10, 20, 25, 50, 100, 200, 250, 500])
    return {"s": s, "m": s * rng.choice([2, 3, 4]), "n": rng.randint(2, 4), "t": rng.randint(3, 14)}


TOPICS = (
    Topic(
        "weight_dose",
        (
            "A child weighs {w} kg. The order is {d} mg/kg per day, given in {n} equal doses, for {t} days.",
            "Weight: {w} kg. Order: {d} mg per kg and day, split into {n} equal doses, for {t} days.",
        ),
        lambda r: {
            "w": r.randint(8, 45),
            "d": r.choice([5, 10, 15, 20, 25, 30, 40, 50]),
            "n": r.randint(2, 4),
            "t": r.randint(3, 10),
        },
        (
            Ask("How many mg is one dose?", "{w} kg x {d} mg/kg / {n}", lambda v: v["w"] * v["d"] / v["n"], "mg"),
            Ask("How many mg are given per day?", "{w} kg x {d} mg/kg", lambda v: v["w"] * v["d"], "mg"),
            Ask(
                "How many mg are given in all?",
                "{w} kg x {d} mg/kg x {t}",
                lambda v: v["w"] * v["d"] * v["t"],
                "mg",
            ),
        ),
    ),
    Topic(
        "tablets",
        ("A patient takes {m} mg {n} times a day for {t} days, as tablets of {s} mg.",),
        _tablets,
        (
            Ask("How many tablets are one dose?", "{m} mg / {s} mg", lambda v: v["m"] / v["s"], "tablets"),
            Ask(
                "How many tablets are needed per day?",
                "{m} mg / {s} mg x {n}",
                lambda v: v["m"] / v["s"] * v["n"],
                "tablets",
            ),
            Ask(
                "How many tablets are needed in all?",
                "{m} mg / {s} mg x {n} x {t}",
                lambda v: v["m"] / v["s"] * v["n"] * v["t"],
                "tablets",
            ),
        ),
    ),
    Topic(
        "infusion_rate",
        (
            "An infusion of {v} mL is to run over {h} hours; {p} h have gone by.",
            "{v} mL of fluid are ordered over {h} hours, of which {p} h are over.",
        ),
        lambda r: {"v": r.choice(range(250, 2050, 50)), "h": r.randint(3, 12), "p": r.randint(1, 2)},
        (
            Ask("What is the rate in mL per hour?", "{v} mL / {h} h", lambda v: v["v"] / v["h"], "mL/h"),
            Ask(
                "What is the rate in mL per minute?",
                "{v} mL / ({h} x 60 min)",
                lambda v: v["v"] / v["h"] / 60,
                "mL/min",
            ),
            Ask("How many mL have run until now?", "{v} mL x {p} h / {h} h", lambda v: v["v"] * v["p"] / v["h"], "mL"),
        ),
    ),
    Topic(
        "drops",
        ("An infusion of {v} mL runs over {h} hours through a set that gives {f} drops per mL.",),
        lambda r: {"v": r.choice(range(250, 2050, 50)), "h": r.randint(3, 12), "f": r.choice([10, 15, 20, 60])},
        (
            Ask(
                "How many drops per minute is that?",
                "{v} mL x {f} / ({h} x 60 min)",
                lambda v: v["v"] * v["f"] / v["h"] / 60,
                "drops/min",
            ),
            Ask(
                "How many drops per hour is that?",
                "{v} mL x {f} / {h} h",
                lambda v: v["v"] * v["f"] / v["h"],
                "drops/h",
            ),
        ),
        (("{v} mL / ({h} x 60 min)", lambda v: v["v"] / v["h"] / 60),),
    ),
    Topic(
        "draw_up",
        (
            "A vial holds {c} mg in {z} mL. The dose is {d} mg.",
            "Ordered: a dose from a vial of {c} mg in {z} mL. The dose is {d} mg.",
        ),
        lambda r: {
            "c": r.choice([50, 80, 100, 200, 250, 400, 500]),
            "z": r.choice([2, 4, 5, 10, 20]),
            "d": r.randint(2, 9) * 5,
        },
        (
            Ask("How many mL are drawn up?", "{d} mg x {z} mL / {c} mg", lambda v: v["d"] * v["z"] / v["c"], "mL"),
            Ask(
                "How many mL stay in the vial after the dose?",
                "{z} mL - {d} mg x {z} mL / {c} mg",
                lambda v: v["z"] - v["d"] * v["z"] / v["c"],
                "mL",
            ),
            Ask("What is the concentration in mg/mL?", "{c} mg / {z} mL", lambda v: v["c"] / v["z"], "mg/mL"),
        ),
        (("{d} mg x {c} mg / {z} mL", lambda v: v["d"] * v["c"] / v["z"]),),
    ),
    Topic(
        "bmi",
        ("An adult is {h} m tall and weighs {w} kg; a BMI of {b} is wanted.",),
        lambda r: {"h": f"1.{r.randint(50, 95)}", "w": r.randint(45, 120), "b": r.choice([20, 22, 24])},
        (
            Ask(
                "What is the BMI, and in which class is it?",
                "{w} / {h}^2",
                lambda v: v["w"] / float(v["h"]) ** 2,
                _bmi_class,
            ),
            Ask("Which weight is the one wanted?", "{b} x {h}^2", lambda v: v["b"] * float(v["h"]) ** 2, "kg"),
        ),
        (("{w} / {h}", lambda v: v["w"] / float(v["h"])),),
    ),
    Topic(
        "gram_units",
        ("The stock holds {g} g of a drug, and a dose is {s} mg.", "A bottle is labelled {g} g, for doses of {s} mg."),
        lambda r: {"g": f"{r.randint(1, 9)}.{r.randint(1, 9)}", "s": r.choice([5, 10, 20, 25, 50])},
        (
            Ask("How many mg are there in all?", "{g} g x 1000", lambda v: float(v["g"]) * 1000, "mg"),
            Ask(
                "How many doses does it give?",
                "{g} g x 1000 / {s} mg",
                lambda v: float(v["g"]) * 1000 / v["s"],
                "doses",
            ),
        ),
        (
            ("{g} g x 100", lambda v: float(v["g"]) * 100),
            ("{g} g x 100 / {s} mg", lambda v: float(v["g"]) * 100 / v["s"]),
        ),
    ),
    Topic(
        "pounds",
        ("A patient weighs {p} pounds, and 2.2 pounds are one kg. The order is {d} mg per kg.",),
        lambda r: {"p": r.randint(60, 260), "d": r.choice([2, 3, 4, 5, 6, 8, 10])},
        (
            Ask("What is the weight in kg?", "{p} / 2.2", lambda v: v["p"] / 2.2, "kg"),
            Ask("How many mg is the dose?", "{p} / 2.2 x {d}", lambda v: v["p"] / 2.2 * v["d"], "mg"),
        ),
        (("{p} x 2.2", lambda v: v["p"] * 2.2),),
    ),
    Topic(
        "fever",
        ("The body temperature is {c} degrees Celsius.", "A thermometer shows {c} degrees Celsius."),
        lambda r: {"c": f"{r.randint(35, 41)}.{r.randint(1, 9)}"},
        (
            Ask(
                "What is that in Fahrenheit?",
                "{c} x 9 / 5 + 32",
                lambda v: float(v["c"]) * 9 / 5 + 32,
                "degrees Fahrenheit",
            ),
        ),
        (
            ("({c} + 32) x 9 / 5", lambda v: (float(v["c"]) + 32) * 9 / 5),
            ("{c} x 5 / 9 + 32", lambda v: float(v["c"]) * 5 / 9 + 32),
        ),
    ),
    Topic(
        "glucose",
        ("Blood glucose is {g} mmol/L; multiply mmol/L by 18 for mg/dL. The limit is {t} mg/dL.",),
        lambda r: {"g": f"{r.randint(4, 19)}.{r.randint(1, 9)}", "t": r.choice([40, 50, 60, 70])},
        (
            Ask("What is it in mg/dL?", "{g} x 18", lambda v: float(v["g"]) * 18, "mg/dL"),
            Ask(
                "How many mg/dL is it above the limit?",
                "{g} x 18 - {t}",
                lambda v: float(v["g"]) * 18 - v["t"],
                "mg/dL",
            ),
        ),
        (("{g} / 18 x 100", lambda v: float(v["g"]) / 18 * 100),),
    ),
    Topic(
        "creatinine_clearance",
        ("A patient is {a} years old, weighs {w} kg and has a serum creatinine of {c} mg/dL.",),
        lambda r: {"a": r.randint(25, 90), "w": r.randint(45, 110), "c": f"{r.randint(0, 2)}.{r.randint(6, 9)}"},
        (
            Ask(
                "The patient is a man. What is the creatinine clearance by the Cockcroft-Gault rule?",
                "(140 - {a}) x {w} / (72 x {c})",
                lambda v: (140 - v["a"]) * v["w"] / 72 / float(v["c"]),
                "mL/min",
            ),
            Ask(
                "The patient is a woman. What is the creatinine clearance by the Cockcroft-Gault rule?",
                "(140 - {a}) x {w} / (72 x {c}) x 0.85",
                lambda v: (140 - v["a"]) * v["w"] / 72 / float(v["c"]) * 0.85,
                "mL/min",
            ),
        ),
    ),
    Topic(
        "half_life",
        ("A drug has a half-life of {h} hours; {m} mg are in the body now, and {t} hours go by.",),
        _half_life,
        (
            Ask("How many mg remain then?", "{m} mg / 2^{k}", lambda v: v["m"] / 2 ** v["k"], "mg"),
            Ask(
                "How many mg are gone then?",
                "{m} mg - {m} mg / 2^{k}",
                lambda v: v["m"] - v["m"] / 2 ** v["k"],
                "mg",
            ),
        ),
        (("{m} mg / {k}", lambda v: v["m"] / v["k"]),),
    ),
    Topic(
        "weight_rate",
        ("A syringe holds {c} mg in {z} mL. The order for a patient of {w} kg is {r} mcg/kg/min.",),
        lambda r: {
            "c": r.choice([50, 100, 200, 250, 400]),
            "z": r.choice([20, 25, 50]),
            "w": r.randint(40, 100),
            "r": r.randint(2, 12),
        },
        (
            Ask(
                "How many mg per hour is that?", "{r} x {w} x 60 / 1000", lambda v: v["r"] * v["w"] * 60 / 1000, "mg/h"
            ),
            Ask(
                "At how many mL per hour does the pump run?",
                "{r} x {w} x 60 / 1000 x {z} / {c}",
                lambda v: v["r"] * v["w"] * 60 / 1000 * v["z"] / v["c"],
                "mL/h",
            ),
        ),
        (("{r} x {w} / 1000", lambda v: v["r"] * v["w"] / 1000),),
    ),
    Topic(
        "arterial_pressure",
        ("The blood pressure is {s}/{d} mmHg.", "Systolic pressure is {s} mmHg, diastolic {d} mmHg."),
        lambda r: {"s": r.randint(95, 190), "d": r.randint(50, 90)},
        (
            Ask(
                "What is the mean arterial pressure?",
                "({s} + 2 x {d}) / 3",
                lambda v: (v["s"] + 2 * v["d"]) / 3,
                "mmHg",
            ),
            Ask("What is the pulse pressure?", "{s} - {d}", lambda v: v["s"] - v["d"], "mmHg"),
        ),
        (("(2 x {s} + {d}) / 3", lambda v: (2 * v["s"] + v["d"]) / 3),),
    ),
    Topic(
        "anion_gap",
        ("Sodium is {n}, potassium {k}, chloride {c} and bicarbonate {b} mmol/L.",),
        lambda r: {
            "n": r.randint(130, 150),
            "k": f"{r.randint(3, 5)}.{r.randint(1, 9)}",
            "c": r.randint(95, 106),
            "b": r.randint(10, 24),
        },
        (
            Ask(
                "What is the anion gap without potassium?",
                "{n} - ({c} + {b})",
                lambda v: v["n"] - v["c"] - v["b"],
                "mmol/L",
            ),
            Ask(
                "What is the anion gap with potassium?",
                "{n} + {k} - ({c} + {b})",
                lambda v: v["n"] + float(v["k"]) - v["c"] - v["b"],
                "mmol/L",
            ),
        ),
        (("{n} - {c} + {b}", lambda v: v["n"] - v["c"] + v["b"]),),
    ),
    Topic(
        "corrected_calcium",
        ("Total calcium is {c} mg/dL and albumin {a} g/dL.",),
        lambda r: {"c": f"{r.randint(7, 11)}.{r.randint(1, 9)}", "a": f"{r.randint(1, 3)}.{r.randint(1, 8)}"},
        (
            Ask(
                "What is the calcium corrected for an albumin of 4 g/dL (0.8 per g/dL)?",
                "{c} + 0.8 x (4 - {a})",
                lambda v: float(v["c"]) + 0.8 * (4 - float(v["a"])),
                "mg/dL",
            ),
        ),
        (
            ("{c} - 0.8 x (4 - {a})", lambda v: float(v["c"]) - 0.8 * (4 - float(v["a"]))),
            ("{c} + 0.8 x {a}", lambda v: float(v["c"]) + 0.8 * float(v["a"])),
        ),
    ),
    Topic(
        "bottle",
        ("A bottle holds {v} mL of syrup. The dose is {d} mL {n} times a day for {t} days.",),
        lambda r: {
            "v": r.choice([90, 100, 120, 150, 180, 200, 240, 300]),
            "d": r.choice([2, 4, 5, 6, 10]),
            "n": r.randint(2, 4),
            "t": r.randint(2, 5),
        },
        (
            Ask(
                "For how many days would it last?",
                "{v} mL / ({d} mL x {n})",
                lambda v: v["v"] / v["d"] / v["n"],
                "days",
            ),
            Ask("How many mL are used in that time?", "{d} mL x {n} x {t}", lambda v: v["d"] * v["n"] * v["t"], "mL"),
            Ask("How many doses does it hold?", "{v} mL / {d} mL", lambda v: v["v"] / v["d"], "doses"),
        ),
    ),
    Topic(
        "oxygen",
        ("An oxygen cylinder holds {v} litres, and the flow is {f} litres per minute for {t} minutes so far.",),
        lambda r: {"v": r.choice(range(300, 3000, 60)), "f": r.randint(2, 10), "t": r.choice([10, 15, 20])},
        (
            Ask("For how many minutes does a full one last?", "{v} / {f}", lambda v: v["v"] / v["f"], "minutes"),
            Ask("For how many hours does a full one last?", "{v} / {f} / 60", lambda v: v["v"] / v["f"] / 60, "hours"),
            Ask(
                "How many litres are left now?",
                "{v} - {f} x {t}",
                lambda v: v["v"] - v["f"] * v["t"],
                "litres",
            ),
        ),
    ),
)

# Never trained on.
HELD_OUT_TOPICS = (
    Topic(
        "loading_dose",
        ("A drug spreads over {d} L/kg (volume of distribution); weight {w} kg; wanted in blood: {c} mg/L.",),
        lambda r: {"d": f"0.{r.randint(2, 9)}", "w": r.randint(40, 100), "c": r.randint(5, 30)},
        (
            Ask(
                "What is the loading dose in mg?",
                "{d} L/kg x {w} kg x {c} mg/L",
                lambda v: float(v["d"]) * v["w"] * v["c"],
                "mg",
            ),
            Ask("What is the volume of distribution in L?", "{d} L/kg x {w} kg", lambda v: float(v["d"]) * v["w"], "L"),
        ),
        (("{w} kg x {c} mg/L / {d} L/kg", lambda v: v["w"] * v["c"] / float(v["d"])),),
    ),
    Topic(
        "heart_rate",
        ("A person is {a} years old and trains at {p} percent of the maximum heart rate (220 minus age).",),
        lambda r: {"a": r.randint(20, 75), "p": r.choice([50, 55, 60, 65, 70, 75, 80])},
        (
            Ask(
                "What is the target heart rate?",
                "(220 - {a}) x {p} / 100",
                lambda v: (220 - v["a"]) * v["p"] / 100,
                "beats/min",
            ),
            Ask("What is the maximum heart rate?", "220 - {a}", lambda v: 220 - v["a"], "beats/min"),
        ),
        (("220 x {p} / 100 - {a}", lambda v: 220 * v["p"] / 100 - v["a"]),),
    ),
    Topic(
        "body_surface",
        ("A patient is {h} cm tall and weighs {w} kg; the order is {d} mg per square metre of body surface.",),
        lambda r: {"h": r.randint(140, 195), "w": r.randint(40, 110), "d": r.choice([20, 50, 75, 100])},
        (
            Ask(
                "What is the body surface by the Mosteller formula?",
                "sqrt({h} x {w} / 3600)",
                lambda v: (v["h"] * v["w"] / 3600) ** 0.5,
                "m^2",
            ),
            Ask(
                "How many mg is the dose, by the Mosteller formula?",
                "sqrt({h} x {w} / 3600) x {d}",
                lambda v: (v["h"] * v["w"] / 3600) ** 0.5 * v["d"],
                "mg",
            ),
        ),
        (("{h} x {w} / 3600", lambda v: v["h"] * v["w"] / 3600),),
    ),
    Topic(
        "maintenance_fluid",
        ("A child weighs {w} kg and gets maintenance fluid by the 4-2-1 rule.",),
        lambda r: (lambda w: {"w": w, "rest": w - 20})(r.randint(22, 60)),
        (
            Ask("How many mL per hour is that?", "4 x 10 + 2 x 10 + 1 x {rest}", lambda v: 60 + v["rest"], "mL/h"),
            Ask(
                "How many mL per day is that?",
                "(4 x 10 + 2 x 10 + 1 x {rest}) x 24",
                lambda v: (60 + v["rest"]) * 24,
                "mL/day",
            ),
        ),
        (("4 x {w}", lambda v: 4 * v["w"]),),
    ),
)


def how_held_out() -> str:
    """Return in words what `medical_heldout` has not in common with `medical_train`."""
    names = ", ".join(topic.name for topic in HELD_OUT_TOPICS)
    return (
        f"Half of the held-out pairs are of topics that are not in training at all ({names}); the other half are of "
        f"topics that are, with numbers that are not."
    )


def make_medical(train: int = TRAIN, held_out: int = HELD_OUT) -> dict[str, list[Row]]:
    """Return `medical_train` and `medical_heldout`; no prompt is on both sides.

    Raises:
        ValueError: the topics do not give so many different prompts.
    """
    known = make_rows("medical", SEED, TOPICS, "heldout", held_out - held_out // 2)
    new = make_rows("medical", SEED, HELD_OUT_TOPICS, "heldout", held_out // 2)
    taken = frozenset(prompt_of(row) for row in known)
    rows = make_rows("medical", SEED, TOPICS, "train", train, without=taken)
    stream("medical", SEED, "order").shuffle(rows)
    apart = known + new
    stream("medical", SEED, "heldout order").shuffle(apart)
    return {"medical_train": rows, "medical_heldout": apart}
