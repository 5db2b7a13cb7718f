"""Real pairs of a file that a user brings: what is read, what is left out, how it is split, and what is refused."""

import gzip
import random
from pathlib import Path

import pytest
from hh_rows import WordTokenizer, dialogue, made_rows, row, write

from ledpo_plugin import cli
from ledpo_plugin.experiments.data import hh
from ledpo_plugin.experiments.data.rows import prompt_of
from ledpo_plugin.quickstart.data import DataError

ROOT = Path(__file__).parents[2]
SIZES = hh.Sizes(test=20, validation=10, train=30, limits=(40, 60, 80))


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "test.jsonl.gz", made_rows(100))


def make(file, sizes=SIZES):
    return hh.make_hh(file, WordTokenizer(), sizes)


def openings(rows):
    return {each["conversations"][0]["value"] for each in rows}


def test_dialogues_are_split_at_their_last_answer(tmp_path):
    given = [row(["one", "two", "three"], " four ", "five\n\nsix")]
    pairs, left_out = hh.read_pairs(write(tmp_path / "f.jsonl", given, pack=False))
    assert left_out == {}
    assert pairs == [
        {
            "conversations": [
                {"from": "human", "value": "one"},
                {"from": "gpt", "value": "two"},
                {"from": "human", "value": "three"},
            ],
            "chosen": {"from": "gpt", "value": "four"},
            "rejected": {"from": "gpt", "value": "five\n\nsix"},
        }
    ]


def test_what_is_no_pair_is_left_out_and_counted(tmp_path):
    good = row(["ask"], "yes", "no")
    given = [
        good,
        {"chosen": dialogue(["ask"], "yes"), "rejected": dialogue(["other"], "no")},
        row(["ask"], "", "no"),
        row(["ask"], "same", " same "),
        row(["ask", "answer", ""], "yes", "no"),
        {side: dialogue(["ask"], word).replace("Human: ask", "Human: a\n\nHuman: b") for side, word in
         (("chosen", "yes"), ("rejected", "no"))},
        good,
    ]  # fmt: skip
    pairs, left_out = hh.read_pairs(write(tmp_path / "f.gz", given))
    assert len(pairs) == 1
    assert left_out == {
        "the two dialogues do not share the prompt": 1,
        "an answer is empty": 1,
        "the answers are the same": 1,
        "user and assistant do not take turns": 2,
        "the same pair again": 1,
    }


def test_sets_are_full_and_share_no_dialogue(file):
    sets, about = make(file)
    assert {name: len(rows) for name, rows in sets.items()} == {"hh_test": 20, "hh_validation": 10, "hh_train": 30}
    names = list(sets)
    for one in names:
        for other in names[names.index(one) + 1 :]:
            assert not {prompt_of(each) for each in sets[one]} & {prompt_of(each) for each in sets[other]}
            assert not openings(sets[one]) & openings(sets[other]), "a dialogue and its continuation are in one set"
    told = about["hh_train"]
    assert (told["kind"], told["licence"]) == ("real", "MIT")
    assert told["selection"]["pairs_in_source"] == 100
    assert sum(told["selection"]["left_out"].values()) == 40


def test_the_choice_is_of_the_prompts_and_not_of_their_order(file, tmp_path):
    rows = made_rows(100)
    random.Random(5).shuffle(rows)
    sets, other = make(file)[0], make(write(tmp_path / "other.gz", rows))[0]
    for name in sets:
        assert sorted(map(str, sets[name])) == sorted(map(str, other[name]))
    first = [f"\n\nHuman: {each['conversations'][0]['value']}" for each in sets["hh_test"]]
    places = [i for i, each in enumerate(made_rows(100)) if each["chosen"].startswith(tuple(first))]
    assert max(places) - min(places) > 50, "not the first rows of the file"


def test_the_limit_is_the_first_that_fills_the_sets_else_the_last(tmp_path):
    short = make(write(tmp_path / "short.gz", made_rows(100, longest=8)))[1]["hh_test"]["selection"]
    assert short["limit"] == 40
    rows = made_rows(20, longest=8) + made_rows(60, longest=70, seed=2)
    sets, about = make(write(tmp_path / "long.gz", rows))
    assert about["hh_test"]["selection"]["limit"] > 40
    few = made_rows(50)
    sets, about = make(write(tmp_path / "few.gz", few))
    assert about["hh_test"]["selection"]["limit"] == 80
    assert len(sets["hh_test"]) == 20
    assert len(sets["hh_train"]) == 20


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("f.jsonl.gz", b"<html>no such page</html>", r"named \.gz but is not packed by gzip"),
        ("f.jsonl.gz", gzip.compress(b'{"chosen": "a", "rejected": "b"}\n' * 99)[:-12], "damaged"),
        ("f.jsonl", b"\xff\xfe\xff", "damaged or no text"),
        ("f.jsonl", b"{]\n", "line 1: it is no JSON"),
        ("f.jsonl", b"[1]\n", "line 1: .*it has list"),
        ("f.jsonl", b'\n{"prompt": "a", "answer": "b"}\n', "line 2: .*it has prompt, answer"),
        ("f.jsonl", b'{"chosen": "a", "rejected": 1}\n', "line 1: chosen and rejected are to be whole dialogues"),
        ("f.jsonl", b"", "too few rows for a study: of its 0 usable pairs"),
    ],
    ids=["not packed", "cut off", "no text", "no JSON", "no object", "other keys", "no dialogue", "empty"],
)
def test_a_file_that_cannot_be_used_is_refused_with_what_to_do(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        make(tmp_path / name)
    assert "ledpo prepare --hh FILE" in str(error.value)
    assert hh.HUB in str(error.value)


def test_too_few_rows_and_no_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"too few rows.*hh_train 5 of at least 15"):
        make(write(tmp_path / "few.gz", made_rows(35)))
    with pytest.raises(DataError, match="cannot be read"):
        hh.read_pairs(tmp_path / "absent.gz")


def test_what_is_no_such_file_is_not_kept(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(DataError):
        hh.keep(tmp_path / "bad.jsonl", tmp_path / "work")
    assert hh.kept(tmp_path / "work") is None


def test_sets_that_nobody_brought_are_refused(tmp_path, file):
    hh.require(["general_train"], tmp_path)
    with pytest.raises(DataError, match=r"hh_test, hh_train: .*`ledpo prepare --hh FILE`") as error:
        hh.require(["hh_train", "hh_test", "general_train"], tmp_path)
    assert "huggingface.co/datasets/Anthropic/hh-rlhf" in str(error.value)
    hh.keep(file, tmp_path)
    hh.require(["hh_train"], tmp_path)


def test_a_study_without_its_sets_is_refused_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = cli.main(["run", str(ROOT / "yaml_recipes" / "fixed_beta_impact"), "--profile", "study"])
    assert status == 1
    said = capsys.readouterr().err
    assert "ledpo prepare --hh FILE" in said
    assert "hh_test, hh_train, hh_validation" in said
    assert list(tmp_path.iterdir()) == []
