"""Diversity, repetition and accuracy of texts: hand-worked values, and sacrebleu for self-BLEU."""

from decimal import Decimal
from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU

from eval_harness.text import (
    TEXT_METRICS,
    distinct,
    final_number,
    numeric_accuracy,
    repetition,
    self_bleu,
    text_metrics,
)
from ledpo_plugin.cli.tables import metrics_table, refresh
from ledpo_plugin.experiments.definition.metrics import known_metrics
from ledpo_plugin.experiments.measuring.columns import of_answers, of_generations
from ledpo_plugin.experiments.report import formatting


def test_distinct_counts_over_all_texts():
    # bigrams: ab bc | ab bd: 3 different of 4; unigrams: a b c d of 6
    texts = ["a b c".split(), "a b d".split()]
    assert distinct(texts, 2) == pytest.approx(3 / 4)
    assert distinct(texts, 1) == pytest.approx(4 / 6)
    assert distinct([[1, 1, 1]], 3) == 1
    assert distinct([[1], []], 2) is None
    with pytest.raises(ValueError, match="n is 0"):
        distinct(texts, 0)


def test_repetition_is_the_share_of_grams_that_came_before():
    # 4-grams of 1212121: 1212 2121 1212 2121: 2 different of 4
    assert repetition([1, 2, 1, 2, 1, 2, 1], 4) == pytest.approx(0.5)
    assert repetition([1, 2, 3, 4, 5], 4) == 0
    assert repetition([1, 2, 3], 4) is None


def test_self_bleu_is_the_mean_over_texts_by_the_library():
    texts = ["the cat sat on the mat today", "the cat sat on a mat today", "dogs run fast over there now"]
    bleu = BLEU(effective_order=True)
    wanted = [
        bleu.sentence_score(texts[0], [texts[1], texts[2]]).score,
        bleu.sentence_score(texts[1], [texts[0], texts[2]]).score,
        bleu.sentence_score(texts[2], [texts[0], texts[1]]).score,
    ]
    assert self_bleu(texts) == pytest.approx(sum(wanted) / 300)
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1)
    assert self_bleu(["alone"]) is None


def test_self_bleu_by_hand():
    # a b c d e against a b c d f: precisions 4/5, 3/4, 2/3, 1/2, no brevity penalty: (1/5)^(1/4), both ways
    assert self_bleu(["a b c d e", "a b c d f"]) == pytest.approx(0.2**0.25, abs=1e-6)


def test_self_bleu_of_empty_texts():
    assert self_bleu(["", " "]) == 1
    assert self_bleu(["", "words here"]) == pytest.approx(0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("That makes 60.3 L.", "60.3"),
        ("10 mg / 5 mg = 2 tablets. The answer is 2 tablets.", "2"),
        ("So it is 1,250.50 euros", "1250.50"),
        ("from 5 down to -3.", "-3"),
        ("It is \N{MINUS SIGN}0.5", "-0.5"),
        ("v2 is a version, 7 a number", "7"),
        ("no number", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("output", "answer", "right"),
    [
        ("I get 60.3 litres", "That makes 60.3 L.", 1),
        ("about 60.34", "60.3 L", 1),  # the same to as many decimals as the answer has
        ("about 60.36", "60.3 L", 0),
        ("60", "60.3 L", 0),
        ("2.0 tablets", "2 tablets", 1),
        ("20 tablets", "2 tablets", 0),
        ("2 or perhaps 3", "2 tablets", 0),  # the last one counts
        ("I do not know", "2 tablets", 0),
    ],
)
def test_numeric_accuracy(output, answer, right):
    assert numeric_accuracy(output, answer) == right


def test_numeric_accuracy_needs_a_right_number():
    with pytest.raises(ValueError, match="has no number"):
        numeric_accuracy("2", "two")


# --- The table: a row is measured, reported and documented by itself --------------------------------------------------

ANSWERS = [
    {"output": "a b a b a b", "ids": [1, 2, 1, 2, 1, 2], "ended": True},
    {"output": "a b c", "ids": [1, 2, 3], "ended": False},
    {"output": "", "ids": [], "ended": True},
]
# Of these answers, by hand: 9 tokens, 3 of them distinct; 7 bigrams, 12 21 23 distinct; of the first one's three
# 4-grams one came before, and the others have none.
EXPECTED = {"distinct1": 3 / 9, "length": 3, "ended": 2 / 3, "distinct2": 3 / 7, "repetition": 1 / 3}


def test_every_text_metric_has_a_value_that_was_worked_out_by_hand():
    assert text_metrics(ANSWERS, drawn=True) == pytest.approx(EXPECTED)
    assert text_metrics([], drawn=True) == {}


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_a_row_appears_in_measuring_reports_and_documents_by_itself(name):
    row = TEXT_METRICS[name]
    drawn = [{**answer, "logps": -3.0, "start_logps": -4.0, "entropy": 0.5} for answer in ANSWERS]
    assert of_answers(drawn)[name] == pytest.approx(EXPECTED[name])
    assert (name in of_generations(ANSWERS)) == (not row.drawn_only)
    evaluation = {"pairs": [], "answers": {"prompts": "x"}, "generations": {"prompts": "x"}}
    prefixes = ("answers",) if row.drawn_only else ("gen", "answers")
    for prefix in prefixes:
        assert f"{prefix}/{name}" in known_metrics(evaluation)
        assert formatting.meaning(f"{prefix}/{name}") == row.meaning
        assert (formatting.metric(f"{prefix}/{name}").unit, formatting.metric(name).better) == (row.unit, row.better)
    assert metrics_table().count(f"| `{name}` |") == len(prefixes)


def test_the_document_of_metrics_is_current():
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert refresh(text) == text, "run `make tables`"
