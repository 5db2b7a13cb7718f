"""Tasks over one number."""

from .template import Template, drawing, product, variant

TEMPLATES = (
    Template(
        "in_interval",
        ("in_range", "is_between", "accepts", "is_valid"),
        "{arg}",
        "True if `{arg}` lies between {k} and {high}, {ends}, and False otherwise",
        (
            variant(lambda v, x: x in range(v["k"], v["high"] + 1), ends="both included", low_op="<=", high_op="<="),
            variant(lambda v, x: x in range(v["k"] + 1, v["high"]), ends="both excluded", low_op="<", high_op="<"),
            variant(
                lambda v, x: x in range(v["k"], v["high"]),
                ends="{k} included, {high} excluded",
                low_op="<=",
                high_op="<",
            ),
            variant(
                lambda v, x: x in range(v["k"] + 1, v["high"] + 1),
                ends="{k} excluded, {high} included",
                low_op="<",
                high_op="<=",
            ),
        ),
        (
            "return {k} {low_op} {arg} {high_op} {high}",
            "if {k} {low_op} {arg} and {arg} {high_op} {high}:\n    return True\nreturn False",
        ),
        drawing(k=(0, 30), high=(40, 120), arg=["value", "age", "score", "level", "speed"]),
        lambda rng, v: [(v["k"],), (v["high"],), (v["k"] + 1,), (v["high"] + 1,), (v["k"] - 1,), (v["high"] - 1,)],
    ),
    Template(
        "percent",
        ("final_price", "new_price", "price_in_cents", "charge"),
        "{arg}",
        "{what}, in whole cents, rounded down; `{arg}` is in cents",
        (
            variant(
                lambda v, x: (x * 100 - x * v["k"]) // 100,
                what="the price `{arg}` after a discount of {k} percent",
                expr="{arg} * (100 - {k}) // 100",
            ),
            variant(
                lambda v, x: (x * 100 + x * v["k"]) // 100,
                what="the price `{arg}` after adding a tax of {k} percent",
                expr="{arg} * (100 + {k}) // 100",
            ),
            variant(
                lambda v, x: x * v["k"] // 100,
                what="only the tax of {k} percent on the price `{arg}`",
                expr="{arg} * {k} // 100",
            ),
        ),
        ("return {expr}", "result = {expr}\nreturn result"),
        drawing(k=(2, 45), arg=["price", "cents", "amount", "cost"]),
        lambda rng, v: [(1000,), (2599,), (0,), (rng.randint(100, 9999),)],
    ),
    Template(
        "split_time",
        ("split_time", "to_parts", "break_down", "as_pair"),
        "{arg}",
        "a tuple ({first}, {second}) for `{arg}` {unit} plus {k} {unit}",
        (
            variant(
                lambda v, t: ((t + v["k"]) // 60, (t + v["k"]) - 60 * ((t + v["k"]) // 60)),
                first="hours",
                second="minutes",
                unit="minutes",
                parts="total // 60, total % 60",
            ),
            variant(
                lambda v, t: ((t + v["k"]) - 60 * ((t + v["k"]) // 60), (t + v["k"]) // 60),
                first="minutes",
                second="hours",
                unit="minutes",
                parts="total % 60, total // 60",
            ),
            variant(
                lambda v, t: ((t + v["k"]) // 24, (t + v["k"]) - 24 * ((t + v["k"]) // 24)),
                first="days",
                second="hours",
                unit="hours",
                parts="total // 24, total % 24",
            ),
            variant(
                lambda v, t: ((t + v["k"]) - 24 * ((t + v["k"]) // 24), (t + v["k"]) // 24),
                first="hours",
                second="days",
                unit="hours",
                parts="total % 24, total // 24",
            ),
        ),
        ("total = {arg} + {k}\nreturn ({parts})", "total = {k} + {arg}\nresult = ({parts})\nreturn result"),
        drawing(k=(1, 59), arg=["time", "length", "duration"]),
        lambda rng, v: [(75,), (rng.randint(100, 999),), (0,), (130,)],
    ),
    Template(
        "parity_range",
        ("number_list", "make_series", "list_numbers", "series"),
        "n",
        "the list of {parity} numbers from {k} to `n`, with `n` itself {end}",
        (
            variant(
                lambda v, n: [i for i in range(v["k"], n + 1) if i // 2 * 2 == i],
                parity="even",
                end="included",
                rest="0",
                stop="n + 1",
            ),
            variant(
                lambda v, n: [i for i in range(v["k"], n) if i // 2 * 2 == i],
                parity="even",
                end="left out",
                rest="0",
                stop="n",
            ),
            variant(
                lambda v, n: [i for i in range(v["k"], n + 1) if i // 2 * 2 != i],
                parity="odd",
                end="included",
                rest="1",
                stop="n + 1",
            ),
            variant(
                lambda v, n: [i for i in range(v["k"], n) if i // 2 * 2 != i],
                parity="odd",
                end="left out",
                rest="1",
                stop="n",
            ),
        ),
        (
            "return [i for i in range({k}, {stop}) if i % 2 == {rest}]",
            "result = []\nfor i in range({k}, {stop}):\n    if i % 2 == {rest}:\n        result.append(i)\n"
            "return result",
        ),
        drawing(k=(1, 70)),
        lambda rng, v: [(v["k"] + 6,), (v["k"] + 7,), (v["k"],), (v["k"] - 3,)],
    ),
    Template(
        "divisible_both",
        ("check", "label_number", "is_special", "matches"),
        "n",
        "True if `n` is divisible by {what}, and False otherwise",
        (
            variant(
                lambda v, n: all(n // d * d == n for d in (v["k"], v["b"])),
                what="both {k} and {b}",
                expr="n % {k} == 0 and n % {b} == 0",
            ),
            variant(
                lambda v, n: any(n // d * d == n for d in (v["k"], v["b"])),
                what="{k} or {b} or both",
                expr="n % {k} == 0 or n % {b} == 0",
            ),
            variant(
                lambda v, n: n // v["k"] * v["k"] == n and n // v["b"] * v["b"] != n,
                what="{k} but not by {b}",
                expr="n % {k} == 0 and n % {b} != 0",
            ),
            variant(
                lambda v, n: n // v["k"] * v["k"] != n and n // v["b"] * v["b"] == n,
                what="{b} but not by {k}",
                expr="n % {k} != 0 and n % {b} == 0",
            ),
        ),
        ("return {expr}", "if {expr}:\n    return True\nreturn False"),
        drawing(k=[2, 3, 5, 7, 11, 13], b=[4, 9, 8, 17, 19, 23]),
        lambda rng, v: [(v["k"] * v["b"],), (v["k"],), (v["b"],), (v["k"] * v["b"] + 1,), (5 * v["k"],), (0,)],
    ),
    Template(
        "progression",
        ("term", "nth_term", "sequence_value", "step_value"),
        "n",
        "term `n`, counting from {base}, of the sequence that starts with {k} and {what} by {b} at every step",
        (
            variant(
                lambda v, n: [v["k"] + i * v["b"] for i in range(n + 1)][-1],
                base="0",
                what="grows",
                expr="{k} + {b} * n",
            ),
            variant(
                lambda v, n: [v["k"] + i * v["b"] for i in range(n)][-1],
                base="1",
                what="grows",
                expr="{k} + {b} * (n - 1)",
            ),
            variant(lambda v, n: v["k"] * product([v["b"]] * n), base="0", what="is multiplied", expr="{k} * {b} ** n"),
            variant(
                lambda v, n: v["k"] * product([v["b"]] * (n - 1)),
                base="1",
                what="is multiplied",
                expr="{k} * {b} ** (n - 1)",
            ),
        ),
        ("return {expr}", "value = {expr}\nreturn value"),
        drawing(k=(1, 30), b=(3, 9)),
        lambda rng, v: [(1,), (2,), (4,), (rng.randint(5, 9),)],
    ),
    Template(
        "divide_down",
        ("steps_down", "division_steps", "count_steps", "shrink_steps"),
        "n",
        "how many times the whole number `n` is divided by {k} (whole division) until it is {what}",
        (
            variant(
                lambda v, n: next(i for i in range(99) if n < v["k"] ** (i + 1)), what="less than {k}", test="n >= {k}"
            ),
            variant(lambda v, n: next(i for i in range(99) if n < v["k"] ** i), what="0", test="n > 0"),
            variant(
                lambda v, n: next(i for i in range(99) if n // v["k"] ** i <= v["k"]),
                what="{k} or less",
                test="n > {k}",
            ),
        ),
        ("count = 0\nwhile {test}:\n    n = n // {k}\n    count += 1\nreturn count",),
        drawing(k=(2, 40)),
        lambda rng, v: [(v["k"],), (v["k"] ** 3,), (v["k"] ** 3 - 1,), (1,), (rng.randint(500, 9000),)],
    ),
)
