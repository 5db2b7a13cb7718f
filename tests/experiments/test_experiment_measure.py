"""Measuring runs: the same numbers as training's own evaluation, as plain transformers, and as before a kill."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Tiny, history, train
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ledpo_plugin.cli import main
from ledpo_plugin.experiments.definition.metrics import known_metrics
from ledpo_plugin.experiments.measuring import columns as measured
from ledpo_plugin.experiments.measuring.measure import Measured, base_key, measure_base, measure_run
from ledpo_plugin.experiments.measuring.weights import CheckpointError
from ledpo_plugin.modeling.generate import greedy

EVALUATION = {
    "pairs": ["heldout"],
    "instructions": ["instructions"],
    "generations": {"prompts": "heldout", "count": 3, "max_new_tokens": 7},
}
PAIRS_ONLY = {"pairs": ["heldout"]}
FULL = {"finetuning_type": "full", "lora_rank": None, "lora_target": None, "learning_rate": 1e-3}
TRAINERS_OWN = {
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_margins/beta_free",
    "logp_accuracy": "eval_logps/accuracies",
}
OF_BETA = {f"beta_{key}": f"eval_beta/{key}" for key in ("mean", "std", "q10", "q90", "margin_corr")}


def quiet(text: str) -> None:
    """Take in a line of the log."""


def recipe_of(tiny: Tiny, output: Path, **changes) -> dict:
    """A recipe that saves twice."""
    return tiny.recipe(output, **{"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **changes})


def rows_of(measures: Path, step: int, name: str = "heldout") -> dict[str, list[float]]:
    return json.loads((measures / f"step-{step:06d}" / "pairs" / f"{name}.json").read_text())["columns"]


def without_times(folder: Path) -> dict[str, dict]:
    """The contents of all files of a folder but for how long they took."""
    paths = [path for path in folder.rglob("*.json") if path.name != "cost.json"]
    found = {str(path.relative_to(folder)): json.loads(path.read_text()) for path in paths}
    for content in found.values():
        assert content.pop("seconds") >= 0
    return found


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run of LEDPO that was evaluated where it was saved, and its measures."""
    folder = tmp_path_factory.mktemp("measured")
    changes = {"eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 2, "beta_penalty": 0.0}
    recipe = recipe_of(tiny, folder / "train", beta_mode="head", max_steps=6, **changes)
    train(recipe)
    said: list[str] = []
    found = measure_run([Measured(recipe, folder / "train")], folder / "measures", EVALUATION, said.append)
    return recipe, folder, found, said


# ---- against training's own evaluation


def test_every_checkpoint_is_as_the_trainer_s_own_evaluation_saw_it(run):
    _, folder, found, _ = run
    evaluated = {row["step"]: row for row in history(folder / "train") if "eval_loss" in row}
    assert [checkpoint["step"] for checkpoint in found["checkpoints"]] == [2, 4, 6] == sorted(evaluated)
    for checkpoint in found["checkpoints"]:
        for ours, theirs in (TRAINERS_OWN | OF_BETA).items():
            value = evaluated[checkpoint["step"]][theirs]
            assert checkpoint["metrics"][f"heldout/{ours}"] == pytest.approx(value, rel=1e-4, abs=1e-6), ours
    margins = [checkpoint["metrics"]["heldout/margin"] for checkpoint in found["checkpoints"]]
    assert len(set(margins)) == 3


def test_what_is_returned_and_written(run):
    _, folder, found, said = run
    assert set(found["final"]) == set(known_metrics(EVALUATION))
    assert not any(name.startswith("gen/") for row in found["checkpoints"] for name in row["metrics"])
    assert found["final"].items() >= found["checkpoints"][-1]["metrics"].items()
    assert 3 <= found["generated_tokens"] <= 3 * 7
    assert found["measure_seconds"] > 0
    files = without_times(folder / "measures")
    per_step = ("pairs/heldout.json", "instructions/instructions.json")
    expected = {f"step-{step:06d}/{name}" for step in (2, 4, 6) for name in per_step}
    assert set(files) == expected | {"step-000006/generations.json"}
    one = files["step-000002/pairs/heldout.json"]
    assert (one["dataset"], one["n"], one["dropped"]) == ("heldout", 16, 0)
    assert [line.split(" in ")[0] for line in said if line.startswith("step 6")] == [
        "step 6: 16 pairs of heldout",
        "step 6: 64 instructions of instructions",
        "step 6: 3 generations of heldout",
    ]


def test_items_have_ids_that_are_the_same_at_every_checkpoint_and_before_training(run, tmp_path):
    recipe, folder, _, _ = run
    measure_base(recipe, tmp_path / "base", EVALUATION, quiet)
    for name, count in (("pairs/heldout.json", 16), ("instructions/instructions.json", 64)):
        places = [folder / "measures" / f"step-{step:06d}" for step in (2, 6)] + [tmp_path / "base"]
        first, *others = [json.loads((place / name).read_text())["items"] for place in places]
        assert others == [first, first]
        assert len(set(first)) == count
        assert all(re.fullmatch("[0-9a-f]{16}", item) for item in first)


def test_beta_is_what_the_beta_command_prints(tiny, run, capsys):
    _, folder, _, _ = run
    capsys.readouterr()
    arguments = ["beta", str(folder / "train" / "checkpoint-4"), "--prompts", str(tiny.data / "heldout.json")]
    assert main([*arguments, "--jsonl"]) == 0
    printed = [json.loads(line)["beta"] for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    betas = rows_of(folder / "measures", 4)["beta"]
    assert betas == pytest.approx(printed, rel=1e-4)
    assert len(set(betas)) > 10


# ---- against plain transformers


def _prompt(user: str) -> str:
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


@torch.no_grad()
def plain_logps(model, tokenizer, prompt: str, answer: str) -> tuple[float, int]:
    """Sum of log p over the answer and its end, from the logits of the whole sequence."""
    start = len(tokenizer(_prompt(prompt))["input_ids"])
    ids = torch.tensor([tokenizer(f"{_prompt(prompt)}{answer}<|im_end|>\n")["input_ids"]])
    logps = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return logps[start - 1 :].sum().item(), ids.shape[1] - start


def plain_pairs(tiny: Tiny, model, count: int = 5) -> list[tuple[float, float]]:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    rows = json.loads((tiny.data / "heldout.json").read_text())[:count]
    return [
        tuple(
            plain_logps(model, tokenizer, row["conversations"][0]["value"], row[side]["value"])[0]
            for side in ("chosen", "rejected")
        )
        for row in rows
    ]


def fresh(tiny: Tiny, *adapters: Path, merged: bool = False):
    """The model loaded anew; all adapters but the last are merged, and the last one where asked."""
    model = AutoModelForCausalLM.from_pretrained(tiny.model).eval()
    for number, adapter in enumerate(adapters):
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
        if merged or number < len(adapters) - 1:
            model = model.merge_and_unload()
    return model


def agrees(columns: dict, policy: list, reference: list) -> None:
    for side, name in enumerate(("chosen", "rejected")):
        for prefix, values in (("", policy), ("reference_", reference)):
            found = columns[f"{prefix}{name}_logps"][: len(values)]
            assert found == pytest.approx([pair[side] for pair in values], rel=1e-5, abs=1e-4), (prefix, name)
    margins = [(p[0] - r[0]) - (p[1] - r[1]) for p, r in zip(policy, reference, strict=True)]
    assert columns["margin"][: len(margins)] == pytest.approx(margins, rel=1e-3, abs=2e-4)


@pytest.mark.parametrize("step", [2, 6])
def test_swapped_weights_are_those_of_a_fresh_load_in_plain_transformers(tiny, run, step):
    _, folder, _, _ = run
    policy = fresh(tiny, folder / "train" / f"checkpoint-{step}")
    columns = rows_of(folder / "measures", step)
    agrees(columns, plain_pairs(tiny, policy), plain_pairs(tiny, fresh(tiny)))


def test_instructions_and_answers_are_those_of_plain_transformers(tiny, run):
    _, folder, found, _ = run
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    model = fresh(tiny, folder / "train" / "checkpoint-6", merged=True)
    rows = json.loads((tiny.data / "instructions.json").read_text())
    plain = [plain_logps(model, tokenizer, row["instruction"], row["output"]) for row in rows]
    path = folder / "measures" / "step-000006" / "instructions" / "instructions.json"
    columns = json.loads(path.read_text())["columns"]
    assert columns["length"] == [length for _, length in plain]
    assert columns["nll"] == pytest.approx([-logp for logp, _ in plain], rel=1e-5)
    expected = -sum(logp for logp, _ in plain) / sum(length for _, length in plain)
    assert found["final"]["instructions/nll"] == pytest.approx(expected, rel=1e-5)
    assert found["final"]["instructions/perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    answers = json.loads((folder / "measures" / "step-000006" / "generations.json").read_text())["rows"]
    pairs = json.loads((tiny.data / "heldout.json").read_text())
    assert [row["prompt"] for row in answers] == [pair["conversations"][0]["value"] for pair in pairs[:3]]
    for row in answers:
        ids = tokenizer(_prompt(row["prompt"]), return_tensors="pt")["input_ids"]
        new = model.generate(ids, do_sample=False, max_new_tokens=7, eos_token_id=tokenizer.eos_token_id)
        new = new[0, ids.shape[1] :].tolist()
        kept = [token for token in new if token != tokenizer.eos_token_id]
        assert (row["ids"], row["ended"], row["tokens"]) == (kept, len(kept) < len(new), len(kept))
        assert row["output"] == tokenizer.decode(kept, skip_special_tokens=True)


# ---- every kind of run


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "ledpo_kto"},
        {"stage": "ledpo_orpo"},
        {"stage": "ledpo_simpo", "beta_mode": "head"},
        {"stage": "sft", "dataset": "instructions"},
        {"beta_mode": "global", "disable_shared_prompt": True, "disable_reference_cache": True},
        {"beta_mode": "fixed", "sft_dataset": "instructions", "sft_ratio": 0.25, "disable_response_logits": True},
        {"beta_mode": "ppl", "pref_ftx": 0.1, "disable_fused_lora": True},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_runs_of_every_stage_are_measured_against_their_start(tiny, tmp_path, changes):
    recipe = recipe_of(tiny, tmp_path / "train", max_steps=2, learning_rate=1e-2, **changes)
    train(recipe)
    found = measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, quiet)
    columns = rows_of(tmp_path / "measures", 2)
    policy = fresh(tiny, tmp_path / "train" / "checkpoint-2")
    agrees(columns, plain_pairs(tiny, policy), plain_pairs(tiny, fresh(tiny)))
    learned = changes.get("beta_mode") in ("head", "global", "ppl")
    assert ("beta" in columns) == learned
    assert ("heldout/beta_mean" in found["final"]) == learned
    assert ("heldout/beta_margin_corr" in found["final"]) == (changes.get("beta_mode") in ("head", "ppl"))


@pytest.mark.parametrize("mode,source", [("head", "reference"), ("ppl", "policy")])
def test_whole_models_are_measured_too(tiny, tmp_path, mode, source):
    """Their output layer is tied to the embedding, so it is not in the file."""
    changes = {"eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 2, "save_only_model": True}
    recipe = recipe_of(tiny, tmp_path / "train", beta_mode=mode, beta_head_source=source, **FULL, **changes)
    train(recipe)
    measure = {"pairs": ["heldout"], "instructions": ["instructions"]}
    found = measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", measure, quiet)
    evaluated = {row["step"]: row for row in history(tmp_path / "train") if "eval_loss" in row}
    for checkpoint in found["checkpoints"]:
        for ours, theirs in (TRAINERS_OWN | OF_BETA).items():
            value = evaluated[checkpoint["step"]][theirs]
            assert checkpoint["metrics"][f"heldout/{ours}"] == pytest.approx(value, rel=1e-3, abs=1e-5), ours
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "train" / "checkpoint-2").eval()
    agrees(rows_of(tmp_path / "measures", 2), plain_pairs(tiny, policy), plain_pairs(tiny, fresh(tiny)))


@pytest.mark.parametrize("new", [False, True])
def test_a_run_that_goes_on_from_an_adapter_is_compared_with_that(tiny, tmp_path, new):
    first = train(tiny.recipe(tmp_path / "first", beta_mode="fixed", learning_rate=1e-2))
    changes = {"adapter_name_or_path": str(first), "create_new_adapter": new or None, "beta_mode": "head"}
    recipe = recipe_of(tiny, tmp_path / "train", **changes)
    train(recipe)
    found = measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, quiet)
    last = tmp_path / "train" / "checkpoint-4"
    policy = fresh(tiny, first, last) if new else fresh(tiny, last)
    agrees(rows_of(tmp_path / "measures", 4), plain_pairs(tiny, policy), plain_pairs(tiny, fresh(tiny, first)))
    assert found["final"]["heldout/beta_std"] > 0
    base = measure_base(recipe, tmp_path / "base", PAIRS_ONLY, quiet)["metrics"]
    assert base["heldout/accuracy"] == 0.5
    columns = json.loads((tmp_path / "base" / "pairs" / "heldout.json").read_text())["columns"]
    agrees(columns, *[plain_pairs(tiny, fresh(tiny, first))] * 2)


