"""Tasks that are never trained on: what is learned from the others has to carry over to these."""

from collections.abc import Callable

from .template import LISTS, TEXTS, THINGS, WORDS, Template, compared, drawing, numbers, sequences, variant


def _first(keep: Callable[[int], bool], numbers: list[int]) -> list[int]:
    count = 0
    while count < len(numbers) and keep(numbers[count]):
        count += 1
    return numbers[:count]


TEMPLATES = (
    Template(
        "take_while",
        ("leading_values", "take_start", "prefix", "opening"),
        "{arg}",
        "the values at the start of the list `{arg}` up to the first one that is not {rel} {k}",
        compared(lambda keep, v, xs: _first(keep, xs)),
        (
            "result = []\nfor value in {arg}:\n    if not value {op} {k}:\n        break\n"
            "    result.append(value)\nreturn result",
        ),
        drawing(k=(-10, 60), arg=LISTS),
        lambda rng, v: [
            ([v["k"] + d for d in ds],)
            for ds in ((1, 0, -1, 2), (-1, 0, 1, -2), (0, 1), (0, -1), (), (2, 1, 1), (-2, -3))
        ],
    ),
    Template(
        "rotate",
        ("rotate", "turn", "cycle", "shift_list"),
        "{arg}",
        "the list `{arg}` rotated by {k} places to the {side}; it has more than {k} elements",
        (
            variant(
                lambda v, xs: [xs[(i + v["k"]) % len(xs)] for i in range(len(xs))],
                side="left",
                expr="{arg}[{k}:] + {arg}[:{k}]",
            ),
            variant(
                lambda v, xs: [xs[(i - v["k"]) % len(xs)] for i in range(len(xs))],
                side="right",
                expr="{arg}[-{k}:] + {arg}[:-{k}]",
            ),
        ),
        ("return {expr}", "result = {expr}\nreturn result"),
        drawing(k=(2, 14), arg=THINGS),
        sequences,
    ),
    Template(
        "digits",
        ("digit_value", "digit_rule", "from_digits"),
        "n",
        "{what} of the decimal digits of the positive whole number `n`, plus {k}",
        (
            variant(lambda v, n: sum(n // 10**i % 10 for i in range(12)) + v["k"], what="the sum", expr="sum(digits)"),
            variant(
                lambda v, n: sorted(str(n)).pop() and int(sorted(str(n))[-1]) + v["k"],
                what="the largest",
                expr="max(digits)",
            ),
            variant(lambda v, n: int(sorted(str(n))[0]) + v["k"], what="the smallest", expr="min(digits)"),
            variant(
                lambda v, n: next(i for i in range(1, 13) if n < 10**i) + v["k"], what="the number", expr="len(digits)"
            ),
        ),
        ("digits = [int(digit) for digit in str(n)]\nreturn {expr} + {k}",),
        drawing(k=(1, 60)),
        lambda rng, v: [(1234,), (rng.randint(10_000, 99_999),), (905,), (77,)],
    ),
    Template(
        "shift_letters",
        ("shift_letters", "encode", "cipher"),
        "{arg}",
        "the lower-case string `{arg}` with every letter moved {k} places {what} in the alphabet, wrapping around",
        (
            variant(
                lambda v, s: "".join(
                    ("abcdefghijklmnopqrstuvwxyz" * 2)["abcdefghijklmnopqrstuvwxyz".index(c) + v["k"]] for c in s
                ),
                what="forward",
                op="+",
            ),
            variant(
                lambda v, s: "".join(
                    "abcdefghijklmnopqrstuvwxyz"["abcdefghijklmnopqrstuvwxyz".index(c) - v["k"]] for c in s
                ),
                what="back",
                op="-",
            ),
        ),
        (
            "return ''.join(chr((ord(c) - 97 {op} {k}) % 26 + 97) for c in {arg})",
            "result = ''\nfor c in {arg}:\n    result += chr((ord(c) - 97 {op} {k}) % 26 + 97)\nreturn result",
        ),
        drawing(k=(1, 12), arg=TEXTS),
        lambda rng, v: [("abc",), ("xyz",), ("",), (rng.choice(WORDS).lower(),)],
    ),
    Template(
        "window",
        ("window_values", "by_window", "local_values"),
        "{arg}",
        "a list with the {what} of every {k} neighbouring values in `{arg}`, {step}",
        (
            variant(
                lambda v, xs: [sum(w) for w in zip(*(xs[i:] for i in range(v["k"])), strict=False)],
                what="sum",
                step="moving on by one value",
                agg="sum",
                by="1",
            ),
            variant(
                lambda v, xs: [sorted(w)[-1] for w in zip(*(xs[i:] for i in range(v["k"])), strict=False)],
                what="maximum",
                step="moving on by one value",
                agg="max",
                by="1",
            ),
            variant(
                lambda v, xs: [sum(w) for w in zip(*[iter(xs)] * v["k"], strict=False)],
                what="sum",
                step="moving on by {k} values",
                agg="sum",
                by="{k}",
            ),
            variant(
                lambda v, xs: [sorted(w)[-1] for w in zip(*[iter(xs)] * v["k"], strict=False)],
                what="maximum",
                step="moving on by {k} values",
                agg="max",
                by="{k}",
            ),
        ),
        ("return [{agg}({arg}[i:i + {k}]) for i in range(0, len({arg}) - {k} + 1, {by})]",),
        drawing(k=(2, 9), arg=LISTS),
        lambda rng, v: [(numbers(rng, 20, 3 * v["k"] + 1),), (list(range(1, 2 * v["k"] + 1)),), ([1],)],
    ),
    Template(
        "find_index",
        ("find_position", "locate", "search", "index_of"),
        "{arg}",
        "the index of the {which} value in the list `{arg}` that is {rel} {k}, or -1 if there is none",
        tuple(
            variant(
                lambda v, xs, last=last, sign=sign: (
                    [-1] + [i for i, x in list(enumerate(xs))[::last] if sign * (x - v["k"]) > 0][::-1]
                )[-1],
                which=which,
                rel=rel,
                op=op,
                indices=indices,
            )
            for which, last, indices in (
                ("first", 1, "range(len({arg}))"),
                ("last", -1, "range(len({arg}) - 1, -1, -1)"),
            )
            for rel, sign, op in (("greater than", 1, ">"), ("less than", -1, "<"))
        ),
        ("for i in {indices}:\n    if {arg}[i] {op} {k}:\n        return i\nreturn -1",),
        drawing(k=(-10, 60), arg=LISTS),
        lambda rng, v: [([v["k"] + d for d in (0, 3, -2, 5, -1, 0)],), ([v["k"]],), ([],), (numbers(rng, v["k"], 8),)],
    ),
)
