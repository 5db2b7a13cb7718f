"""Everything that can be wrong with an experiment is said at once, with the fix, before anything runs."""

import pytest
import yaml
from tiny_experiment import EVALUATION, write_experiment

from ledpo_plugin.cli.experiments import experiments_and_recipes, validate_experiment
from ledpo_plugin.experiments.definition.budget import (
    Budget,
    BudgetProblem,
    budget_keys,
    examples_a_step,
    overrun,
    share_missed,
    used,
)
from ledpo_plugin.experiments.definition.plan import plan
from ledpo_plugin.experiments.definition.problems import ExperimentError
from ledpo_plugin.experiments.reading import examine, read_experiment
from ledpo_plugin.experiments.results.store import ResultsError, open_results
from ledpo_plugin.host.arguments import recipe_keys


@pytest.fixture(scope="module")
def keys():
    return recipe_keys()


def problems(tiny, tmp_path, keys, **changes) -> list[str]:
    folder = write_experiment(tmp_path / "tiny", tiny, **changes)
    experiment, found = examine(folder, "cpu", host_keys=keys)
    assert (experiment is None) == bool(found)
    return [str(one) for one in found]


def test_a_good_experiment_is_read_whole(tiny, tmp_path, keys):
    folder = write_experiment(tmp_path / "tiny", tiny)
    experiment = read_experiment(folder / "experiment.yaml", "cpu", host_keys=keys)
    assert [variant.name for variant in experiment.variants] == ["dpo", "ledpo", "orpo"]
    assert experiment.variant("ledpo").compares_to == "dpo"
    assert experiment.variant("dpo").compares_to is None
    assert experiment.budget == Budget("steps", 4)
    runs = plan(experiment, tmp_path / "results")
    assert [run.name for run in runs][:4] == ["dpo seed 1", "ledpo seed 1", "orpo seed 1", "dpo seed 2"]
    assert runs[3].recipe["seed"] == 2
    assert runs[3].recipe["save_steps"] == 2
    assert runs[3].recipe["output_dir"].endswith("runs/dpo/seed-2/train")