def test_a_head_that_read_a_reference_model_of_its_own_reads_it_here(tiny, tmp_path):
    other = tmp_path / "other"
    trained = train(tiny.recipe(tmp_path / "first", beta_mode="fixed", learning_rate=1e-2))
    fresh(tiny, trained, merged=True).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(other)
    changes = {"ref_model": str(other), "beta_mode": "head", "beta_penalty": 0.0}
    evaluated = {"eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 2}
    recipe = recipe_of(tiny, tmp_path / "train", **changes, **evaluated)
    train(recipe)
    final = measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, quiet)["final"]
    last = [row for row in history(tmp_path / "train") if "eval_loss" in row][-1]
    assert final["heldout/beta_mean"] == pytest.approx(last["eval_beta/mean"], rel=1e-5)
    assert final["heldout/beta_std"] == pytest.approx(last["eval_beta/std"], rel=1e-3)
    policy = fresh(tiny, tmp_path / "train" / "checkpoint-4")
    agrees(rows_of(tmp_path / "measures", 4), plain_pairs(tiny, policy), plain_pairs(tiny, fresh(tiny)))


def test_the_model_before_training_ties_with_itself(tiny, run, tmp_path):
    recipe, _, _, _ = run
    found = measure_base(recipe, tmp_path / "base", EVALUATION, quiet)
    metrics = found["metrics"]
    assert metrics["heldout/accuracy"] == 0.5
    assert metrics["heldout/margin"] == metrics["heldout/chosen_shift"] == metrics["heldout/rejected_shift"] == 0.0
    assert set(metrics) == {name for name in known_metrics(EVALUATION) if "beta" not in name}
    columns = json.loads((tmp_path / "base" / "pairs" / "heldout.json").read_text())["columns"]
    agrees(columns, *[plain_pairs(tiny, fresh(tiny))] * 2)
    assert measure_base(recipe, tmp_path / "base", EVALUATION, quiet) == found  # from the files
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    row = json.loads((tiny.data / "instructions.json").read_text())[0]
    logp, _ = plain_logps(fresh(tiny), tokenizer, row["instruction"], row["output"])
    nll = json.loads((tmp_path / "base" / "instructions" / "instructions.json").read_text())["columns"]["nll"][0]
    assert nll == pytest.approx(-logp, rel=1e-5)


