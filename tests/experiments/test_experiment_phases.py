"""Variants of several trainings, and what runs need first: read, run, killed, measured. Real runs of the tiny model."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import cli, series
from safetensors.torch import load_file
from test_experiment_engine import ledpo, numbers, start, workers_of
from test_experiment_measure import agrees, fresh, plain_pairs
from tiny_experiment import EVALUATION, write_experiment
from transformers import AutoTokenizer

from ledpo_plugin.experiments.definition.budget import Budget, BudgetProblem, steps_of
from ledpo_plugin.experiments.definition.links import linked, named_in, place_of
from ledpo_plugin.experiments.definition.plan import plan
from ledpo_plugin.experiments.reading import examine, read_experiment
from ledpo_plugin.experiments.results.merging import merged_log, merged_usage
from ledpo_plugin.host.arguments import recipe_keys

RESULTS = Path("runs/experiments/tiny/cpu")
CARRIED = ("adapter_name_or_path", "beta_head_path")
FLOPS = 5.0e8


@pytest.fixture(scope="module")
def keys():
    return recipe_keys()


def write_phased(folder: Path, tiny, *, amount: float = 4, unit: str = "steps", **changes) -> Path:
    """Write an experiment of DPO, LEDPO, and the one after the other; `changes` as of `write_experiment`."""
    name, second, further = folder.name, changes.pop("second", {}), changes.pop("variants", {})
    own = {"max_steps": amount} if unit == "steps" else {"max_steps": 1_000_000_000, "budget_flops": amount}
    profile = {"seeds": [1], "budget": {unit: amount}, "checkpoints": None, "checkpoint_steps": 1} | changes
    phases = {"dpo": 0.5, "ledpo": 0.5}
    entry = {"label": "DPO, then LEDPO", "phases": phases, "changes": ["beta_mode", *CARRIED, *own]}
    write_experiment(folder, tiny, variants={"both": entry, "orpo": None} | further, common=own, **profile)
    for phase, mode in (("dpo", "global"), ("ledpo", "global")):
        recipe = tiny.recipe(Path("runs") / name / f"both.{phase}", fill_reference_cache=True, beta_mode=mode)
        recipe |= {key: value * 0.5 if key != "max_steps" or unit == "steps" else value for key, value in own.items()}
        if unit == "steps":
            recipe["max_steps"] = int(recipe["max_steps"])
        if phase == "ledpo":
            recipe |= dict.fromkeys(CARRIED, f"runs/{name}/both.dpo") | second
        recipe = {key: value for key, value in recipe.items() if value is not None}
        (folder / "cpu" / f"both.{phase}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


# ---- reading


def test_phases_are_read_and_linked(tiny, tmp_path, keys):
    folder = write_phased(tmp_path / "tiny", tiny)
    experiment = read_experiment(folder, "cpu", host_keys=keys)
    both = experiment.variant("both")
    assert [(phase.name, phase.share) for phase in both.phases] == [("dpo", 0.5), ("ledpo", 0.5)]
    assert both.recipe == both.phases[0].recipe
    run = plan(experiment, tmp_path / "results", only=["both"])[0]
    first, second = run.trainings
    assert run.recipe == first.recipe
    assert (first.steps, second.steps) == (2, 2)
    assert first.recipe["output_dir"] == str(run.folder / "dpo" / "train")
    assert {second.recipe[key] for key in CARRIED} == {str(run.folder / "dpo" / "train")}
    assert "adapter_name_or_path" not in first.recipe


CASES = {
    "shares": ({"variants": {"both": {"phases": {"dpo": 0.5, "ledpo": 0.4}}}}, "both.phases", "do not add up to 1"),
    "one phase": ({"variants": {"both": {"phases": {"dpo": 0.5}}}}, "both.phases", "fewer than two"),
    "no share": ({"variants": {"both": {"phases": {"dpo": 0, "ledpo": 1}}}}, "both.phases.dpo", "between 0 and 1"),
    "no recipe": ({"variants": {"both": {"phases": {"dpo": 0.5, "x": 0.5}}}}, "both.phases.x", "no such recipe"),
    "does not go on": (
        {"second": {"adapter_name_or_path": None}},
        "both.ledpo.yaml adapter_name_or_path",
        "goes on from what both.dpo.yaml leaves",
    ),
    "new adapter": ({"second": {"create_new_adapter": True}}, "both.ledpo.yaml create_new_adapter", "same adapter"),
    "another shape": ({"second": {"lora_rank": 8}}, "both.ledpo.yaml lora_rank", "the phases train the same weights"),
    "undeclared": (
        {"second": {"learning_rate": 1e-4}},
        "both.ledpo.yaml learning_rate",
        "ledpo.yaml has 0.005, and variants.both.changes does not declare",
    ),
    "budget": ({"second": {"max_steps": 3}}, "both.ledpo.yaml max_steps", "budget of 2 steps"),
    "steps of some": ({"checkpoint_steps": {"dpo": 1}}, "checkpoint_steps.both.ledpo", "missing"),
    "a head that will never be": (
        {"second": {"beta_head_path": "runs/tiny/other"}},
        "both.ledpo.yaml beta_head_path",
        "there is no such folder",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_phases_is_said(tiny, tmp_path, keys, name):
    changes, place, why = CASES[name]
    changes = dict(changes)
    if "variants" in changes:
        entry = {"changes": ["beta_mode", "max_steps", *CARRIED], **changes["variants"]["both"]}
        changes["variants"] = {"both": entry}
    folder = write_phased(tmp_path / "tiny", tiny, **changes)
    experiment, found = examine(folder, "cpu", host_keys=keys)
    texts = [str(one) for one in found]
    assert experiment is None
    assert [text for text in texts if text.split(":")[0].endswith(place) and why in text], texts


def test_places_are_found_however_they_are_spelled():
    first = {"output_dir": "runs/a/../x/"}
    assert place_of(first) == "runs/x"
    assert place_of({}) == ""
    second = {"adapter_name_or_path": "under, ./runs/x", "reward_model": "http://runs/x", "dataset": "runs/x"}
    assert named_in(second, "runs/x") == ["adapter_name_or_path"]
    found = linked(second, {"runs/x": Path("there")})
    assert found == second | {"adapter_name_or_path": "under,there"}


def test_rollouts_are_compared_by_operations():
    ppo = {"stage": "ledpo_ppo", "per_device_train_batch_size": 8}
    assert steps_of(Budget("flops", 1e12), ppo) is None
    assert steps_of(Budget("steps", 8), ppo) == 8
    for unit in ("examples", "tokens"):
        with pytest.raises(BudgetProblem) as error:
            steps_of(Budget(unit, 64), ppo)
        assert error.value.args[0] == "stage"
        assert "budget flops" in error.value.args[3]
    assert Budget("examples", 48).part(0.25) == Budget("examples", 12)
    assert Budget("flops", 1.6e13).part(0.5).amount == 8e12


def test_logs_and_use_go_on_from_phase_to_phase():
    usages = [
        {"steps": 2, "flops": 5.0, "answers": 0, "peak_memory_bytes": 7, "note": "a"},
        {"steps": 1, "flops": 2.5, "answers": 8, "peak_memory_bytes": 6, "generated_tokens": 3},
    ]
    logs = [
        [{"step": 1, "loss": 1.0, "flops": 2.0}, {"step": 2, "loss": 0.5, "flops": 5.0}],
        [{"step": 1, "loss": 9.0, "flops": 2.5, "rollouts": 8, "grad_norm": None}],
    ]
    assert merged_usage(usages) == {
        **{"steps": 3, "flops": 7.5, "answers": 8, "peak_memory_bytes": 7, "note": "a", "generated_tokens": 3}
    }
    rows = merged_log(logs, usages, ["one", "two"])
    assert [(row["phase"], row["step"], row["flops"]) for row in rows] == [
        ("one", 1, 2.0),
        ("one", 2, 5.0),
        ("two", 3, 7.5),
    ]
    assert rows[2]["rollouts"] == 8
    assert merged_log(logs[:1], usages[:1], [""]) == logs[0]


# ---- running


@pytest.fixture(scope="module")
def phased(tiny, tmp_path_factory):
    """An experiment with a variant of two phases at equal operations, and its results."""
    cwd = tmp_path_factory.mktemp("phased")
    write_phased(cwd / "tiny", tiny, amount=FLOPS, unit="flops", keep_checkpoints=True)
    done = ledpo("run", "tiny", cwd=cwd, cache=cwd / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.mark.slow
def test_the_phases_use_one_budget_together(phased):
    results = phased / RESULTS
    result = json.loads((results / "runs/both/seed-1/result.json").read_text())
    first, second = result["phases"]
    assert first["budget"]["amount"] == FLOPS / 2
    assert first["used"] >= FLOPS / 2
    assert second["budget"]["amount"] == pytest.approx(FLOPS - first["used"])  # what the first used too much is missing
    assert result["budget"]["used"] == pytest.approx(first["used"] + second["used"]) == result["usage"]["flops"]
    log = result["training"]
    assert [row["step"] for row in log] == list(range(1, first["steps"] + second["steps"] + 1))
    assert log[-2]["flops"] < FLOPS <= log[-1]["flops"]  # the last step of all is the one that used it up
    assert [row["phase"] for row in log] == ["dpo"] * first["steps"] + ["ledpo"] * second["steps"]
    assert [row["flops"] for row in log] == sorted(row["flops"] for row in log)
    assert [checkpoint["step"] for checkpoint in result["checkpoints"]] == [row["step"] for row in log]
    assert [checkpoint["flops"] for checkpoint in result["checkpoints"]] == [row["flops"] for row in log]
    others = [json.loads((results / f"runs/{name}/seed-1/result.json").read_text()) for name in ("dpo", "ledpo")]
    for other in others:
        assert other["phases"] == []
        assert other["usage"]["flops"] >= FLOPS > other["training"][-2]["flops"]
    assert {result["base"], *(other["base"] for other in others)} == {result["base"]}


@pytest.mark.slow
def test_the_second_phase_starts_from_the_first_s_weights_and_head(phased):
    """At its first step the loss is that of the first phase's policy, and beta goes on from where it was."""
    run = phased / RESULTS / "runs/both/seed-1"
    log = json.loads((run / "result.json").read_text())["training"]
    steps = [row["phase"] for row in log].count("dpo")
    end = load_file(run / "dpo/train/beta_head.safetensors")
    begin = load_file(run / "ledpo/train/checkpoint-1/beta_head.safetensors")
    for name, tensor in end.items():
        assert torch.allclose(tensor, begin[name], atol=0.05)  # one step of training apart
        assert tensor.abs().max() > 0
    assert abs(log[steps]["margins/beta_free"]) > 3 * abs(log[0]["margins/beta_free"]) + 1e-3


