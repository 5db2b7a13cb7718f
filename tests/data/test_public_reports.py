"""Inputs of public bug reports train, or are refused before training with row, rule and what to do."""

import copy
import math
import random

import public_inputs as inputs
import pytest
from conftest import series, train, write_recipe

from ledpo_plugin.cli import main
from ledpo_plugin.data.loading import load_data
from ledpo_plugin.data.unusable import NoUsableData
from ledpo_plugin.host.arguments import recipe_keys
from ledpo_plugin.host.contract import TUNER, host_api
from ledpo_plugin.recipes.check import RecipeError, check_recipe
from ledpo_plugin.recipes.files import data_notes
from ledpo_plugin.recipes.reading import read

GOOD = inputs.plain
ENTRY = {"formatting": "sharegpt", "ranking": True}
SIDES = {"chosen": "chosen", "rejected": "rejected"}


def recipe_for(tiny, tmp_path, entry, rows, **changes):
    folder = inputs.write_data(tmp_path / "data", "own", entry, rows)
    own = {"dataset_dir": str(folder), "template": "qwen", "per_device_train_batch_size": 2, "max_steps": 2}
    stage = "ledpo_kto" if inputs.is_labelled(entry) else "ledpo"
    recipe = tiny.recipe(tmp_path / "run", stage=stage, **(own | changes))
    return recipe | {"dataset": "own"}


def load(tiny, tmp_path, entry, rows, kind="pairs", stage="rm", **changes):
    """Return what is loaded of raw rows, and what is said; the check of recipes is passed by, as for a hub's data."""
    import importlib

    recipe = recipe_for(
        tiny, tmp_path, inputs.PAIRS, inputs.rows_of((inputs.PAIRS, GOOD), 4), cutoff_len=2000, **changes
    )
    arguments = importlib.import_module(TUNER).get_train_args(recipe)
    model_args, data_args, training_args = arguments[:3]
    inputs.write_data(tmp_path / "data", "own", entry, rows)
    said: list[str] = []
    tokenizer_module = host_api().load_tokenizer(model_args)
    data = load_data(
        kind,
        said.append,
        stage=stage,
        template=host_api().get_template(tokenizer_module["tokenizer"], copy.deepcopy(data_args)),
        model_args=model_args,
        data_args=data_args,
        training_args=training_args,
        tokenizer_module=tokenizer_module,
    )["train_dataset"]
    return data, said


@pytest.mark.parametrize("name", inputs.READ)
def test_what_users_have_is_valid_and_trains(tiny, tmp_path, name):
    entry, _ = inputs.READ[name]
    recipe = recipe_for(tiny, tmp_path, entry, inputs.rows_of(inputs.READ[name]))
    assert check_recipe(recipe, recipe_keys(), {}) == []
    first = series(train(recipe), "loss")[0]
    assert first == pytest.approx(0.5 if inputs.is_labelled(entry) else math.log(2), abs=1e-5)


@pytest.mark.parametrize("source", [inputs.READ["many turns, system"], inputs.READ["labels"]], ids=["pair", "label"])
def test_a_single_row_trains(tiny, tmp_path, source):
    recipe = recipe_for(tiny, tmp_path, source[0], inputs.rows_of(source, 1))
    assert len(series(train(recipe), "loss")) == 2


REFUSED = (
    (
        inputs.SWAPPED,
        "16 of 16 rows of",
        "the dialogue does not start with a message of the user (first: row 1: assist",
    ),
    (inputs.NUMBERS, "16 of 16 rows of", "column 'chosen' holds a number where a text is needed (first: row 1: 1)"),
    ((inputs.PAIRS, lambda rng, i: {"talk": "", **SIDES}), "has no column 'conversations'", "it has 'talk', 'chosen'"),
    (
        (inputs.LABELLED, lambda rng, i: inputs.labelled(rng, "good")),
        "neither true nor false, 1 nor 0",
        "first: row 1: good",
    ),
    ((ENTRY | {"columns": SIDES}, lambda rng, i: {"chosen": "a b", "rejected": "a c"}), "no prompt", "name its column"),
    (
        (
            {"ranking": True, "columns": inputs.ALPACA | {"response": "output"}},
            lambda rng, i: {"instruction": "a", "input": "", "output": ["b"]},
        ),
        "'output' is not a list of two answers",
        "row 1: ['b']",
    ),
)