# ---- kills, caches, order


@pytest.mark.parametrize("gone", ["pairs", "generations", "half written"])
def test_a_measurement_that_was_cut_off_ends_with_the_same_numbers(run, tmp_path, gone):
    recipe, folder, found, _ = run
    shutil.copytree(folder / "measures", tmp_path / "measures")
    whole = without_times(tmp_path / "measures")
    last = tmp_path / "measures" / "step-000006"
    if gone == "pairs":
        shutil.rmtree(last)
        (tmp_path / "measures" / "step-000002" / "pairs" / "heldout.json").unlink()
    elif gone == "generations":
        (last / "generations.json").unlink()
    else:
        path = last / "pairs" / "heldout.json"
        path.write_text(path.read_text()[:200])
        (last / "instructions" / "instructions.json").write_text('{"dataset": "instructions", "n": 3, "columns": {}}')
    said: list[str] = []
    again = measure_run([Measured(recipe, folder / "train")], tmp_path / "measures", EVALUATION, said.append)
    assert without_times(tmp_path / "measures") == whole
    assert {key: again[key] for key in again if key != "measure_seconds"} == {
        key: found[key] for key in found if key != "measure_seconds"
    }
    assert sum("step " in line for line in said) == {"pairs": 4, "generations": 1, "half written": 2}[gone]