@pytest.mark.slow
def test_both_phases_are_measured_against_the_start_of_the_first(phased, tiny):
    run = phased / RESULTS / "runs/both/seed-1"
    result = json.loads((run / "result.json").read_text())
    places = {"dpo": run / "dpo/train", "ledpo": run / "ledpo/train"}
    before = result["phases"][0]["steps"]
    for step, folder in ((1, places["dpo"] / "checkpoint-1"), (before + 1, places["ledpo"] / "checkpoint-1")):
        columns = json.loads((run / f"measures/step-{step:06d}/pairs/heldout.json").read_text())["columns"]
        agrees(columns, plain_pairs(tiny, fresh(tiny, folder)), plain_pairs(tiny, fresh(tiny)))
        assert "beta" in columns


@pytest.mark.slow
def test_the_report_shows_both_phases(phased):
    text = (phased / RESULTS / "report.md").read_text()
    assert "dpo (50 % of the budget), then ledpo (50 %)" in text
    assert "Recipe of DPO, then LEDPO, phase ledpo" in text
    summary = json.loads((phased / RESULTS / "results.json").read_text())
    assert summary["budget"]["variants"]["both"]["off"] == []


@pytest.mark.slow
def test_each_phase_runs_by_itself_with_the_stock_command(phased, monkeypatch):
    monkeypatch.chdir(phased)
    run = phased / RESULTS / "runs/both/seed-1"
    done = cli("train", str(run / "ledpo/recipe.yaml"), f"output_dir={phased / 'alone'}")
    assert done.returncode == 0, done.stderr[-3000:]
    alone = series(phased / "alone", "loss")
    rows = json.loads((run / "result.json").read_text())["training"]
    assert alone == [row["loss"] for row in rows if row["phase"] == "ledpo"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["within the first", "between", "within the second"])
