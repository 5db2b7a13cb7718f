"""Tasks over lists of anything and dicts."""

from .template import THINGS, Template, compared, drawing, numbers, sequences, variant, word_lists

TEMPLATES = (
    Template(
        "slice_ends",
        ("take", "part_of", "trim", "select"),
        "{arg}",
        "{which} of the list `{arg}`",
        (
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i < v["k"]], which="the first {k} elements", cut=":{k}"
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i >= len(xs) - v["k"]],
                which="the last {k} elements",
                cut="-{k}:",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i >= v["k"]],
                which="all but the first {k} elements",
                cut="{k}:",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i < len(xs) - v["k"]],
                which="all but the last {k} elements",
                cut=":-{k}",
            ),
        ),
        ("return {arg}[{cut}]", "part = {arg}[{cut}]\nreturn part"),
        drawing(k=(2, 14), arg=THINGS),
        sequences,
    ),
    Template(
        "element_at",
        ("element", "pick_one", "get_item", "lookup"),
        "{arg}",
        "the element of the list `{arg}` at position {k}, counting {how}",
        (
            variant(lambda v, xs: xs[v["k"] - 1], how="from 1", index="{k} - 1"),
            variant(lambda v, xs: xs[: v["k"] + 1][-1], how="from 0", index="{k}"),
            variant(
                lambda v, xs: list(reversed(xs))[v["k"] - 1], how="from the end, the last one being 1", index="-{k}"
            ),
        ),
        ("return {arg}[{index}]", "position = {index}\nreturn {arg}[position]"),
        drawing(k=(2, 14), arg=THINGS),
        sequences,
    ),
    Template(
        "top_words",
        ("top", "leading", "choose_words", "ranked"),
        "{arg}",
        "the {k} {which} strings of the list `{arg}`, in that order{ties}",
        (
            variant(
                lambda v, ws: [w for _, _, w in sorted((len(w), i, w) for i, w in enumerate(ws))][: v["k"]],
                which="shortest",
                ties=" (ties stay as they are)",
                how="key=len",
            ),
            variant(
                lambda v, ws: [w for _, _, w in sorted((-len(w), i, w) for i, w in enumerate(ws))][: v["k"]],
                which="longest",
                ties=" (ties stay as they are)",
                how="key=len, reverse=True",
            ),
            variant(lambda v, ws: sorted(ws)[: v["k"]], which="alphabetically first", ties="", how="key=str"),
            variant(
                lambda v, ws: sorted(ws, reverse=True)[: v["k"]],
                which="alphabetically last",
                ties="",
                how="key=str, reverse=True",
            ),
        ),
        ("return sorted({arg}, {how})[:{k}]", "ordered = sorted({arg}, {how})\nreturn ordered[:{k}]"),
        drawing(k=(2, 9), arg=["words", "names", "tags", "labels", "titles"]),
        word_lists,
    ),
    Template(
        "keys_compared",
        ("names_with", "select_keys", "qualified", "find_keys"),
        "{arg}",
        "a sorted list of the keys of the dict `{arg}` whose value is {rel} {k}",
        compared(lambda keep, v, d: sorted(key for key in d if keep(d[key]))),
        (
            "result = []\nfor key, value in {arg}.items():\n    if value {op} {k}:\n        result.append(key)\n"
            "return sorted(result)",
            "return sorted(key for key, value in {arg}.items() if value {op} {k})",
        ),
        drawing(k=(1, 90), arg=["scores", "prices", "stock", "ages", "points"]),
        lambda rng, v: [
            ({"a": v["k"], "b": v["k"] + 1, "c": v["k"] - 1},),
            ({},),
            ({"x": v["k"]},),
            (dict(zip("fedcba", numbers(rng, v["k"], 6), strict=True)),),
        ],
    ),
    Template(
        "dict_total",
        ("order_total", "total_for", "sum_keys", "bill"),
        "{arg}, keys",
        "the sum of the values that the dict `{arg}` holds for the list `keys`, where a key that is missing {what}",
        (
            variant(
                lambda v, d, keys: sum(d[k] for k in keys if k in d) + v["k"] * sum(k not in d for k in keys),
                what="counts {k}",
                default="{k}",
            ),
            variant(
                lambda v, d, keys: sum(d[k] for k in keys if k in d) - v["k"] * sum(k not in d for k in keys),
                what="takes {k} away",
                default="-{k}",
            ),
            variant(
                lambda v, d, keys: sum(d[k] for k in keys if k in d) + (v["k"] + 1) * sum(k not in d for k in keys),
                what="counts one more than {k}",
                default="{k} + 1",
            ),
        ),
        (
            "total = 0\nfor key in keys:\n    total += {arg}.get(key, {default})\nreturn total",
            "return sum({arg}.get(key, {default}) for key in keys)",
        ),
        drawing(k=(1, 60), arg=["prices", "scores", "stock", "weights"]),
        lambda rng, v: [({"a": 2, "b": 5}, ["a", "c"]), ({}, ["x", "y"]), ({"a": 1}, []), ({"q": 7}, ["q", "q"])],
    ),
    Template(
        "every_kth",
        ("every_nth", "thin_out", "sample", "pick_regular"),
        "{arg}",
        "every {k}th element of the list `{arg}`, {which}",
        (
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i % v["k"] == 0],
                which="beginning with the first one",
                cut="::{k}",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs, 1) if i % v["k"] == 0],
                which="beginning with the {k}th one",
                cut="{k} - 1::{k}",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(reversed(xs)) if i % v["k"] == 0],
                which="backwards from the last one",
                cut="::-{k}",
            ),
            variant(
                lambda v, xs: [x for i, x in enumerate(xs) if i and i % v["k"] == 0],
                which="beginning with the one after the first {k}",
                cut="{k}::{k}",
            ),
        ),
        ("return {arg}[{cut}]", "chosen = {arg}[{cut}]\nreturn chosen"),
        drawing(k=(4, 15), arg=THINGS),
        sequences,
    ),
    Template(
        "group",
        ("group_words", "build_index", "bucket", "collect"),
        "{arg}",
        "a dict from {what} to the list of strings in `{arg}` with it, leaving out strings shorter than {k}",
        (
            variant(
                lambda v, ws: {
                    w[0]: [x for x in ws if len(x) >= v["k"] and x[0] == w[0]] for w in ws if len(w) >= v["k"]
                },
                what="first letter",
                key="word[0]",
            ),
            variant(
                lambda v, ws: {
                    w[-1]: [x for x in ws if len(x) >= v["k"] and x[-1] == w[-1]] for w in ws if len(w) >= v["k"]
                },
                what="last letter",
                key="word[-1]",
            ),
            variant(
                lambda v, ws: {
                    len(w): [x for x in ws if len(x) >= v["k"] and len(x) == len(w)] for w in ws if len(w) >= v["k"]
                },
                what="length",
                key="len(word)",
            ),
        ),
        (
            "groups = {{}}\nfor word in {arg}:\n    if len(word) >= {k}:\n"
            "        groups.setdefault({key}, []).append(word)\nreturn groups",
        ),
        drawing(k=(1, 5), arg=["words", "names", "tags", "labels", "titles"]),
        lambda rng, v: [*word_lists(rng, v)[:3], (["abcdefgh", "hgfe"],)],
    ),
    Template(
        "join",
        ("join_words", "make_line", "combine", "build_text"),
        "{arg}",
        "one string of the strings in the list `{arg}`, with '{sep}' {what}",
        (
            variant(
                lambda v, ws: "".join(v["sep"] * (i > 0) + w for i, w in enumerate(ws)),
                what="between them",
                expr="'{sep}'.join({arg})",
            ),
            variant(
                lambda v, ws: "".join(x for w in ws for x in (w, v["sep"])),
                what="after each of them",
                expr="''.join(part + '{sep}' for part in {arg})",
            ),
            variant(
                lambda v, ws: "".join(x for w in ws for x in (v["sep"], w)),
                what="before each of them",
                expr="''.join('{sep}' + part for part in {arg})",
            ),
        ),
        ("return {expr}", "line = {expr}\nreturn line"),
        drawing(
            sep=["-", "+", ", ", " | ", "; ", "/", ":", "::", " -> ", "_", " & ", "#"],
            arg=["words", "names", "tags", "parts", "fields"],
        ),
        word_lists,
    ),
)