@pytest.mark.parametrize(("source", "why", "where"), REFUSED)
def test_what_cannot_be_read_is_refused_with_file_row_and_rule(tiny, tmp_path, source, why, where):
    entry, rows = source[0], inputs.rows_of(source)
    recipe = recipe_for(tiny, tmp_path, entry, rows)
    (found,) = check_recipe(recipe, recipe_keys(), {})
    assert found.key == "dataset"
    assert "own.json" in found.message
    assert why in found.message
    assert where in found.message
    with pytest.raises(RecipeError):
        train(recipe)
    kto = inputs.is_labelled(entry)
    with pytest.raises(NoUsableData) as error:  # where the rows are not on this disk before
        load(tiny, tmp_path, entry, rows, *(("unpaired", "kto") if kto else ()))
    assert why in str(error.value)
    assert where in str(error.value)


def test_a_column_of_two_types_is_named_before_arrow_stops_at_it(tiny, tmp_path):
    rows = inputs.rows_of((inputs.PAIRS, GOOD), 6)
    rows[4]["chosen"]["value"] = 7
    (found,) = check_recipe(recipe_for(tiny, tmp_path, inputs.PAIRS, rows), recipe_keys(), {})
    assert "column 'chosen'.value holds a text in row 1 and a number in row 5" in found.message


def test_rows_that_the_host_drops_unsaid_are_counted_and_named(tiny, tmp_path, capsys):
    rng = random.Random(2)
    rows = inputs.rows_of((inputs.PAIRS, GOOD), 8)
    rows[2], rows[5] = inputs.swapped(rng, 0), inputs.swapped(rng, 1)
    rows[6]["conversations"] = [inputs.human("a"), inputs.gpt("b")]
    said_before = "3 of 8 rows of"
    data, said = load(tiny, tmp_path, inputs.PAIRS, rows)
    assert len(data) == 5
    (sentence,) = said
    assert said_before in sentence
    assert "2: the dialogue does not start with a message of the user (first: row 3" in sentence
    assert "1: the prompt ends with a message of the assistant, not of the user (first: row 7" in sentence
    path = write_recipe(tmp_path / "recipe.yaml", recipe_for(tiny, tmp_path, inputs.PAIRS, rows))
    assert main(["validate", path]) == 0
    shown = capsys.readouterr().out
    assert ": good\n  note: 3 of 8 rows of" in shown
    assert "Training drops them" in shown


def test_a_broken_row_among_rated_answers_does_not_stop_the_host(tiny, tmp_path):
    """Stock LLaMA-Factory ends in an IndexError: the row after it looks for its neighbour's answer."""
    rows = inputs.rows_of(inputs.READ["labels"], 8)
    rows[3]["messages"].reverse()
    rows[5]["messages"][1]["content"], rows[5]["label"] = "", True
    data, said = load(tiny, tmp_path, inputs.LABELLED, rows, "unpaired", "kto")
    assert len(data) == 6
    assert "an empty answer is labelled good" in said[0]
    assert list(data["kto_tags"]) == [row["label"] for i, row in enumerate(rows) if i not in (3, 5)]


# ---- one dialogue in every format: the same tokens


def _dialogues(count=6):
    rng = random.Random(9)
    found = []
    for i in range(count):
        turns = [inputs.user(inputs.say(rng))]
        if i % 2:
            turns += [inputs.assistant(inputs.say(rng)), inputs.user(inputs.say(rng))]
        found.append((turns, inputs.say(rng), inputs.say(rng)))
    return found


