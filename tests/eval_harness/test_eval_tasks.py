"""lm-eval tasks: the trainer's own numbers, by the stock command and in this process; and what is refused."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import train

from eval_harness.data import DataSetError
from eval_harness.generation import load
from eval_harness.tasks.evaluating import evaluate
from eval_harness.tasks.preparing import YAML, prepare
from eval_harness.tasks.results import of_answer, of_pair, of_rewarded_pair, pair_choices, token_perplexity
from ledpo_plugin.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A LEDPO run, evaluated by its trainer on the held-out pairs."""
    folder = tmp_path_factory.mktemp("tasks") / "ledpo"
    changes = {"do_eval": True, "eval_dataset": "heldout", "eval_strategy": "steps", "eval_steps": 6}
    return train(tiny.recipe(folder, beta_mode="head", default_system="Be brief.", max_steps=6, **changes))


@pytest.fixture(scope="module")
def logged(run):
    rows = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [row for row in rows if "eval_margins/beta_free" in row][-1]


@pytest.fixture(scope="module")
def loaded(run):
    return load(run)


@pytest.fixture(scope="module")
def folder(loaded, tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    prepare(loaded, "heldout", tiny.data, path)
    return path


def values(rows) -> dict:
    return {(row["task"], row["metric"]): row for row in rows}


def check(found, logged) -> None:
    """Compare what lm-eval says with what the trainer said of the same pairs."""
    assert found["ledpo_rewards", "margin"] == pytest.approx(logged["eval_margins/beta_free"], abs=1e-4)
    assert found["ledpo_rewards", "reward_accuracy"] == pytest.approx(logged["eval_rewards/accuracies"], abs=1e-9)
    assert found["ledpo_rewards", "reward_margin"] == pytest.approx(logged["eval_rewards/margins"], abs=1e-4)
    assert found["ledpo_rewards", "chosen_reward"] == pytest.approx(logged["eval_rewards/chosen"], abs=1e-4)
    assert found["ledpo_pairs", "accuracy_per_token"] == pytest.approx(logged["eval_logps/accuracies"], abs=1e-9)


def test_lm_eval_gives_the_trainer_s_numbers(loaded, folder, logged):
    assert logged["eval_margins/beta_free"] != 0
    result = evaluate(loaded, folder)
    rows = values(result["rows"])
    check({key: row["value"] for key, row in rows.items()}, logged)
    row = rows["ledpo_rewards", "margin"]
    assert row["n"] == 16
    assert row["standard_error"] > 0
    assert row["version"] == 1.0
    assert result["provenance"]["versions"]["transformers"]
    assert json.loads((folder / "results.json").read_text()) == result


def test_perplexity_is_that_of_the_answers_with_their_end(loaded, folder, tiny, logged):
    rows = values(evaluate(loaded, folder, ["ledpo_answers"])["rows"])
    documents = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    assert all(row["chosen"].startswith(pair["chosen"]["value"] + "<|im_end|>") for row, pair in zip(
        documents, json.loads((tiny.data / "heldout.json").read_text()), strict=True))  # fmt: skip
    tokens, size = (sum(row[f"chosen_{unit}"] for row in documents) for unit in ("tokens", "bytes"))
    nll = -logged["eval_logps/chosen"] * len(documents)
    perplexity, bits = (rows["ledpo_answers", name]["value"] for name in ("token_perplexity", "bits_per_byte"))
    assert perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert bits == pytest.approx(nll / math.log(2) / size, rel=1e-4)


def stock(arguments: str, folder: Path, cwd: Path, timeout: float = 300) -> dict:
    """Run the stock command in a process of its own; return (task, metric) -> value."""
    command = [str(Path(sys.executable).parent / "lm_eval"), *arguments.split(), "--output_path", str(folder)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(folder.rglob("results_*.json")).read_text())["results"]
    return {(task, key.split(",")[0]): value for task, own in results.items() for key, value in own.items()}


def test_the_stock_command_with_an_adapter(folder, logged, tmp_path):
    made = json.loads((folder / "provenance.json").read_text())
    assert "peft=" in made["lm_eval"]
    command = made["lm_eval"].removeprefix("lm_eval ").replace(",ledpo_answers", "")
    check(stock(f"{command} --batch_size 4 --device cpu", tmp_path, tmp_path), logged)


def test_with_a_chat_template_margins_are_the_same(tiny, tmp_path, capsys):
    """The tiny tokenizer's chat template has no system prompt: this run has none."""
    path = train(tiny.recipe(tmp_path / "run", beta_mode="fixed", max_steps=3))
    arguments = ["eval", "tasks", str(path), "--dataset", "heldout", "--dataset-dir", str(tiny.data)]
    found = {}
    for form in ("rendered", "chat"):
        own = [*arguments, "--folder", str(tmp_path / form), "--tasks", "ledpo_rewards", "--batch-size", "4"]
        assert main(own + ["--chat"] * (form == "chat")) == 0
        found[form] = values(json.loads((tmp_path / form / "results.json").read_text())["rows"])
    assert "--apply_chat_template" in capsys.readouterr().out
    for name in ("margin", "reward_margin", "reward_accuracy"):
        own = [found[form]["ledpo_rewards", name]["value"] for form in ("rendered", "chat")]
        assert own[0] == pytest.approx(own[1], abs=1e-5)


def test_another_system_prompt_than_the_chat_template_s_is_refused(loaded, tiny, tmp_path):
    with pytest.raises(DataSetError, match="makes other tokens of it") as error:
        prepare(loaded, "heldout", tiny.data, tmp_path / "x", form="chat")
    assert "and 8 more" in str(error.value)
    assert not (tmp_path / "x").exists()


def test_domains_are_tasks_of_a_group(loaded, tiny, tmp_path):
    rows = json.loads((tiny.data / "heldout.json").read_text())[:6]
    for place, row in enumerate(rows):
        row["subject"] = ["law", "new math"][place % 2]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    info = json.loads((tiny.data / "dataset_info.json").read_text())["heldout"]
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mixed": info | {"file_name": "rows.json"}}))
    made = prepare(loaded, "mixed", tmp_path, tmp_path / "out", domain="subject")
    assert made["groups"] == ["ledpo_pairs_by_domain", "ledpo_rewards_by_domain", "ledpo_answers_by_domain"]
    found = values(evaluate(loaded, tmp_path / "out", ["ledpo_rewards_by_domain", "ledpo_rewards"])["rows"])
    parts = [found[f"ledpo_rewards_{name}", "margin"] for name in ("law", "new_math")]
    assert [row["n"] for row in parts] == [3, 3]
    whole = found["ledpo_rewards", "margin"]["value"]
    assert whole == pytest.approx(sum(row["value"] for row in parts) / 2, abs=1e-6)


def test_instructions_and_models_without_a_start(tiny, tmp_path):
    plain = load(tiny.model, template="chatml")
    made = prepare(plain, "instructions", tiny.data, tmp_path / "sft", limit=3)
    assert made["tasks"] == ["ledpo_answers"]
    assert "peft" not in made["lm_eval"]
    (row,) = [row for row in evaluate(plain, tmp_path / "sft")["rows"] if row["metric"] == "token_perplexity"]
    assert row["value"] > 1
    assert prepare(plain, "heldout", tiny.data, tmp_path / "pairs")["tasks"] == ["ledpo_pairs", "ledpo_answers"]


def test_what_does_not_fit_is_refused(tiny, folder, tmp_path):
    plain = load(tiny.model, template="chatml")
    with pytest.raises(ValueError, match="Prepare a folder for it"):
        evaluate(plain, folder)
    with pytest.raises(ValueError, match="was not prepared"):
        evaluate(plain, tmp_path)
    with pytest.raises(ValueError, match="The form 'chatt' is unknown"):
        prepare(plain, "heldout", tiny.data, tmp_path, form="chatt")
    with pytest.raises(DataSetError, match="Undefined dataset heldoutt"):
        prepare(plain, "heldoutt", tiny.data, tmp_path)


def test_an_unknown_task_is_named(loaded, folder):
    with pytest.raises(ValueError, match="Did you mean 'ledpo_rewards'"):
        evaluate(loaded, folder, ["ledpo_reward"])


def test_references_that_are_missing_are_said(folder, tmp_path):
    from eval_harness.tasks.results import documents

    rows = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    for row in rows:
        del row["reference_chosen"]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="references from a trained run"):
        documents(tmp_path, ("chosen", "reference_chosen"))