def test_nothing_is_loaded_where_everything_is_there(run, monkeypatch):
    recipe, folder, found, _ = run
    monkeypatch.setattr("ledpo_plugin.experiments.measuring.measure.EvaluatedModel", None)
    assert measure_run([Measured(recipe, folder / "train")], folder / "measures", EVALUATION, quiet) == found


@pytest.mark.parametrize("disabled", [False, True])
def test_numbers_do_not_depend_on_what_was_cached_before(tiny, run, tmp_path, monkeypatch, disabled):
    """The run's cache held values from its evaluations in batches of 4; here it is empty, or not to be used."""
    recipe, folder, _, _ = run
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    recipe = recipe | {"disable_reference_cache": disabled}
    measure_run([Measured(recipe, folder / "train")], tmp_path / "measures", EVALUATION, quiet)
    assert without_times(tmp_path / "measures") == without_times(folder / "measures")
    assert any((tmp_path / "cache").rglob("values.safetensors")) != disabled


def test_rows_that_cannot_be_used_are_counted_and_the_others_stay_in_order(tiny, run, tmp_path):
    recipe, folder, _, _ = run
    data = tmp_path / "data"
    data.mkdir()
    rows = json.loads((tiny.data / "heldout.json").read_text())
    same = {**rows[3], "rejected": rows[3]["chosen"]}
    (data / "heldout.json").write_text(json.dumps([*rows[:2], same, *rows[2:]]))
    info = json.loads((tiny.data / "dataset_info.json").read_text())
    (data / "dataset_info.json").write_text(json.dumps({"heldout": info["heldout"], "a,b/c": info["heldout"]}))
    measure = {"pairs": ["a,b/c"]}
    measure_run(
        [Measured(recipe | {"dataset_dir": str(data)}, folder / "train")], tmp_path / "measures", measure, quiet
    )
    (path,) = (tmp_path / "measures" / "step-000006").rglob("*.json")
    found = json.loads(path.read_text())
    assert (found["dataset"], found["n"], found["dropped"]) == ("a,b/c", 16, 1)
    assert found["columns"]["margin"] == pytest.approx(rows_of(folder / "measures", 6)["margin"], rel=1e-3, abs=1e-4)