def _sharegpt(turns):
    return [{"from": {"user": "human"}.get(turn["role"], "gpt"), "value": turn["content"]} for turn in turns]


def _whole(turns, good, bad):
    return {side: [*turns, inputs.assistant(text)] for side, text in (("chosen", good), ("rejected", bad))}


def _ends(good, bad):
    return {"chosen": [inputs.assistant(good)], "rejected": [inputs.assistant(bad)]}


FORMATS = {
    "UltraFeedback, messages beside": (
        ENTRY | {"columns": SIDES | {"messages": "messages"}},
        lambda turns, good, bad: {"messages": turns, "prompt": turns[0]["content"], **_whole(turns, good, bad)},
    ),
    "UltraFeedback as alpaca": (
        {"ranking": True, "columns": SIDES | {"prompt": "prompt"}},
        lambda turns, good, bad: {"prompt": turns[0]["content"], **_whole(turns, good, bad)},
    ),
    "TRL, conversational": (
        {"ranking": True, "columns": SIDES | {"prompt": "prompt"}},
        lambda turns, good, bad: {"prompt": turns, **_ends(good, bad)},
    ),
    "TRL, conversational, as sharegpt": (
        ENTRY | {"columns": SIDES | {"messages": "prompt"}, "tags": inputs.OPENAI_TAGS},
        lambda turns, good, bad: {"prompt": turns, **_ends(good, bad)},
    ),
    "TRL, implicit prompt": (ENTRY | {"columns": SIDES}, _whole),
    "whole dialogues of from and value": (
        ENTRY | {"columns": SIDES},
        lambda turns, good, bad: {side: _sharegpt(said) for side, said in _whole(turns, good, bad).items()},
    ),
    "roles of OpenAI, tags not named": (
        ENTRY | {"columns": SIDES | {"messages": "messages"}},
        lambda turns, good, bad: {
            "messages": turns,
            "chosen": inputs.assistant(good),
            "rejected": inputs.assistant(bad),
        },
    ),
}
TOKENS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")


@pytest.fixture(scope="module")
def as_the_host_has_it(tiny, tmp_path_factory):
    rows = [
        {"conversations": _sharegpt(turns), "chosen": inputs.gpt(good), "rejected": inputs.gpt(bad)}
        for turns, good, bad in _dialogues()
    ]
    data, said = load(tiny, tmp_path_factory.mktemp("host"), inputs.PAIRS, rows)
    assert said == []
    return [data[name][:] for name in TOKENS]