def test_metrics_by_hand():
    document = {
        "chosen": "aa", "rejected": "b", "moved": "\n", "chosen_tokens": 4, "rejected_tokens": 1, "chosen_bytes": 2,
        "rejected_bytes": 1, "reference_chosen": -3.0, "reference_rejected": -1.0, "beta": 0.5,
    }  # fmt: skip
    assert pair_choices(document) == ["\naa", "\nb", "\n"]
    results = [(-4.5, False), (-2.5, False), (-0.5, True)]  # without the line's end: -4 and -2
    assert of_pair(document, results) == {"accuracy_sum": 0.0, "accuracy_per_token": 1.0, "accuracy_per_byte": 0.5}
    assert of_rewarded_pair(document, results) == {
        "reward_accuracy": 0.5, "margin": 0.0, "reward_margin": 0.0, "chosen_reward": -0.5, "rejected_reward": -0.5,
    }  # fmt: skip
    answer = of_answer(document, [(-4.5, False), (-0.5, True)])
    assert answer == {"token_perplexity": (-4.0, 4), "bits_per_byte": (-4.0, 2)}
    assert token_perplexity([(-4.0, 4), (-2.0, 2)]) == pytest.approx(math.e)


def test_the_standard_benchmarks_are_lm_eval_s_own():
    import yaml
    from lm_eval.tasks import TaskManager

    group = yaml.safe_load((YAML / "ledpo_standard.yaml").read_text())
    assert set(group["task"]) <= set(TaskManager().all_tasks)
    assert group["metadata"]["version"] == 1.0


@pytest.mark.slow
def test_the_stock_command_on_the_real_model_with_an_adapter(tmp_path):
    """A LEDPO run on SmolLM2-135M, evaluated by its trainer and by stock lm_eval, as docs/evaluate.md has it."""
    import yaml
    from conftest import cli, write_recipe

    recipe = yaml.safe_load((ROOT / "yaml_recipes/loss_variants_impact/cpu/ledpo.yaml").read_text())
    recipe |= {
        "learning_rate": 1e-4, "max_steps": 2, "output_dir": str(tmp_path / "run"), "do_eval": True,
        "eval_dataset": "medical_heldout", "eval_strategy": "steps", "eval_steps": 2, "max_samples": 16,
    }  # fmt: skip
    done = cli("train", write_recipe(tmp_path / "r.yaml", recipe), timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    logged = [row for row in rows if "eval_margins/beta_free" in row][-1]
    loaded = load(tmp_path / "run")
    made = prepare(loaded, "medical_heldout", recipe["dataset_dir"], tmp_path / "tasks", limit=16)
    command = made["lm_eval"].removeprefix("lm_eval ").replace(",ledpo_answers", "")
    check(stock(f"{command} --batch_size 8 --device cpu", tmp_path / "out", ROOT, timeout=900), logged)