# ---- mistakes


def _copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder / "train", tmp_path / "train")
    return tmp_path / "train"


def _half_adapter(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[::2]), checkpoint / "adapter_model.safetensors")


def _not_finite(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    save_file({key: value * math.nan for key, value in tensors.items()}, checkpoint / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda path: (path / "adapter_model.safetensors").unlink(), "checkpoint-4 are missing, damaged"),
        (lambda path: (path / "adapter_model.safetensors").write_bytes(b"no"), "checkpoint-4 are missing, damaged"),
        (_half_adapter, "not there: .*lora_"),
        (_not_finite, "not finite for heldout: training diverged"),
        (lambda path: (path / "trainer_state.json").unlink(), "Not written to the end: .*checkpoint-4"),
        (lambda path: (path / "beta_head.safetensors").write_bytes(b"no"), "missing or damaged"),
    ],
    ids=["gone", "garbage", "half", "nan", "incomplete", "head"],
)
def test_a_checkpoint_that_cannot_be_measured_is_named(run, tmp_path, damage, message):
    recipe, folder, _, _ = run
    damage(_copy(folder, tmp_path) / "checkpoint-4")
    with pytest.raises((CheckpointError, ValueError), match=message):
        measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, quiet)


def test_a_damaged_whole_model_is_named(tiny, tmp_path):
    recipe = recipe_of(tiny, tmp_path / "train", beta_mode="fixed", max_steps=2, **FULL)
    path = train(recipe) / "checkpoint-2" / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not there: model\.layers\.0\.mlp\.up_proj\.weight"):
        measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, quiet)