@pytest.mark.parametrize("streaming", [False, True], ids=["loaded", "streamed"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_hubs_formats_give_the_tokens_of_the_hosts_own(tiny, tmp_path, as_the_host_has_it, name, streaming):
    entry, make = FORMATS[name]
    rows = [make(*dialogue) for dialogue in _dialogues()]
    changes = {"streaming": True, "buffer_size": 1} if streaming else {}
    data, said = load(tiny, tmp_path, entry, rows, **changes)
    found = list(data)
    assert said == []
    assert [[row[column] for row in found] for column in TOKENS] == as_the_host_has_it


def test_standard_format_of_trl_is_read_whatever_it_is_declared_as(tiny, tmp_path, as_the_host_has_it):
    single = [dialogue for dialogue in _dialogues() if len(dialogue[0]) == 1]
    rows = [{"prompt": turns[0]["content"], "chosen": good, "rejected": bad} for turns, good, bad in single]
    wanted = [
        [ids for ids, d in zip(column, _dialogues(), strict=True) if len(d[0]) == 1] for column in as_the_host_has_it
    ]
    for entry in (
        {"ranking": True, "columns": SIDES | {"prompt": "prompt"}},
        ENTRY | {"columns": SIDES | {"prompt": "prompt"}},
        ENTRY | {"columns": SIDES | {"messages": "prompt"}},
    ):
        data, said = load(tiny, tmp_path, entry, rows)
        assert said == []
        assert [data[name][:] for name in TOKENS] == wanted


def test_what_is_declared_as_openai_is_read_as_the_host_reads_it(tiny, tmp_path):
    """It adds a system prompt of its own there, and joins results of several tools; whole dialogues get the same."""
    asked, good, bad = _with_tools([inputs.user("and now?") | {"tool_calls": None}])
    entry = {"formatting": "openai", "ranking": True, "columns": SIDES | {"messages": "messages"}, "tags": TOOL_TAGS}
    wanted, said = load(tiny, tmp_path, entry, [{"messages": asked, "chosen": good, "rejected": bad}])
    whole = {"messages": asked, "chosen": [*asked, good], "rejected": [*asked, bad]}
    data, also_said = load(tiny, tmp_path, entry, [whole])
    assert said + also_said == []
    for column in TOKENS:
        assert data[column][:] == wanted[column][:]


def test_results_of_tools_at_a_prompts_end_are_read_as_sharegpt_and_named_as_openai(tiny, tmp_path):
    """LLaMA-Factory drops the row in both."""
    asked, good, bad = _with_tools([])
    asked = asked[:4]
    rows = [{"messages": asked, "chosen": good, "rejected": bad}]
    entry = {"ranking": True, "columns": SIDES | {"messages": "messages"}, "tags": TOOL_TAGS}
    data, said = load(tiny, tmp_path, entry | {"formatting": "sharegpt"}, rows)
    assert said == []
    assert len(data) == 1
    with pytest.raises(NoUsableData, match="write sharegpt"):
        load(tiny, tmp_path, entry | {"formatting": "openai"}, rows)


TOOL_TAGS = inputs.OPENAI_TAGS | {"observation_tag": "tool", "function_tag": "function"}


def _with_tools(end):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}
    results = [{"role": "tool", "content": text, "tool_calls": None} for text in "12"]
    said, good, bad = ({"role": "assistant", "content": text, "tool_calls": None} for text in ("so", "three", "four"))
    return [inputs.user("add") | {"tool_calls": None}, call, *results, said, *end], good, bad


UNPAIRED = {
    "TRL, standard": (
        {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}},
        lambda asked, text, label: {"prompt": asked, "completion": text, "label": label},
    ),
    "TRL, conversational": (
        {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}},
        lambda asked, text, label: {
            "prompt": [inputs.user(asked)],
            "completion": [inputs.assistant(text)],
            "label": int(label),
        },
    ),
    "answers as whole dialogues": (
        {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}},
        lambda asked, text, label: {
            "prompt": asked,
            "completion": [inputs.user(asked), inputs.assistant(text)],
            "label": str(label),
        },
    ),
}


@pytest.mark.parametrize("name", UNPAIRED)
def test_rated_answers_of_trl_give_the_tokens_of_the_hosts_own(tiny, tmp_path, name):
    rng = random.Random(4)
    answers = [(inputs.say(rng), inputs.say(rng), i % 3 == 0) for i in range(6)]
    own = [{"messages": [inputs.user(q), inputs.assistant(a)], "label": label} for q, a, label in answers]
    wanted, _ = load(tiny, tmp_path, inputs.LABELLED, own, "unpaired", "kto")
    entry, make = UNPAIRED[name]
    data, said = load(tiny, tmp_path, entry, [make(*answer) for answer in answers], "unpaired", "kto")
    assert said == []
    for column in ("input_ids", "labels", "kl_input_ids", "kl_labels", "kto_tags"):
        assert data[column][:] == wanted[column][:]


