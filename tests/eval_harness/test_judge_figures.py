"""What is said of judges: planted ones with right values by hand, and published ones with known answers."""

import json
from itertools import product

import pytest
from judge_server import JudgeServer, answers_of, first, good, longer

from eval_harness.agreement.comparing import accuracy, against_labels
from eval_harness.agreement.comparisons import labels
from eval_harness.agreement.length_bias import length_bias
from eval_harness.agreement.pairwise import TURNED, debiased_win_rate, position_bias
from eval_harness.agreement.problems import DataError
from eval_harness.agreement.reading import ALPACA_EVAL, read_verdicts
from eval_harness.agreement.verdicts import TIE, ScoreTable, Verdict
from eval_harness.annotation.items import make_item
from eval_harness.judging import judge_items, read_judge, summarise
from eval_harness.judging.summary import text
from ledpo_plugin.experiments.studies.shown import shares_words, turned_words

# Eight comparisons of "base" with "ours": length of either answer, and which is better (1 ours, -1 base). The last two
# are of one text with itself. Of the six others, the longer is the better in three.
LENGTHS = [(10, 20), (20, 10), (10, 20), (20, 10), (30, 10), (10, 30), (15, 15), (15, 15)]
BETTER = [1, 1, 1, -1, 1, -1, 0, 0]
TASTES = {
    "first": lambda one, two: 1,
    "longer": lambda one, two: 1 if LENGTHS[one[0]][one[1]] > LENGTHS[two[0]][two[1]] else 2,
    "knows": lambda one, two: 1 if (BETTER[one[0]] > 0) == (one[1] == 1) else 2,
}


def planted(taste):
    """Return the verdicts of a planted judge in both orders; a text is a tie with itself, and known to be the same."""
    found = []
    for item, better in enumerate(BETTER):
        for left, right in ((0, 1), (1, 0)):
            names = [("base", "ours")[side] for side in (left, right)]
            same = better == 0
            said = TIE if same else TASTES[taste]((item, left), (item, right))
            found.append(Verdict(f"q{item}", "judge", *names, said, same_text=same))
    return found


def lengths():
    return ScoreTable("length", {f"q{i}": {"base": a, "ours": b} for i, (a, b) in enumerate(LENGTHS)})


def right():
    return {(f"q{i}", "base", "ours"): -better for i, better in enumerate(BETTER) if better}


def shares(found):
    return [figure.value for figure in (found.same_text, found.same_verdict, found.turned)]


@pytest.mark.parametrize(
    ("taste", "steady", "turned", "at_first", "for_longer", "is_right"),
    [
        ("first", 0, 6 / 8, 1, 1 / 2, 1 / 2),  # turns on all six; a tie of each is half right
        ("longer", 6 / 8, 0, 1 / 2, 1, 3 / 6),  # the longer is the better in q0, q2 and q3 alone
        ("knows", 6 / 8, 0, 1 / 2, None, 1),
    ],
)
def test_planted_judges_by_hand(taste, steady, turned, at_first, for_longer, is_right):
    given = planted(taste)
    found = position_bias(given, "judge")
    assert shares(found) == pytest.approx([2 / 8, steady, turned])
    assert sum(shares(found)) == pytest.approx(1)
    assert (found.both, found.unknown, found.graded) == (8, 0, False)
    assert found.consistency.value == pytest.approx(steady / (steady + turned))  # of the six different texts
    assert (found.first_position.n, found.first_position.value) == (6, at_first)
    length = length_bias(given, "judge", lengths(), draws=20)
    assert (length.same_text, length.equal, length.verdicts) == (4, 0, 12)
    # A judge that knows is for the longer where that is the better: in q0, q2 and q3.
    assert length.longer.value == pytest.approx(3 / 6 if for_longer is None else for_longer)
    assert accuracy(labels(given, "judge"), right()).value == pytest.approx(is_right)


