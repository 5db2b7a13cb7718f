"""Tasks over lists of numbers."""

from .template import LISTS, Template, compared, drawing, near, numbers, product, variant

TEMPLATES = (
    Template(
        "count_compared",
        ("count_matching", "how_many", "count_values", "tally"),
        "{arg}",
        "how many values in the list `{arg}` are {rel} {k}",
        compared(lambda keep, v, xs: len([x for x in xs if keep(x)])),
        (
            "count = 0\nfor value in {arg}:\n    if value {op} {k}:\n        count += 1\nreturn count",
            "return sum(1 for value in {arg} if value {op} {k})",
        ),
        drawing(k=(-20, 90), arg=LISTS),
        near,
    ),
    Template(
        "keep_multiples",
        ("select_numbers", "pick", "filter_numbers"),
        "{arg}",
        "a list of the values in `{arg}` that {rule}",
        (
            variant(
                lambda v, xs: [x for x in xs if x in range(-999, 1000) and abs(x) % v["k"] == 0],
                rule="are divisible by {k}",
                test="== 0",
            ),
            variant(
                lambda v, xs: [x for x in xs if x // v["k"] * v["k"] != x], rule="are not divisible by {k}", test="!= 0"
            ),
            variant(
                lambda v, xs: [x for x in xs if (x - 1) // v["k"] * v["k"] + 1 == x],
                rule="leave remainder 1 when divided by {k}",
                test="== 1",
            ),
        ),
        (
            "result = []\nfor value in {arg}:\n    if value % {k} {test}:\n        result.append(value)\nreturn result",
            "return [value for value in {arg} if value % {k} {test}]",
        ),
        drawing(k=(3, 40), arg=LISTS),
        lambda rng, v: [([v["k"], v["k"] + 1, 2 * v["k"] + 2, 0],), (numbers(rng, v["k"], 8),), ([1, 2],), ([],)],
    ),
    Template(
        "sum_multiples",
        ("sum_multiples", "total_of_multiples", "add_multiples"),
        "n",
        "the sum of all multiples of {k} from {k} up to {end}",
        (
            variant(
                lambda v, n: sum(i for i in range(1, n + 1) if i % v["k"] == 0), end="and including `n`", stop="n + 1"
            ),
            variant(
                lambda v, n: sum(i for i in range(1, n) if i % v["k"] == 0), end="`n`, which is left out", stop="n"
            ),
        ),
        (
            "total = 0\nfor value in range({k}, {stop}, {k}):\n    total += value\nreturn total",
            "return sum(range({k}, {stop}, {k}))",
        ),
        drawing(k=(2, 80)),
        lambda rng, v: [(v["k"],), (3 * v["k"],), (3 * v["k"] - 1,), (3 * v["k"] + 1,), (0,)],
    ),
    Template(
        "running",
        ("running", "accumulate_values", "history", "progress"),
        "{arg}",
        "a list with the running {what} of the list `{arg}`, starting from {k}, one entry after each value",
        (
            variant(
                lambda v, xs: [v["k"] + sum(xs[: i + 1]) for i in range(len(xs))], what="sum", step="state + value"
            ),
            variant(
                lambda v, xs: [v["k"] - sum(xs[: i + 1]) for i in range(len(xs))],
                what="difference (each value is subtracted)",
                step="state - value",
            ),
            variant(
                lambda v, xs: [v["k"] * product(xs[: i + 1]) for i in range(len(xs))],
                what="product",
                step="state * value",
            ),
            variant(
                lambda v, xs: [sorted([v["k"], *xs[: i + 1]])[-1] for i in range(len(xs))],
                what="maximum",
                step="max(state, value)",
            ),
            variant(
                lambda v, xs: [sorted([v["k"], *xs[: i + 1]])[0] for i in range(len(xs))],
                what="minimum",
                step="min(state, value)",
            ),
        ),
        ("state = {k}\nresult = []\nfor value in {arg}:\n    state = {step}\n    result.append(state)\nreturn result",),
        drawing(k=(2, 60), arg=LISTS),
        lambda rng, v: [([v["k"] + 1, 3, v["k"] - 2],), (numbers(rng, v["k"], 5),), ([],), ([1, 2, 3],)],
    ),
    Template(
        "linear",
        ("scale", "transform", "adjust", "convert_all"),
        "{arg}",
        "a list in which {what} in the list `{arg}`",
        (
            variant(
                lambda v, xs: [x * v["k"] + v["b"] for x in xs],
                what="{b} is added after multiplying by {k} each value",
                expr="value * {k} + {b}",
            ),
            variant(
                lambda v, xs: [v["k"] * x + v["k"] * v["b"] for x in xs],
                what="{b} is added before multiplying by {k} each value",
                expr="(value + {b}) * {k}",
            ),
            variant(
                lambda v, xs: [x * v["k"] - v["b"] for x in xs],
                what="{b} is subtracted after multiplying by {k} each value",
                expr="value * {k} - {b}",
            ),
            variant(
                lambda v, xs: [v["k"] * x - v["k"] * v["b"] for x in xs],
                what="{b} is subtracted before multiplying by {k} each value",
                expr="(value - {b}) * {k}",
            ),
        ),
        (
            "return [{expr} for value in {arg}]",
            "result = []\nfor value in {arg}:\n    result.append({expr})\nreturn result",
        ),
        drawing(k=(2, 12), b=(1, 40), arg=LISTS),
        lambda rng, v: [([0, 1, 2],), (numbers(rng, 10),), ([],)],
    ),
    Template(
        "summary",
        ("summarise", "statistic", "summary", "describe"),
        "{arg}",
        "the {what} of the list `{arg}`, or {k} if the list is empty",
        (
            variant(lambda v, xs: sorted(xs)[-1] if xs else v["k"], what="largest value", expr="max({arg})"),
            variant(lambda v, xs: sorted(xs)[0] if xs else v["k"], what="smallest value", expr="min({arg})"),
            variant(
                lambda v, xs: sorted(xs)[-1] - sorted(xs)[0] if xs else v["k"],
                what="difference between largest and smallest value",
                expr="max({arg}) - min({arg})",
            ),
            variant(
                lambda v, xs: sorted(xs)[len(xs) // 2] if xs else v["k"],
                what="upper median (the middle value once sorted)",
                expr="sorted({arg})[len({arg}) // 2]",
            ),
            variant(
                lambda v, xs: (
                    len(xs) and -(-sum(xs) // len(xs))
                    if xs and sum(xs) % len(xs) == 0
                    else (sum(xs) - sum(xs) % len(xs)) // len(xs)
                    if xs
                    else v["k"]
                ),
                what="mean, rounded down,",
                expr="sum({arg}) // len({arg})",
            ),
        ),
        (
            "if not {arg}:\n    return {k}\nreturn {expr}",
            "if len({arg}) == 0:\n    return {k}\nresult = {expr}\nreturn result",
        ),
        drawing(k=(-9, 30), arg=LISTS),
        lambda rng, v: [([],), ([3, 9, 4, 20],), (numbers(rng, 20, 7),), ([5, 1, 7],), ([8],)],
    ),
    Template(
        "distinct",
        ("unique", "distinct", "without_repeats", "dedupe"),
        "{arg}",
        "the distinct values above {k} of the list `{arg}`, {what}",
        (
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if x > v["k"] and x not in xs[:i]],
                what="in the order of their first appearance",
                expr="list(dict.fromkeys(kept))",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if x > v["k"] and x not in xs[i + 1 :]][::-1],
                what="the one seen last coming first",
                expr="list(dict.fromkeys(kept[::-1]))",
            ),
            variant(
                lambda v, xs: [x for x in range(-500, 500) if x in xs and x > v["k"]],
                what="in ascending order",
                expr="sorted(set(kept))",
            ),
            variant(
                lambda v, xs: [x for x in range(500, -500, -1) if x in xs and x > v["k"]],
                what="in descending order",
                expr="sorted(set(kept), reverse=True)",
            ),
        ),
        ("kept = [value for value in {arg} if value > {k}]\nreturn {expr}",),
        drawing(k=(-10, 60), arg=LISTS),
        lambda rng, v: [
            ([v["k"] + d for d in (5, 2, 9, 2, 5, 0, 7)],),
            ([v["k"]] * 2,),
            ([],),
            (numbers(rng, v["k"], 9, 5),),
        ],
    ),
    Template(
        "grid_sum",
        ("grid_sum", "line_sum", "table_sum", "sum_line"),
        "{arg}",
        "the sum of {what} number {k}, counting from {base}, of the list of lists `{arg}`",
        (
            variant(lambda v, g: sum(g[v["k"]]), what="row", base="0", expr="sum({arg}[{k}])"),
            variant(lambda v, g: sum(g[v["k"] - 1]), what="row", base="1", expr="sum({arg}[{k} - 1])"),
            variant(
                lambda v, g: sum(list(zip(*g, strict=True))[v["k"]]),
                what="column",
                base="0",
                expr="sum(row[{k}] for row in {arg})",
            ),
            variant(
                lambda v, g: sum(list(zip(*g, strict=True))[v["k"] - 1]),
                what="column",
                base="1",
                expr="sum(row[{k} - 1] for row in {arg})",
            ),
        ),
        ("return {expr}", "total = {expr}\nreturn total"),
        drawing(k=(1, 5), arg=["grid", "table", "matrix", "board", "rows"]),
        lambda rng, v: [([numbers(rng, 9, v["k"] + 2) for _ in range(v["k"] + 2)],) for _ in range(2)],
    ),
    Template(
        "combine_lists",
        ("combine", "merge_lists", "weighted", "pairwise"),
        "a, b",
        "a list with {what} for the elements x of `a` and y of `b` at the same position",
        (
            variant(
                lambda v, a, b: [a[i] + v["k"] * b[i] for i in range(len(a))],
                what="x plus {k} times y",
                expr="x + {k} * y",
            ),
            variant(
                lambda v, a, b: [v["k"] * a[i] + b[i] for i in range(len(a))],
                what="{k} times x plus y",
                expr="{k} * x + y",
            ),
            variant(
                lambda v, a, b: [a[i] - v["k"] * b[i] for i in range(len(a))],
                what="x minus {k} times y",
                expr="x - {k} * y",
            ),
            variant(
                lambda v, a, b: [v["k"] * a[i] - b[i] for i in range(len(a))],
                what="{k} times x minus y",
                expr="{k} * x - y",
            ),
        ),
        (
            "return [{expr} for x, y in zip(a, b)]",
            "result = []\nfor x, y in zip(a, b):\n    result.append({expr})\nreturn result",
        ),
        drawing(k=(2, 60)),
        lambda rng, v: [([1, 2], [3, 5]), (numbers(rng), numbers(rng)), ([], [])],
    ),
    Template(
        "count_pairs",
        ("count_pairs", "matching_pairs", "pair_count", "pairs"),
        "{arg}",
        "how many pairs of positions i < j in the list `{arg}` have values {what} {k}",
        (
            variant(
                lambda v, xs: sum(x + y == v["k"] for i, x in enumerate(xs) for y in xs[:i]),
                what="whose sum is",
                expr="{arg}[i] + {arg}[j]",
            ),
            variant(
                lambda v, xs: sum(x - y in (v["k"], -v["k"]) for i, x in enumerate(xs) for y in xs[:i]),
                what="that differ by",
                expr="abs({arg}[i] - {arg}[j])",
            ),
            variant(
                lambda v, xs: sum(x * y == v["k"] for i, x in enumerate(xs) for y in xs[:i]),
                what="whose product is",
                expr="{arg}[i] * {arg}[j]",
            ),
        ),
        (
            "count = 0\nfor i in range(len({arg})):\n    for j in range(i + 1, len({arg})):\n"
            "        if {expr} == {k}:\n            count += 1\nreturn count",
        ),
        drawing(k=(3, 40), arg=["a", "xs", "nums", "data"]),
        lambda rng, v: [
            ([1, v["k"], v["k"] + 1, v["k"] - 1, 1],),
            ([2, v["k"] + 2],),
            ([2, v["k"] - 2],),
            ([],),
            (numbers(rng, 6, 9, 6),),
        ],
    ),
)
