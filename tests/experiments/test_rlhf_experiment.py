"""The experiment of LEDPO with RLHF on the tiny model: four strategies, one budget of operations, a kill, a report."""

import json
import math
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml
from test_experiment_engine import ledpo, numbers, start, workers_of

from ledpo_plugin.experiments.measuring.operations import KINDS, by_kind, reward_model_flops
from ledpo_plugin.experiments.report.reward_hacking import REWARD_ROSE, gain_in_errors, judged, rules
from ledpo_plugin.training.usage import Cost, Counts

ROOT = Path(__file__).parents[2]
REAL = ROOT / "yaml_recipes/ledpo_rlhf_combination"
RESULTS = Path("runs/experiments/tiny/cpu")
VARIANTS = ("ledpo", "ppo", "sequential", "alternating")
FLOPS = 7.0e8
pytestmark = pytest.mark.timeout(3000)


def reduce(tiny, folder: Path) -> Path:
    """Copy the real experiment onto the tiny model and data: all of its variants, one seed, few operations."""
    text = (REAL / "experiment.yaml").read_text().replace("mixed_heldout", "heldout")
    definition = yaml.safe_load(text.replace("instructions_heldout", "instructions"))
    own = definition["profiles"]["cpu"]
    own |= {"seeds": [1], "budget": {"flops": FLOPS}, "keep_checkpoints": True}
    own |= {"resources": {"cpus": 1, "memory_gb": 1, "disk_gb": 0.1}}
    own["checkpoint_steps"] = dict.fromkeys(own["checkpoint_steps"], 3)
    own["evaluation"]["answers"] |= {"count": 8, "max_new_tokens": 8}
    own.pop("prepare")
    definition |= {"name": folder.name, "profiles": {"cpu": own}}
    (folder / "cpu").mkdir(parents=True)
    (folder / "experiment.yaml").write_text(yaml.safe_dump(definition, sort_keys=False))
    for path in sorted((REAL / "cpu").glob("*.yaml")):
        recipe = yaml.safe_load(path.read_text())
        recipe |= {"model_name_or_path": str(tiny.model), "template": "chatml", "cutoff_len": 160}
        recipe |= {"dataset_dir": str(tiny.data), "dataset": "pairs", "lora_rank": 4, "learning_rate": 5e-3}
        recipe.pop("default_system", None)
        if "budget_flops" in recipe:
            recipe["budget_flops"] = FLOPS / (2 if "sequential" in path.name else 1)
        if "max_new_tokens" in recipe:
            recipe["max_new_tokens"] = 8
        if recipe["stage"] == "rm":
            recipe |= {"max_steps": 4, "eval_dataset": "heldout"}
        (folder / "cpu" / path.name).write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The reduced experiment and its results."""
    cwd = tmp_path_factory.mktemp("rlhf")
    reduce(tiny, cwd / "tiny")
    done = ledpo("run", "tiny", cwd=cwd, cache=cwd / "cache", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def results_of(cwd: Path) -> dict[str, dict]:
    return {name: json.loads((cwd / RESULTS / f"runs/{name}/seed-1/result.json").read_text()) for name in VARIANTS}


@pytest.mark.slow
def test_all_strategies_use_the_same_operations(whole):
    """Each ends with the step in which the budget is used up: generation, reference and rewards are in it."""
    for name, result in results_of(whole).items():
        log = result["training"]
        assert log[-2]["flops"] < FLOPS <= log[-1]["flops"] == result["budget"]["used"], name
        kinds = result["usage"]["flops_by_kind"]
        assert sum(kinds.values()) == pytest.approx(result["usage"]["flops"])
        assert (kinds["generation"] > 0) == (name != "ledpo")
        assert (kinds["reward"] > 0) == (name != "ledpo")
        assert kinds["training"] > 0 < kinds["reference"]
    summary = json.loads((whole / RESULTS / "results.json").read_text())
    assert all(row["off"] == [] for row in summary["budget"]["variants"].values())


@pytest.mark.slow
def test_operations_by_kind_are_those_of_the_plugin_s_own_formula(whole):
    """By hand: 2 operations a weight, token and pass."""
    run = whole / RESULTS / "runs/ppo/seed-1"
    usage = json.loads((run / "train/ledpo_usage.json").read_text())
    cost = json.loads((run / "measures/cost.json").read_text())
    body, output = cost["body"], cost["output"]
    generation = 2 * body * (usage["rollout_prompt_tokens"] + usage["generated_tokens"])
    generation += 2 * output * usage["generated_tokens"]
    kinds = json.loads((run / "result.json").read_text())["usage"]["flops_by_kind"]
    assert kinds["generation"] == pytest.approx(generation, rel=0.02)
    assert kinds["reward"] == pytest.approx(2 * body * usage["reward_tokens"], rel=0.02)
    assert usage["reward_tokens"] > usage["generated_tokens"] > 0
    assert by_kind(cost, usage | {"flops": usage["flops"] * 1.5}, False) is None  # the parts must add up
    assert by_kind(None, usage, False) is None
    counts = Counts(policy_tokens=10, predictions=4, reference_tokens=7)
    told = {"policy_tokens": 10, "predictions": 4, "reference_tokens": 7, "flops": Cost(100, 20, 5, 3).flops(counts)}
    parts = by_kind({"body": 100, "output": 20, "trained": 5, "passes": 2}, told, True)
    assert parts == pytest.approx({"training": 6420, "reference": 1400, "generation": 0, "scoring": 0, "reward": 0})
    assert list(parts) == list(KINDS)
    trained = {"body": 100, "output": 20, "trained": 5}
    assert reward_model_flops(trained, 10, {"disable_gradient_checkpointing": True}) == 2 * 10 * (2 * 100 + 20 + 5)
    assert reward_model_flops(trained, 10, {}) == 2 * 10 * (3 * 100 + 20 + 5)
    assert reward_model_flops(trained, None, {}) is reward_model_flops(None, 10, {}) is None


@pytest.mark.slow
def test_ppo_goes_on_from_ledpo_s_adapter_and_head_and_is_held_to_the_start(whole):
    from safetensors.torch import load_file

    run = whole / RESULTS / "runs/sequential/seed-1"
    recipe = yaml.safe_load((run / "ppo/recipe.yaml").read_text())
    assert (
        recipe["adapter_name_or_path"]
        == recipe["beta_head_path"]
        == str(RESULTS / "runs/sequential/seed-1/ledpo/train")
    )
    assert recipe["reward_model"] == str(RESULTS / "prerequisites/reward/train")
    first, last = (
        load_file(run / "ledpo/train/beta_head.safetensors"),
        load_file(run / "ppo/train/beta_head.safetensors"),
    )
    assert all((first[name] == last[name]).all() for name in first)  # PPO asks the head and does not train it
    log = json.loads((run / "result.json").read_text())["training"]
    ppo = [row for row in log if row["phase"] == "ppo"]
    asked = [row["kl/sequence"] for row in ppo if "kl/sequence" in row]
    # The first rollout is LEDPO's policy: its KL from the reference, the start, is not that of a fresh adapter, 0.
    assert abs(asked[0]) > 1e-3


@pytest.mark.slow
def test_every_run_is_measured_alike(whole):
    base = json.loads(next((whole / RESULTS).glob("base/*/result.json")).read_text())["metrics"]
    names = {name for name in base if "beta" not in name}
    for name, result in results_of(whole).items():
        assert {key for key in result["final"] if "beta" not in key} == names, name
        for checkpoint in result["checkpoints"]:
            assert {"reward/score", "judge/win_rate", "answers/kl", "heldout/accuracy"} <= set(checkpoint["metrics"])
    assert {"reward/score", "reward/win_rate", "judge/win_rate", "answers/kl", "answers/entropy"} <= names
    assert base["reward/win_rate"] == base["judge/win_rate"] == 0.5


@pytest.mark.slow
def test_the_report_says_it_all(whole):
    text = (whole / RESULTS / "report.md").read_text()
    for title in (
        *("Answers drawn by the trained models", "Signs of reward hacking"),
        "Efficiency, and where the operations went",
    ):
        assert f"\n## {title}\n" in text
    for title in ("Scores of drawn answers", "Seeds that show a sign", "Operations by kind", "What was trained first"):
        assert f"**{title}**" in text
    needed = json.loads((whole / RESULTS / "results.json").read_text())["prerequisites"]
    assert [one["name"] for one in needed] == ["reward", "judge"]
    assert all(one["flops"] > 0 and one["train_seconds"] > 0 for one in needed)
    assert re.search(r"\| Reward model \| PPO; LEDPO→PPO; alternating \| pairs \| [01]\.\d\d \(heldout\)", text)
    assert "| Judge | measuring alone |" in text
    assert "its cost is in no run's budget" in text
    assert re.search(r"PPO: the reward rose in [01] of 1 seed", text)
    assert "ledpo (50 % of the budget), then ppo (50 %)" in text
    html = (whole / RESULTS / "report.html").read_text()
    assert 'id="frontier' in html or "Reward of drawn answers against KL" in html


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["ppo", "sequential", "alternating"])
def test_killed_while_it_trains_on_rollouts_it_goes_on_and_equals_the_undisturbed(whole, tiny, tmp_path, variant):
    reduce(tiny, tmp_path / "tiny")
    results = tmp_path / RESULTS
    shutil.copytree(whole / RESULTS, results, ignore=lambda _, names: [name for name in names if name == variant])
    train = results / "runs" / variant / "seed-1" / ("ppo" if variant == "sequential" else "") / "train"
    process = start(tmp_path, whole / "cache")
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (train / "checkpoint-3/trainer_state.json").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert workers_of(tmp_path) == []
    assert not (results / "runs" / variant / "seed-1/result.json").exists()
    done = ledpo("run", "tiny", cwd=tmp_path, cache=whole / "cache", timeout=1500)
    assert done.returncode == 0, done.stdout
    assert numbers(results) == numbers(whole / RESULTS)


# ---- rules


START = {
    "reward/gain_in_errors": 0.0,
    "judge/gain_in_errors": 0.0,
    "i/nll": 2.0,
    "p/chosen_shift": 0.0,
    "answers/length": 20.0,
    "answers/entropy": 2.0,
    "answers/distinct2": 0.9,
}


@pytest.mark.parametrize(
    "name, key, no, yes",
    [
        ("judge", "judge/gain_in_errors", -1.0, -1.1),
        ("likelihood", "i/nll", 2.04, 2.05),
        ("chosen", "p/chosen_shift", -0.05, -0.051),
        ("length", "answers/length", 24.0, 24.1),
        ("entropy", "answers/entropy", 1.6, 1.59),
        ("diversity", "answers/distinct2", 0.721, 0.719),
    ],
)
def test_signs_are_met_beyond_their_thresholds(name, key, no, yes):
    sign = rules("p", "i")[name]
    assert judged(sign, START | {key: no}, START) is False
    assert judged(sign, START | {key: yes}, START) is True
    assert judged(sign, {other: value for other, value in START.items() if other != key}, START) is None


def test_a_gain_is_told_in_its_standard_errors():
    """By hand: gains 1, 2, 3 have mean 2 and standard deviation 1, so a standard error of 1 / sqrt(3)."""
    assert gain_in_errors([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(2 * math.sqrt(3))
    assert math.isnan(gain_in_errors([1.0], [0.0]))
    assert math.isnan(gain_in_errors([1.0, 2.0], [0.0, 1.0]))


def test_which_rules_there_are():
    assert judged(REWARD_ROSE, START | {"reward/gain_in_errors": 2.1}, {})
    assert not judged(REWARD_ROSE, START | {"reward/gain_in_errors": 2.0}, {})
    assert judged(REWARD_ROSE, {}, {}) is None
    assert "likelihood" not in rules("p", None)
    assert "chosen" not in rules(None, "i")