def test_a_judge_that_draws_lots_by_hand():
    # All four outcomes of drawing in each order once: the same winner twice, another one twice.
    given = []
    for item, (one, two) in enumerate(product((1, 2), repeat=2)):
        given += [Verdict(f"q{item}", "judge", "a", "b", one, same_text=False),
                  Verdict(f"q{item}", "judge", "b", "a", two, same_text=False)]  # fmt: skip
    found = position_bias(given, "judge")
    assert shares(found) == [0, 0.5, 0.5]
    assert (found.consistency.value, found.first_position.value) == (0.5, 0.5)
    truth = {(f"q{item}", "a", "b"): 1 for item in range(4)}
    ratings = {"judge": labels(given, "judge"), "right": truth}
    rows = {row["name"]: row["value"] for row in against_labels(ratings, "right", draws=20)["with_labels"]}
    assert rows["accuracy"] == 0.5  # chance
    assert rows["percent_agreement"] == 0.25  # right both times


def test_turned_verdicts_of_letters_are_ties_and_of_graded_judges_are_not():
    letters = [Verdict("q", "judge", "a", "b", 1), Verdict("q", "judge", "b", "a", 1)]
    rate = debiased_win_rate(letters, "judge", "a", "b")
    assert (rate.rate.value, rate.wins, rate.ties, rate.losses, rate.turned) == (0.5, 0, 1, 0, 1)
    # First a by 0.9, then b by 0.6: a gains 0.9 and 0.4, mean 0.65: a win of a's, though the verdict turned.
    graded = [
        Verdict("q", "judge", "a", "b", 1, strength=1.1),
        Verdict("q", "judge", "b", "a", 1, strength=1.4),
        # The same side both ways, however unlike the strengths: no turn.
        Verdict("r", "judge", "a", "b", 1, strength=1.01),
        Verdict("r", "judge", "b", "a", 2, strength=1.51),
    ]
    rate = debiased_win_rate(graded, "judge", "a", "b")
    assert rate.rate.value == pytest.approx((0.65 + (0.99 + 0.51) / 2) / 2)
    assert (rate.wins, rate.ties, rate.losses, rate.turned) == (2, 0, 0, 1)
    found = position_bias(graded, "judge")
    assert found.graded
    assert shares(found) == [0, 0.5, 0.5]
    assert found.first_position.value == 3 / 4  # by the side, not by 0.9 + 0.6 + 0.99 + 0.49
    longer_a = ScoreTable("length", {item: {"a": 2.0, "b": 1.0} for item in "qr"})
    assert length_bias(graded, "judge", longer_a, draws=20).longer.value == 3 / 4
    assert TURNED[False] in turned_words([[{"name": "first_position", "graded": False}]])
    assert TURNED[True] in turned_words([[{"name": "first_position", "graded": True}]])


def test_comparisons_of_one_text_only_say_nothing():
    given = [Verdict("q", "judge", *pair, TIE, same_text=True) for pair in ("ab", "ba")]
    found = position_bias(given, "judge")
    assert shares(found) == [1, 0, 0]
    for figure in (found.consistency, found.first_position):
        assert (figure.value, figure.why) == (None, "every comparison is of a text with itself")
    own = length_bias(given, "judge", ScoreTable("length", {"q": {"a": 1.0, "b": 1.0}}), draws=20)
    assert (own.verdicts, own.same_text, own.longer.why) == (0, 2, "every verdict is on a text and itself")


def test_a_judge_over_http_on_texts_some_of_which_are_the_same(tmp_path):
    """The judge that likes the first place, with half of its comparisons of a text and itself: not steady at all."""
    words = [("bad", "good " * (1 + i % 3)) if i % 2 else ("same", "same") for i in range(12)]
    items = [make_item(f"Question {i}?", pair, ("base", "ours")) for i, pair in enumerate(words)]
    found = {}
    for taste in (first, longer, good):
        with JudgeServer(lambda question, n, taste=taste: taste(question)) as server:
            done = judge_items(items, read_judge(server.judge()), tmp_path / taste.__name__, log=lambda line: None)
            assert all(answers_of(question)[0] != answers_of(question)[1] for question in server.asked)
        found[taste] = summarise(done, items)
    rows = {taste: {row["name"]: row for row in own["position"]} for taste, own in found.items()}
    assert [rows[first][name]["value"] for name in ("same_text", "same_verdict", "turned")] == [0.5, 0, 0.5]
    assert rows[first]["swap_consistency"]["value"] == 0
    assert rows[first]["first_position"]["value"] == 1
    for taste in (longer, good):
        assert [rows[taste][name]["value"] for name in ("same_text", "same_verdict", "turned")] == [0.5, 0.5, 0]
        assert rows[taste]["first_position"]["value"] == 0.5
    assert "6 of them turned" in text(found[first])
    assert "12 comparisons in both orders 50.0 % are of a text with itself, 0.0 % have" in shares_words(
        found[first]["position"]
    )