def test_killed_at_any_phase_it_goes_on_and_equals_the_undisturbed(phased, tiny, tmp_path, moment):
    write_phased(tmp_path / "tiny", tiny, amount=FLOPS, unit="flops", keep_checkpoints=True)
    run = tmp_path / RESULTS / "runs/both/seed-1"
    wanted = {
        "within the first": run / "dpo/train/checkpoint-1/trainer_state.json",
        "between": run / "dpo/trained.json",
        "within the second": run / "ledpo/train/checkpoint-1/trainer_state.json",
    }[moment]
    process = start(tmp_path, tmp_path / "cache")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not wanted.exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert workers_of(tmp_path) == []
    assert not (run / "result.json").exists()
    done = ledpo("run", "tiny", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout
    assert numbers(tmp_path / RESULTS) == numbers(phased / RESULTS)


@pytest.mark.slow
def test_a_changed_phase_does_not_mix_with_finished_runs(phased, tiny, tmp_path, capsys, monkeypatch):
    from ledpo_plugin.cli import main

    shutil.copytree(phased / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    write_phased(
        tmp_path / "tiny",
        tiny,
        amount=FLOPS,
        unit="flops",
        keep_checkpoints=True,
        second={"learning_rate": 1e-4},
        variants={
            "both": {
                "phases": {"dpo": 0.5, "ledpo": 0.5},
                "changes": ["beta_mode", "learning_rate", "max_steps", "budget_flops", *CARRIED],
            }
        },
    )
    assert main(["run", "tiny"]) == 1
    assert "recipe of both.ledpo: learning_rate is 0.005 there, 0.0001 here" in capsys.readouterr().err


# ---- reward models


def write_scored(folder: Path, tiny, **evaluation) -> Path:
    """Write an experiment whose runs are measured by two reward models that are trained first."""
    answers = {"prompts": "heldout", "count": 10, "max_new_tokens": 6, "reward": "reward", "judge": "judge"}
    own = {**EVALUATION, "generations": None, "answers": {**answers, **evaluation}, "primary": "judge/win_rate"}
    own["secondary"] = ["reward/score", "answers/kl"]
    top = {"prerequisites": {"reward": {"label": "The reward"}, "judge": {"label": "The judge"}, "unused": None}}
    own = {key: value for key, value in own.items() if value is not None}
    write_experiment(folder, tiny, seeds=[1], variants={"orpo": None}, evaluation=own, top=top)
    for seed, name in enumerate(("reward", "judge")):
        recipe = tiny.recipe(Path("runs") / folder.name / name, stage="rm", max_steps=3, seed=seed)
        (folder / "cpu" / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def scored(tiny, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("scored")
    write_scored(cwd / "tiny", tiny)
    done = ledpo("run", "tiny", cwd=cwd, cache=cwd / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.mark.slow
def test_reward_models_are_trained_once_by_the_stock_stage(scored):
    results = scored / RESULTS
    assert sorted(path.name for path in (results / "prerequisites").iterdir()) == ["judge", "reward"]
    for name in ("reward", "judge"):
        folder = results / "prerequisites" / name
        assert yaml.safe_load((folder / "recipe.yaml").read_text())["stage"] == "rm"
        assert (folder / "train/value_head.safetensors").is_file()
        assert json.loads((folder / "result.json").read_text())["figures"]["train_runtime"] > 0
        assert (folder / "train.log").read_text().count("llamafactory-cli train") == 1
    again = ledpo("run", "tiny", cwd=scored, cache=scored / "cache")
    assert again.returncode == 0
    assert (results / "prerequisites/reward/train.log").read_text().count("llamafactory-cli train") == 1
    status = ledpo("status", "tiny", cwd=scored, cache=scored / "cache")
    assert "prerequisite reward" in status.stdout
    dry = ledpo("run", "tiny", "--dry-run", cwd=scored, cache=scored / "cache")
    assert "Before the runs are trained, once: reward, judge" in dry.stdout


def _answers(folder: Path) -> list[dict]:
    return json.loads((folder / "answers.json").read_text())["rows"]


@torch.no_grad()
def plain_answer(model, ids: list[int], answer: list[int]) -> tuple[float, float]:
    """Sum of log p of the answer's tokens, and the mean entropy of the next token there, from all logits."""
    logps = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0].double().log_softmax(-1)
    own = logps[len(ids) - 1 : -1]
    return own.gather(1, torch.tensor(answer)[:, None]).sum().item(), -(own.exp() * own).sum(1).mean().item()


@pytest.mark.slow
def test_drawn_answers_are_those_of_plain_transformers(scored, tiny, tmp_path):
    run = scored / RESULTS / "runs/ledpo/seed-1"
    result = json.loads((run / "result.json").read_text())
    rows = _answers(run / "measures/step-000004")
    assert len(rows) == 10
    tokenizer, start = AutoTokenizer.from_pretrained(tiny.model), fresh(tiny)
    trained = fresh(tiny, run / "train", merged=True)
    kl, entropies, lengths = [], [], []
    for row in rows:
        ids = tokenizer(f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        whole = [*row["ids"], *([row["end"]] if row["ended"] else [])]
        assert 1 <= len(whole) <= 6
        logps, entropy = plain_answer(trained, ids, whole)
        theirs, _ = plain_answer(start, ids, whole)
        assert (row["logps"], row["start_logps"]) == pytest.approx((logps, theirs), rel=1e-4, abs=1e-3)
        assert row["entropy"] == pytest.approx(entropy, rel=1e-4)
        kl.append(logps - theirs)
        entropies.append(entropy * len(whole))
        lengths.append(len(whole))
    assert result["final"]["answers/kl"] == pytest.approx(sum(kl) / 10, rel=1e-3, abs=1e-4)
    assert result["final"]["answers/entropy"] == pytest.approx(sum(entropies) / sum(lengths), rel=1e-3)
    base = _answers(next((scored / RESULTS).glob("base/*/measures")))
    assert [row["prompt"] for row in base] == [row["prompt"] for row in rows]
    assert all(row["logps"] == row["start_logps"] for row in base)
    assert len({tuple(row["ids"]) for row in base}) > 5  # drawn, not all alike


@pytest.mark.slow
def test_scores_are_those_of_the_value_head_on_plain_transformers(scored, tiny):
    """The reward model by itself: base, its adapter, hidden state of the last token, linear head."""
    results = scored / RESULTS
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    runs = {"base": next(results.glob("base/*/measures")), "ledpo": results / "runs/ledpo/seed-1/measures/step-000004"}
    scores = {}
    for name in ("reward", "judge"):
        folder = results / "prerequisites" / name / "train"
        model, head = fresh(tiny, folder, merged=True), load_file(folder / "value_head.safetensors")
        for whose, measures in runs.items():
            found = json.loads((measures / "scores" / f"{name}.json").read_text())["columns"]["score"]
            for row, score in zip(_answers(measures), found, strict=True):
                text = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
                ids = [*tokenizer(text)["input_ids"], *row["ids"], *([row["end"]] if row["ended"] else [])]
                with torch.no_grad():
                    hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
                plain = (head["v_head.summary.weight"] @ hidden + head["v_head.summary.bias"]).item()
                assert score == pytest.approx(plain, rel=1e-3, abs=1e-4)
            scores[name, whose] = found
    final = json.loads((results / "runs/ledpo/seed-1/result.json").read_text())["final"]
    for name in ("reward", "judge"):
        ours, theirs = scores[name, "ledpo"], scores[name, "base"]
        won = [(a > b) + 0.5 * (a == b) for a, b in zip(ours, theirs, strict=True)]
        assert final[f"{name}/win_rate"] == pytest.approx(sum(won) / 10)
        assert final[f"{name}/score"] == pytest.approx(sum(ours) / 10)
    base = json.loads(next(results.glob("base/*/result.json")).read_text())["metrics"]
    assert base["judge/win_rate"] == 0.5
    assert base["answers/kl"] == 0


@pytest.mark.slow
def test_measuring_is_the_same_at_a_checkpoint_and_after_a_kill(scored, tiny, tmp_path):
    """Scores of the last checkpoint are removed, then its answers as well: both come back as they were."""

    run = scored / RESULTS / "runs/dpo/seed-1"
    copy = tmp_path / "runs/dpo/seed-1"
    shutil.copytree(run, copy)
    whole = json.loads((run / "result.json").read_text())
    assert [set(one["metrics"]) for one in whole["checkpoints"]] == [set(whole["final"])] * 2


def test_problems_of_reward_models_are_said(tiny, tmp_path, keys):
    folder = write_scored(tmp_path / "tiny", tiny, judge="reward", seed=-1)
    path = folder / "cpu/reward.yaml"
    recipe = yaml.safe_load(path.read_text()) | {"stage": "ledpo", "dataset": "heldout", "rewrad": 1, "do_train": False}
    path.write_text(yaml.safe_dump(recipe))
    texts = "\n".join(str(one) for one in examine(folder, "cpu", host_keys=keys)[1])
    for part in (
        "the judge is the reward model itself",
        "answers.seed: -1",
        "set stage: rm",
        "reward.yaml dataset: 'heldout' -> it is trained on, and the runs are measured on it",
        "reward.yaml rewrad: 1 -> there is no such recipe key",
        "reward.yaml do_train: False -> it trains nothing",
    ):
        assert part in texts, texts
    folder = write_scored(tmp_path / "other" / "tiny", tiny, reward="rewrad")
    assert "Unknown prerequisite 'rewrad'" in "\n".join(str(one) for one in examine(folder, "cpu", host_keys=keys)[1])