def test_a_missing_head_is_said_and_the_rest_is_measured(run, tmp_path):
    recipe, folder, _, _ = run
    (_copy(folder, tmp_path) / "checkpoint-4" / "beta_head.safetensors").unlink()
    said: list[str] = []
    found = measure_run([Measured(recipe, tmp_path / "train")], tmp_path / "measures", PAIRS_ONLY, said.append)
    assert any("step 4: " in line and "beta is not measured" in line for line in said)
    assert ["heldout/beta_mean" in row["metrics"] for row in found["checkpoints"]] == [True, False, True]


@pytest.mark.parametrize(
    "measure,message",
    [
        ({"pairs": ["heldout", "elsewhere"]}, "pairs 'elsewhere' cannot be loaded"),
        ({"pairs": ["instructions"]}, "pairs 'instructions' cannot be loaded"),
        ({"instructions": ["heldout"]}, "instructions 'heldout' cannot be loaded"),
        ({"generations": {"prompts": "no", "count": 1, "max_new_tokens": 1}}, "pairs 'no' cannot be loaded"),
        ({}, "names nothing to measure"),
    ],
)
def test_data_that_cannot_be_measured_is_named(run, tmp_path, measure, message):
    recipe, _, _, _ = run
    with pytest.raises(ValueError, match=message):
        measure_base(recipe, tmp_path, measure, quiet)


def test_data_of_which_nothing_can_be_used_is_an_error(tiny, run, tmp_path):
    recipe, _, _, _ = run
    rows = json.loads((tiny.data / "heldout.json").read_text())
    (tmp_path / "heldout.json").write_text(json.dumps([{**row, "rejected": row["chosen"]} for row in rows]))
    shutil.copy(tiny.data / "dataset_info.json", tmp_path)
    with pytest.raises(ValueError, match="No row of the heldout dataset can train: of 16, 16 chosen and rejected"):
        measure_base(recipe | {"dataset_dir": str(tmp_path)}, tmp_path / "base", PAIRS_ONLY, quiet)


def test_no_checkpoint_and_pissa_are_refused(tiny, run, tmp_path):
    recipe, folder, _, _ = run
    with pytest.raises(CheckpointError, match="no checkpoint to measure"):
        measure_run([Measured(recipe, tmp_path)], tmp_path / "measures", PAIRS_ONLY, quiet)
    with pytest.raises(ValueError, match="Remove pissa_init"):
        measure_run(
            [Measured(recipe | {"pissa_init": True}, folder / "train")], tmp_path / "measures", PAIRS_ONLY, quiet
        )


# ---- the pure parts


def test_runs_that_start_alike_have_one_base():
    recipe = {"model_name_or_path": "m", "template": "chatml", "dataset_dir": "d", "cutoff_len": 128, "stage": "ledpo"}
    key = base_key(recipe, EVALUATION)
    assert len(key) == 12
    int(key, 16)
    alike = {"stage": "ledpo_orpo", "pref_beta": 0.3, "learning_rate": 1.0, "seed": 5, "lora_rank": 64, "max_steps": 9}
    alike |= {"finetuning_type": "full", "output_dir": "x", "ref_model": "r", "default_system": None}
    for name, value in alike.items():
        assert base_key(recipe | {name: value}, EVALUATION) == key, name
    assert base_key(recipe, EVALUATION | {"primary": "heldout/accuracy", "target": {}}) == key
    other = {
        "model_name_or_path": "n",
        "template": "llama3",
        "default_system": "Be brief.",
        "cutoff_len": 64,
        "adapter_name_or_path": "a",
        "dataset_dir": "e",
        "bf16": True,
        "rope_scaling": "yarn",
        "quantization_bit": 4,
        "enable_thinking": False,
    }
    keys = {base_key(recipe | {name: value}, EVALUATION) for name, value in other.items()}
    keys |= {base_key(recipe, EVALUATION | {"pairs": ["pairs"]}), base_key(recipe, PAIRS_ONLY)}
    assert len(keys | {key}) == len(other) + 3