def test_same_texts_are_known_from_files(tmp_path):
    row = {"instruction": "q", "annotator": "judge", "generator_1": "a", "generator_2": "b", "preference": 1.5}
    path = tmp_path / "annotations.json"
    rows = [row | {"output_1": "x", "output_2": "x"}, row | {"instruction": "r", "output_1": "x", "output_2": "y"}]
    path.write_text(json.dumps([*rows, row | {"instruction": "s"}]))
    assert [v.same_text for v in read_verdicts(path, columns=ALPACA_EVAL)] == [True, False, None]
    path.write_text(json.dumps([rows[1] | {"same_text": True}]))
    assert [v.same_text for v in read_verdicts(path, columns=ALPACA_EVAL)] == [True]
    path.write_text(json.dumps([row | {"same_text": "perhaps"}]))
    with pytest.raises(DataError, match="true or false"):
        read_verdicts(path, columns=ALPACA_EVAL)


# LLMBar (Zeng et al., arXiv:2310.07641; MIT), verdicts of its "Vanilla" judges: for each set and judge how often
# (label, winner as shown, winner with the answers swapped) occurs, and what its repository's statistics.json says:
# average accuracy, and agreement of both orders. None: no verdict was understood.
LLMBAR = {
    ("Natural", "GPT-4"): (
        {"111": 39, "222": 54, "212": 2, "121": 1, "211": 1, "221": 1, "112": 1, "122": 1}, 0.955, 0.95),
    ("Natural", "ChatGPT"): (
        {"111": 25, "222": 42, "112": 12, "212": 13, "121": 3, "122": 2, "211": 2, "221": 1}, 0.815, 0.71),
    ("Natural", "LLaMA2"): (
        {"121": 5, "111": 28, "222": 42, "221": 4, "122": 4, "112": 5, "212": 7, "211": 5}, 0.805, 0.79),
    ("GPTInst", "GPT-4"): (
        {"222": 37, "111": 40, "212": 3, "211": 6, "122": 4, "121": 1, "221": 1}, 79.5 / 92, 87 / 92),
    ("GPTInst", "ChatGPT"): (
        {"222": 5, "211": 25, "112": 17, "212": 16, "122": 25, "111": 2, "221": 1, "121": 1}, 24.5 / 92, 57 / 92),
    # One verdict was not understood. The repository counts it as wrong, and as no agreement (67 of 92).
    ("GPTInst", "LLaMA2"): (
        {"222": 10, "211": 26, "112": 10, "221": 2, "212": 9, "111": 6, "122": 25, "121": 3, "1-2": 1},
        28 / 91, 67 / 91),
}  # fmt: skip


@pytest.mark.parametrize("which", LLMBAR)
def test_published_judges_have_their_published_figures(which):
    counts, is_right, agree = LLMBAR[which]
    given, truth = [], {}
    for outcome, count in counts.items():
        for number in range(count):
            item = f"{outcome} {number}"
            label, shown, swapped = outcome
            truth[item, "1", "2"] = 1 if label == "1" else -1
            preference = {"1": 1, "2": 2, "-": None}
            given.append(Verdict(item, "judge", "1", "2", preference[shown], None if shown != "-" else "no verdict"))
            given.append(Verdict(item, "judge", "2", "1", 3 - preference[swapped]))
    found = position_bias(given, "judge")
    both = {v.item for v in given} - {v.item for v in given if v.preference is None}
    rated = {key: value for key, value in labels(given, "judge").items() if key[0] in both}
    assert accuracy(rated, truth).value == pytest.approx(is_right)
    assert found.consistency.value == pytest.approx(agree)
    assert found.same_verdict.value + found.turned.value == pytest.approx(1)
