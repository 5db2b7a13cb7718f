"""Tasks over strings."""

from .template import COMPARE, LETTERS, TEXTS, Template, Variant, drawing, texts, variant

TEMPLATES = (
    Template(
        "shorten",
        ("shorten", "abbreviate", "cut_text"),
        "{arg}",
        "`{arg}` unchanged if it has at most {k} characters, and otherwise {how} followed by '{mark}'",
        (
            variant(
                lambda v, s: s if len(s) <= v["k"] else "".join(s[i] for i in range(v["k"])) + v["mark"],
                how="its first {k} characters",
                end=":{k}",
            ),
            variant(
                lambda v, s: s if len(s) <= v["k"] else "".join(s[i] for i in range(v["k"] - 2)) + v["mark"],
                how="its first {k} minus 2 characters",
                end=":{k} - 2",
            ),
            variant(
                lambda v, s: (
                    s if len(s) <= v["k"] else "".join(s[len(s) - v["k"] + i] for i in range(v["k"])) + v["mark"]
                ),
                how="its last {k} characters",
                end="-{k}:",
            ),
        ),
        (
            "if len({arg}) <= {k}:\n    return {arg}\nreturn {arg}[{end}] + '{mark}'",
            "return {arg} if len({arg}) <= {k} else {arg}[{end}] + '{mark}'",
        ),
        drawing(k=(4, 20), arg=TEXTS, mark=["...", "..", "~", "-", "*"]),
        lambda rng, v: [
            ("x" * v["k"],),
            ("abcdefghijklmnopqrstuvwxyz"[: v["k"] + 1],),
            ("",),
            ("the river stone " * 3,),
        ],
    ),
    Template(
        "count_letter",
        ("count_letter", "occurrences", "letter_count", "frequency"),
        "{arg}",
        "{what} of the string `{arg}`",
        (
            variant(
                lambda v, s: len([c for c in s if c in (v["c"], v["c"].upper())]),
                what="how often the letter '{c}' occurs, in upper or lower case, in all",
                expr="{arg}.lower().count('{c}')",
            ),
            variant(
                lambda v, s: len([c for c in s if c == v["c"]]),
                what="how often the lower-case letter '{c}' occurs in all",
                expr="{arg}.count('{c}')",
            ),
            variant(
                lambda v, s: sum(w[0] == v["c"] for w in s.split()),
                what="the number of words that begin with the lower-case letter '{c}'",
                expr="sum(word.startswith('{c}') for word in {arg}.split())",
            ),
            variant(
                lambda v, s: sum(w[-1] == v["c"] for w in s.split()),
                what="the number of words that end with the lower-case letter '{c}'",
                expr="sum(word.endswith('{c}') for word in {arg}.split())",
            ),
        ),
        ("return {expr}", "count = {expr}\nreturn count"),
        drawing(c=LETTERS, arg=TEXTS),
        lambda rng, v: [
            (f"{v['c'].upper()}x {v['c']}x y{v['c']} {v['c']}{v['c']}{v['c']}z",),
            (v["c"] * 3,),
            ("",),
            *texts(rng, v),
        ],
    ),
    Template(
        "replace_letter",
        ("swap_letters", "rewrite", "substitute", "change_letters"),
        "{arg}",
        "the string `{arg}` with {what}",
        (
            variant(
                lambda v, s: "".join(v["d"] if c == v["c"] else c for c in s),
                what="every '{c}' replaced by '{d}'",
                call="'{c}', '{d}'",
            ),
            variant(
                lambda v, s: s if v["c"] not in s else s[: s.index(v["c"])] + v["d"] + s[s.index(v["c"]) + 1 :],
                what="only the first '{c}' replaced by '{d}'",
                call="'{c}', '{d}', 1",
            ),
            variant(
                lambda v, s: "".join(v["c"] if c == v["d"] else c for c in s),
                what="every '{d}' replaced by '{c}'",
                call="'{d}', '{c}'",
            ),
            variant(lambda v, s: "".join(c for c in s if c != v["c"]), what="every '{c}' removed", call="'{c}', ''"),
        ),
        ("return {arg}.replace({call})", "result = {arg}.replace({call})\nreturn result"),
        drawing(c=list("aeins"), d=list("ourtx"), arg=TEXTS),
        lambda rng, v: [(v["c"] * 3 + v["d"] * 2,), (v["d"] + "z" + v["c"] + "z" + v["c"],), *texts(rng, v)],
    ),
    Template(
        "pad",
        ("pad", "align", "fill", "widen"),
        "{arg}",
        "the string `{arg}` padded on the {side} with '{c}' to {k} characters, unchanged if it is longer",
        (
            variant(lambda v, s: v["c"] * (v["k"] - len(s)) + s, side="left", call="rjust"),
            variant(lambda v, s: s + v["c"] * (v["k"] - len(s)), side="right", call="ljust"),
        ),
        ("return {arg}.{call}({k}, '{c}')", "padded = {arg}.{call}({k}, '{c}')\nreturn padded"),
        drawing(k=(4, 30), c=list("-*.0_#=+"), arg=TEXTS),
        lambda rng, v: [("ab",), ("x" * v["k"],), ("y" * (v["k"] + 2),), ("",)],
    ),
    Template(
        "reverse_words",
        ("mirror_words", "reverse_some", "flip_words", "turn_words"),
        "{arg}",
        "the string `{arg}` with each word {what} {k} letters reversed and the other words unchanged",
        tuple(
            Variant(
                lambda v, s, keep=c.oracle: " ".join(
                    "".join(reversed(w)) if keep(len(w), v["k"]) else w for w in s.split()
                ),
                {
                    "what": "of " + c.fields["rel"].replace("greater", "more").replace("less", "fewer"),
                    "op": c.fields["op"],
                },
            )
            for c in COMPARE
        ),
        (
            "return ' '.join(word[::-1] if len(word) {op} {k} else word for word in {arg}.split())",
            "words = []\nfor word in {arg}.split():\n    words.append(word[::-1] if len(word) {op} {k} else word)\n"
            "return ' '.join(words)",
        ),
        drawing(k=(2, 7), arg=TEXTS),
        lambda rng, v: [(" ".join("abcdefghij"[:n] for n in range(v["k"] - 1, v["k"] + 3)),), *texts(rng, v)[:3]],
    ),
)