COLUMNS = {
    "margin": [1.0, -1.0, 0.0, 3.0],
    "chosen_logps": [-10.0, -9.0, -4.0, -8.0],
    "rejected_logps": [-10.0, -6.0, -9.0, -8.0],
    "reference_chosen_logps": [-12.0, -9.0, -2.0, -8.0],
    "reference_rejected_logps": [-11.0, -5.0, -7.0, -5.0],
    "chosen_length": [2, 3, 4, 4],
    "rejected_length": [2, 6, 3, 2],
}


def test_metrics_of_pairs_by_hand():
    found = measured.of_pairs(COLUMNS)
    assert found == {
        "accuracy": (1 + 0 + 0.5 + 1) / 4,
        "margin": 0.75,
        "logp_accuracy": (0.5 + 0 + 1 + 1) / 4,
        "chosen_shift": (1.0 + 0.0 - 0.5 + 0.0) / 4,
        "rejected_shift": pytest.approx((0.5 - 1 / 6 - 2 / 3 - 1.5) / 4),
    }
    beta = measured.of_pairs({**COLUMNS, "beta": [0.1, 0.2, 0.3, 0.4]})
    assert beta["beta_mean"] == pytest.approx(0.25)
    assert beta["beta_std"] == pytest.approx(math.sqrt(0.0125))
    assert (beta["beta_q10"], beta["beta_q90"]) == (pytest.approx(0.13), pytest.approx(0.37))
    assert beta["beta_margin_corr"] == pytest.approx(0.35 / 4 / math.sqrt(0.0125 * 2.1875))
    constant = measured.of_pairs({**COLUMNS, "beta": [0.1] * 4})
    assert "beta_margin_corr" not in constant
    assert constant["beta_std"] == pytest.approx(0.0)
    assert "beta_margin_corr" not in measured.of_pairs({**COLUMNS, "margin": [0.0] * 4, "beta": [0.1, 0.2, 0.3, 0.4]})


def test_metrics_of_instructions_and_generations_by_hand():
    found = measured.of_instructions({"nll": [2.0, 10.0], "length": [1, 5]})
    assert found == {"nll": 2.0, "perplexity": pytest.approx(math.exp(2))}
    assert measured.of_instructions({"nll": [5000.0], "length": [1]}) == {"nll": 5000.0}
    rows = [
        {"output": "a b a b a b", "ids": [1, 2, 1, 2, 1, 2], "ended": True},
        {"output": "a b c", "ids": [1, 2, 3], "ended": False},
        {"output": "", "ids": [], "ended": True},
    ]
    found, empty = measured.of_generations(rows), measured.of_generations(rows[2:])
    tried = ("length", "ended", "distinct2", "repetition")  # further ones: tests/eval_harness/test_text_metrics.py
    assert {name: found[name] for name in tried} == {
        "length": 3.0,
        "ended": pytest.approx(2 / 3),
        "distinct2": 3 / 7,
        "repetition": pytest.approx(1 / 3),
    }
    assert {name: empty[name] for name in tried if name in empty} == {"length": 0.0, "ended": 1.0}
    assert measured.of_generations([]) == {}


@torch.no_grad()
def test_answers_are_the_likeliest_tokens_one_by_one_whatever_the_model_says_of_generating():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.6,
    )
    model = LlamaForCausalLM(config).eval()
    prompts = [[5, 6, 7, 8, 9], [3], [10, 11, 30], [1, 2]]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(12):
            ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        expected.append(ids[len(prompt) :])
    stop = expected[0][4]
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    rows = greedy(model, prompts, stops=[stop, 39], pad_id=0, max_new_tokens=12, batch_size=3)
    for row, ids in zip(rows, expected, strict=True):
        ends = [place for place, token in enumerate(ids) if token in (stop, 39)]
        assert row == {"ids": ids[: ends[0]] if ends else ids, "ended": bool(ends)}
    assert len({row["ended"] for row in rows}) == 2
    assert len({tuple(ids) for ids in expected}) == 4
    assert model.generation_config.repetition_penalty == 5.0