PROMPTS = {
    "TRL, standard": (
        {"columns": {"prompt": "prompt"}},
        lambda turns: {"prompt": turns[0]["content"]},
    ),
    "TRL, conversational": ({"columns": {"prompt": "prompt"}}, lambda turns: {"prompt": turns}),
    "dialogues without an answer": (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": inputs.OPENAI_TAGS},
        lambda turns: {"messages": turns},
    ),
    "dialogues with an answer": (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}},
        lambda turns: {"messages": [*turns, inputs.assistant("so")]},
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_rollouts_are_read_from_every_format(tiny, tmp_path, as_the_host_has_it, name):
    entry, make = PROMPTS[name]
    dialogues = [
        (i, turns) for i, (turns, _, _) in enumerate(_dialogues()) if len(turns) == 1 or "standard" not in name
    ]
    data, said = load(tiny, tmp_path, entry, [make(turns) for _, turns in dialogues], "prompts", "ppo")
    assert said == []
    ids, labels = as_the_host_has_it[:2]
    asked = [[token for token, label in zip(ids[i], labels[i], strict=True) if label == -100] for i, _ in dialogues]
    assert data["input_ids"][:] == asked


def test_the_old_name_of_a_key_leads_to_the_new_one(tiny, tmp_path):
    (found,) = check_recipe(tiny.recipe(tmp_path, new_special_tokens="<a>"), recipe_keys(), {})
    assert "write add_special_tokens" in found.message


def test_dialogues_that_part_early_are_named(tiny, tmp_path):
    rows = [
        {
            "chosen": [inputs.user("q"), inputs.assistant("a"), inputs.user("r"), inputs.assistant("b")],
            "rejected": [inputs.user("q"), inputs.assistant("c"), inputs.user("r"), inputs.assistant("d")],
        }
    ]
    with pytest.raises(NoUsableData, match=r"part before their last message .*row 1: message 2"):
        load(tiny, tmp_path, ENTRY | {"columns": SIDES}, rows)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_other_files_than_json_are_looked_at_and_read(tiny, tmp_path, kind):
    from datasets import Dataset

    flat = {"ranking": True, "columns": SIDES | {"prompt": "prompt"}}
    entry = flat if kind == "csv" else ENTRY | {"columns": SIDES}
    rows = [
        {"prompt": turns[0]["content"], "chosen": good, "rejected": bad} if kind == "csv" else _whole(turns, good, bad)
        for turns, good, bad in _dialogues()
    ]
    broken = {"prompt": "a", "chosen": "b", "rejected": None} if kind == "csv" else _whole([], "a", "b")
    folder = tmp_path / "data"
    inputs.write_data(folder, "own", entry, rows)
    (folder / "own.json").unlink()
    config = (folder / "dataset_info.json").read_text().replace("own.json", f"own.{kind}")
    recipe = tiny.recipe(tmp_path / "run", dataset_dir=str(folder), template="qwen") | {"dataset": "own"}
    (folder / "dataset_info.json").write_text(config)

    def write(some):
        data = Dataset.from_list(some)
        {"jsonl": data.to_json, "csv": data.to_csv, "parquet": data.to_parquet}[kind](str(folder / f"own.{kind}"))

    write([broken] * 2)
    (found,) = check_recipe(recipe, recipe_keys(), {})
    assert f"2 of 2 rows of {folder}/own.{kind} cannot be read" in found.message
    write([*rows, broken])
    assert check_recipe(recipe, recipe_keys(), {}) == []
    (note,) = data_notes(read(recipe, recipe_keys(), {}))
    assert "1 of 7 rows" in note
    assert series(train(recipe), "loss")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_a_large_file_is_looked_at_from_its_beginning(tiny, tmp_path, monkeypatch):
    rows = inputs.rows_of((inputs.PAIRS, GOOD), 12)
    rows[1] = inputs.swapped(random.Random(1), 0)
    recipe = recipe_for(tiny, tmp_path, inputs.PAIRS, rows)
    monkeypatch.setattr("ledpo_plugin.recipes.rows.MOST_ROWS", 5)
    (note,) = data_notes(read(recipe, recipe_keys(), {}))
    assert "1 of the first 5 rows" in note
    monkeypatch.setattr("ledpo_plugin.recipes.rows.MOST_TEXT", 700)  # ends within a row
    (note,) = data_notes(read(recipe, recipe_keys(), {}))
    assert "1 of the first " in note