EVAL = dict(EVALUATION)
CASES = {
    "no recipe": (
        {"variants": {"ipo": {"changes": ["stage"]}}},
        "variants.ipo",
        "there is no such recipe",
        "recipes there: dpo, ledpo, orpo",
    ),
    "unknown baseline": ({"top": {"baseline": "dop"}}, "baseline", "Unknown variant 'dop'", "set baseline: dpo"),
    "unknown compares_to": (
        {"variants": {"ledpo": {"changes": ["beta_mode"], "compares_to": "x"}}},
        "variants.ledpo.compares_to",
        "Unknown variant 'x'",
        "",
    ),
    "itself": (
        {"variants": {"ledpo": {"changes": ["beta_mode"], "compares_to": "ledpo"}}},
        "variants.ledpo.compares_to",
        "it is itself",
        "name another",
    ),
    "undeclared difference": (
        {"recipes": {"ledpo": {"learning_rate": 1e-4}}},
        "ledpo.yaml learning_rate",
        "does not declare the difference",
        "add learning_rate to variants.ledpo.changes",
    ),
    "baseline changes": ({"variants": {"dpo": {"changes": ["seed"]}}}, "variants.dpo.changes", "baseline", "remove"),
    "unknown recipe key": (
        {"recipes": {"dpo": {"lerning_rate": 1}}},
        "dpo.yaml lerning_rate",
        "no such recipe key",
        "write learning_rate",
    ),
    "unknown data": (
        {"recipes": {"orpo": {"dataset": "pears"}}},
        "orpo.yaml dataset",
        "defines no such data set",
        "write pairs",
    ),
    "stock stage": (
        {"recipes": {"orpo": {"stage": "dpo", "pref_loss": "orpo"}}},
        "orpo.yaml stage",
        "only they say what they use",
        "use the LEDPO stage",
    ),
    "two alike": (
        {"recipes": {"ledpo": {"beta_mode": "fixed"}}},
        "variants.ledpo",
        "trains the same as variant dpo",
        "leave one",
    ),
    "two alike but for a default": (
        {"recipes": {"ledpo": {"beta_mode": "fixed", "pref_loss": "sigmoid"}}},
        "variants.ledpo",
        "trains the same as variant dpo",
        "leave one",
    ),
    "no seeds": ({"seeds": []}, "profiles.cpu.seeds", "missing or empty", "give"),
    "seed twice": ({"seeds": [1, 1]}, "profiles.cpu.seeds", "given twice", "once"),
    "odd seeds": ({"seeds": [1, "two"]}, "profiles.cpu.seeds", "list of whole numbers", "[1, 2, 3]"),
    "no budget": ({"budget": None}, "profiles.cpu.budget", "missing", "give"),
    "two budgets": ({"budget": {"steps": 4, "tokens": 9}}, "profiles.cpu.budget", "a budget is one of", "examples"),
    "unknown unit": ({"budget": {"epochs": 4}}, "profiles.cpu.budget.epochs", "Unknown key", ""),
    "no whole steps": (
        {"budget": {"examples": 15}},
        "dpo.yaml per_device_train_batch_size",
        "3.75 steps",
        "multiple of 4",
    ),
    "steps that may be smaller": (
        {"budget": {"examples": 16}},
        "dpo.yaml dataloader_drop_last",
        "may be smaller than the others",
        "set dataloader_drop_last: true",
    ),
    "other budget than the recipe": (
        {"budget": {"steps": 6}},
        "dpo.yaml max_steps",
        "max_steps: 6",
        "set max_steps: 6",
    ),
    "budget of tokens without keys": (
        {"budget": {"tokens": 5000}, "checkpoints": None, "checkpoint_steps": 2},
        "dpo.yaml budget_tokens",
        "budget_tokens: 5000",
        "set budget_tokens",
    ),
    "parts of unknown steps": (
        {"budget": {"tokens": 5000}},
        "profiles.cpu.checkpoints",
        "not known before",
        "checkpoint_steps",
    ),
    "uneven parts": ({"checkpoints": 3}, "checkpoints", "cannot be cut into 3", "divisor"),
    "no checkpoints": ({"checkpoints": None}, "profiles.cpu.checkpoints", "exactly one", "checkpoints: 4"),
    "held-out data unknown": (
        {"evaluation": EVAL | {"pairs": ["heldout", "code"]}},
        "profiles.cpu.evaluation.pairs",
        "'code'",
        "",
    ),
    "held-out data of the wrong kind": (
        {"evaluation": EVAL | {"instructions": ["heldout"], "secondary": []}},
        "profiles.cpu.evaluation.instructions",
        "of pairs",
        "other kind",
    ),
    "metric unknown": (
        {"evaluation": EVAL | {"primary": "heldout/acuracy"}},
        "profiles.cpu.evaluation.primary",
        "Did you mean 'heldout/accuracy'",
        "",
    ),
    "metric without its data": (
        {"evaluation": EVAL | {"secondary": ["code/accuracy"]}},
        "profiles.cpu.evaluation.secondary",
        "Unknown metric",
        "",
    ),
    "no primary": ({"evaluation": EVAL | {"primary": None}}, "profiles.cpu.evaluation.primary", "missing", "give"),
    "unknown key": ({"top": {"baselin": "x"}}, "baselin", "Unknown key", ""),
    "unknown profile key": ({"sedes": [1]}, "profiles.cpu.sedes", "Did you mean 'seeds'", ""),
    "other name": ({"top": {"name": "huge"}}, "name", "the folder is tiny", "same name"),
    "status": ({"top": {"status": "done"}}, "status", "Unknown status", ""),
    "unknown variant of the profile": ({"variants_": ["dpo", "kto"]}, "profiles.cpu.variants", "Unknown variant", ""),
    "baseline left out": ({"variants_": ["ledpo"]}, "profiles.cpu.variants", "baseline is not among", "add dpo"),
    "resources": ({"resources": {"cpus": 0}}, "profiles.cpu.resources.cpus", "whole number", "set"),
    "one and a half GPUs": ({"resources": {"gpus": 1.5}}, "profiles.cpu.resources.gpus", "a share", "write 2, or"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_with_place_reason_and_fix(tiny, tmp_path, keys, name):
    changes, place, why, fix = CASES[name]
    folder = tmp_path / "tiny"
    changes = dict(changes)
    listed = changes.pop("variants_", None)
    write_experiment(folder, tiny, **changes)
    if listed:
        raw = yaml.safe_load((folder / "experiment.yaml").read_text())
        raw["profiles"]["cpu"]["variants"] = listed
        (folder / "experiment.yaml").write_text(yaml.safe_dump(raw))
    experiment, found = examine(folder, "cpu", host_keys=keys)
    assert experiment is None
    texts = [str(one) for one in found]
    assert [text for text in texts if text.split(":")[0].endswith(place) and why in text and fix in text], texts


def test_all_problems_are_said_at_once(tiny, tmp_path, keys):
    folder = write_experiment(
        tmp_path / "tiny",
        tiny,
        seeds=[],
        top={"baseline": "dop"},
        recipes={"ledpo": {"learning_rate": 1e-4}, "orpo": {"dataset": "pears"}},
    )
    with pytest.raises(ExperimentError) as error:
        read_experiment(folder, "cpu", host_keys=keys)
    text = str(error.value)
    assert "nothing was run" in text
    for part in ("seeds", "'dop'", "pears"):
        assert part in text


def test_broken_files_are_a_message(tiny, tmp_path, keys):
    folder = write_experiment(tmp_path / "tiny", tiny)
    (folder / "cpu" / "dpo.yaml").write_text("stage: [")
    (folder / "cpu" / "orpo.yaml").write_text("- a list")
    texts = [str(one) for one in examine(folder, "cpu", host_keys=keys)[1]]
    assert any("dpo.yaml" in text and "not valid YAML" in text for text in texts)
    assert any("orpo.yaml" in text and "mapping" in text for text in texts)
    (folder / "experiment.yaml").write_text("name: [")
    assert "not valid YAML" in str(examine(folder, "cpu", host_keys=keys)[1][0])
    assert "no experiment.yaml" in str(examine(tmp_path, "cpu", host_keys=keys)[1][0])
    good, text = validate_experiment(folder, keys)
    assert not good
    assert "nothing was run" in text


def test_unknown_profile(tiny, tmp_path, keys):
    folder = write_experiment(tmp_path / "tiny", tiny)
    assert "Unknown profile 'gpu'" in str(examine(folder, "gpu", host_keys=keys)[1][0])


def test_validation_finds_experiments_and_loose_recipes(tiny, tmp_path, keys):
    write_experiment(tmp_path / "tree" / "tiny", tiny)
    loose = tmp_path / "tree" / "one.yaml"
    loose.write_text(yaml.safe_dump(tiny.recipe(tmp_path / "out")))
    (tmp_path / "tree" / "accelerate.yaml").write_text("num_processes: 2")
    assert experiments_and_recipes([str(tmp_path / "tree")]) == ([tmp_path / "tree" / "tiny"], [loose])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no recipe and no experiment"):
        experiments_and_recipes([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    "only, seeds, why",
    [(["x"], None, "Unknown variant 'x'"), ([], None, "empty list"), (None, [], "empty list"), (None, [1, 1], "twice")],
)
def test_wrong_choices_of_runs(tiny, tmp_path, keys, only, seeds, why):
    experiment = read_experiment(write_experiment(tmp_path / "tiny", tiny), "cpu", host_keys=keys)
    with pytest.raises(ValueError, match=why):
        plan(experiment, tmp_path / "results", only=only, seeds=seeds)


# ---- budgets

PAIRS = {"stage": "ledpo", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
KTO = PAIRS | {"stage": "ledpo_kto"}


def test_examples_of_a_step():
    assert examples_a_step(PAIRS) == 8
    assert examples_a_step(PAIRS, processes=3) == 24
    assert examples_a_step(KTO) == 4  # two single answers are one example
    assert examples_a_step(KTO | {"sft_ratio": 0.5}) == 6  # 4 instructions, 4 answers
    assert examples_a_step({"stage": "ledpo"}) == 8  # the host's own default
    assert examples_a_step(PAIRS | {"sft_ratio": 0.25, "sft_ratio_by": "tokens"}) == 8
    with pytest.raises(BudgetProblem, match="sft_ratio_by"):
        examples_a_step(KTO | {"sft_ratio": 0.25, "sft_ratio_by": "tokens"})


def test_keys_that_enforce_a_budget():
    assert budget_keys(Budget("examples", 96), PAIRS) == {"max_steps": 12}
    assert budget_keys(Budget("examples", 96), KTO) == {"max_steps": 24}
    assert budget_keys(Budget("steps", 5), KTO) == {"max_steps": 5}
    assert budget_keys(Budget("tokens", 5000), PAIRS) == {"max_steps": 1_000_000_000, "budget_tokens": 5000}
    with pytest.raises(BudgetProblem, match="not a whole number"):
        budget_keys(Budget("examples", 100), PAIRS)


def test_what_was_used_and_whether_it_was_too_much():
    usage = {"steps": 3, "examples": 24, "sft_examples": 6, "policy_tokens": 900, "reference_tokens": 300, "flops": 5e9}
    assert used(Budget("examples", 30), usage, PAIRS) == 30
    assert used(Budget("examples", 18), usage, KTO) == 18
    assert used(Budget("tokens", 1), usage, PAIRS) == 1200
    assert overrun(Budget("examples", 30), usage, PAIRS) is None
    assert "only 30" in overrun(Budget("examples", 32), usage, PAIRS)
    assert "30 examples were used" in overrun(Budget("examples", 22), usage, PAIRS)
    log = [
        {"step": 2, "policy_tokens": 700, "reference_tokens": 250, "flops": 4e9},
        {"step": 3, "policy_tokens": 900, "reference_tokens": 300, "flops": 5e9},
    ]
    assert overrun(Budget("tokens", 1000), usage, PAIRS, log) is None
    assert "before the last step" in overrun(Budget("tokens", 950), usage, PAIRS, log)
    assert overrun(Budget("flops", 4.5e9), usage, PAIRS, log) is None
    assert "before the last step" in overrun(Budget("flops", 3e9), usage, PAIRS, log)


def test_the_share_of_every_step_is_judged_from_the_log():
    recipe = {"sft_ratio": 0.25}
    assert share_missed(recipe, [{"step": 1, "sft_share": 0.25}, {"step": 2, "sft_share": 0.25}]) is None
    assert "0.5 at step 2" in share_missed(recipe, [{"step": 1, "sft_share": 0.25}, {"step": 2, "sft_share": 0.5}])
    assert "None at step 1" in share_missed(recipe, [{"step": 1}])
    assert "no step was logged" in share_missed(recipe, [])
    assert share_missed({}, [{"step": 1}]) is None
    assert share_missed(recipe | {"sft_ratio_by": "tokens"}, [{"step": 1, "sft_share": 0.3}]) is None


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ({"heldout/accuracy": 0}, "a margin is the largest difference that does not matter"),
        ({"heldout/accuracy": -0.1}, "a number of 0 or more is expected here"),
        ({"heldout/nonsense": 0.1}, "Unknown metric that is compared (primary or secondary)"),
        ({"heldout/chosen_shift": 0.1}, "Unknown metric that is compared"),
        (0.03, "a mapping of keys to values is expected here"),
    ],
)
def test_margins_of_equivalence_are_checked(tiny, tmp_path, keys, margins, said):
    found = problems(tiny, tmp_path, keys, evaluation={**EVAL, "equivalence": margins})
    assert len(found) == 1
    assert said in found[0]
    assert "evaluation.equivalence" in found[0]


def test_margins_of_metrics_that_are_compared_are_taken(tiny, tmp_path, keys):
    margins = {"heldout/accuracy": 0.03, "instructions/nll": 0.01}
    assert problems(tiny, tmp_path, keys, evaluation={**EVAL, "equivalence": margins}) == []


@pytest.mark.parametrize("prediction", [3, ["a"], "  "])
def test_a_prediction_is_a_text(tiny, tmp_path, keys, prediction):
    (found,) = problems(tiny, tmp_path, keys, prediction=prediction)
    assert "profiles.cpu.prediction" in found
    assert "written before any run" in found


def test_a_prediction_is_fixed_once_there_are_results(tiny, tmp_path, keys):
    def experiment(**changes):
        return read_experiment(write_experiment(tmp_path / "tiny", tiny, **changes), "cpu", host_keys=keys)

    open_results(experiment(prediction="DPO wins."), tmp_path / "results")
    open_results(experiment(prediction="DPO wins."), tmp_path / "results")
    with pytest.raises(ResultsError, match=r"prediction: 'DPO wins\.' there, 'ORPO wins\.' here"):
        open_results(experiment(prediction="ORPO wins."), tmp_path / "results")
