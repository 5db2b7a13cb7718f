"""The recipes in `yaml_recipes/`: their index, and that each says what its experiment says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ledpo_plugin.cli.tables import refresh
from ledpo_plugin.experiments.definition.budget import UNENDING
from ledpo_plugin.experiments.report.formatting import flops
from ledpo_plugin.host import arguments
from ledpo_plugin.recipes.check import check_recipe

ROOT = Path(__file__).parents[2]
TREE = ROOT / "yaml_recipes"
FOLDERS = sorted(path.parent for path in TREE.glob("*/experiment.yaml"))
FREE = {"output_dir"}
ISSUE = {  # what the plan asks for
    "data_mixture_impact": {"general", "sft_25", "sft_50", "sft_75", "code", "medical", "domains_even"},
    "loss_variants_impact": {"dpo", "ledpo", "orpo", "simpo", "kto"},
    "sample_size_impact": {"pairs_500", "pairs_1000", "pairs_2000"},
    "fixed_beta_impact": {"beta_0_1", "beta_0_5", "beta_0_73"},
    "activation_fn_impact": {"fixed"}
    | {f"{name}_{scale}" for name in ("sigmoid", "softplus", "relu", "exp_tanh") for scale in (1, 10)},
    "model_impact": {"small_fixed", "small_head", "instruct_fixed", "instruct_head"},
    "evaluation_methods_impact": {"dpo", "ledpo", "orpo", "spoilt"},
    "inference_optimization_impact": {"dpo", "ledpo"},
    "adaptive_beta_impact": {"fixed", "global", "head", "ppl", "beta_dpo", "epsilon_dpo", "mallows"},
    "ledpo_rlhf_combination": {"ledpo", "ppo", "sequential", "alternating"},
}


def _read(path: Path) -> dict[str, Any]:
    """Return a file as LLaMA-Factory reads recipes."""
    return OmegaConf.to_container(OmegaConf.load(path))


def _variants(definition: dict[str, Any], profile: str) -> list[str]:
    return definition["profiles"][profile].get("variants") or list(definition["variants"])


def _phases(definition: dict[str, Any], variant: str) -> dict[str, float]:
    """Return the names of a variant's recipes, without the ending, with their shares of the budget."""
    phases = (definition["variants"][variant] or {}).get("phases")
    return {f"{variant}.{phase}": share for phase, share in phases.items()} if phases else {variant: 1}


def _of_variants(definition: dict[str, Any], profile: str) -> dict[str, float]:
    """Return the names of all recipes of a profile's variants, with their shares of the budget."""
    return {
        stem: share
        for variant in _variants(definition, profile)
        for stem, share in _phases(definition, variant).items()
    }


EXPERIMENTS = {folder.name: _read(folder / "experiment.yaml") for folder in FOLDERS}
RECIPES = {
    (name, profile, stem): TREE / name / profile / f"{stem}.yaml"
    for name, definition in EXPERIMENTS.items()
    for profile in definition["profiles"]
    for stem in _of_variants(definition, profile)
}
PREREQUISITES = {
    (name, profile, stem): TREE / name / profile / f"{stem}.yaml"
    for name, definition in EXPERIMENTS.items()
    for profile in definition["profiles"]
    for stem in definition.get("prerequisites") or ()
}
each_recipe = pytest.mark.parametrize(("name", "profile", "variant"), RECIPES, ids=["-".join(key) for key in RECIPES])
each_prerequisite = pytest.mark.parametrize(
    ("name", "profile", "variant"), PREREQUISITES, ids=["-".join(key) for key in PREREQUISITES]
)
each_experiment = pytest.mark.parametrize("name", EXPERIMENTS)


@pytest.fixture(scope="module")
def host_keys() -> dict[str, Any]:
    return arguments.recipe_keys()


def _index_line(name: str, definition: dict[str, Any]) -> str:
    sizes = []
    for profile, own in definition["profiles"].items():
        ((unit, amount),) = own["budget"].items()
        size = f"{len(_variants(definition, profile))} x {len(own['seeds'])}"
        shown = flops(amount).replace("\u00a0", " ") if unit == "flops" else f"{amount} {unit}"
        sizes.append(f"{profile}: {size}, {shown}")
    question = " ".join(definition["question"].split())
    return f"| [{name}]({name}/experiment.yaml) | {question} | {'; '.join(sizes)} | {definition['status']} |"


def test_the_index_is_what_the_experiments_say():
    text = (TREE / "README.md").read_text(encoding="utf-8")
    table = text.split("<!-- table: experiments -->\n")[1].split("<!-- /table -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    wanted = {_index_line(name, definition) for name, definition in EXPERIMENTS.items()}
    assert wanted - set(rows) == set()
    assert set(rows) - wanted == set()
    assert len(rows) == len(wanted)
    assert refresh(text) == text, "run `make tables`"


def test_the_experiments_are_those_of_the_plan():
    assert set(ISSUE) <= set(EXPERIMENTS)
    for name, variants in ISSUE.items():
        for profile in ("cpu", "gpu"):
            assert variants <= set(_variants(EXPERIMENTS[name], profile))
            assert len(EXPERIMENTS[name]["profiles"][profile]["seeds"]) >= 3


@each_experiment
def test_a_question_and_no_recipe_too_many(name):
    definition = EXPERIMENTS[name]
    assert definition["name"] == name
    assert definition["question"].strip().endswith("?")
    there = {path for path in (TREE / name).glob("*/*.yaml") if path.parent.name != "judges"}
    assert there == {path for key, path in (RECIPES | PREREQUISITES).items() if key[0] == name}


@each_experiment
def test_variants_differ_in_what_they_declare(name):
    """In each profile at most in those keys, and over the profiles in every one of them."""
    definition = EXPERIMENTS[name]
    seen: dict[str, set[str]] = {variant: set() for variant in definition["variants"]}
    for profile in definition["profiles"]:
        for variant in _variants(definition, profile):
            entry = definition["variants"][variant] or {}
            for stem in _phases(definition, variant):
                like = stem.rpartition(".")[2]  # a phase with the name of a variant is like that one
                named = like != variant and like in definition["variants"]
                other = like if named else entry.get("compares_to", definition["baseline"])
                one, base = _read(RECIPES[name, profile, stem]), _read(RECIPES[name, profile, other])
                differing = {key for key in {*one, *base} - FREE if one.get(key) != base.get(key)}
                assert differing <= set(entry.get("changes", [])), f"{profile}/{stem}"
                assert differing or variant == definition["baseline"], f"{profile}/{stem} is {other}"
                seen[variant] |= differing
    assert seen == {variant: set((entry or {}).get("changes", [])) for variant, entry in definition["variants"].items()}


@each_recipe
def test_recipe_is_good(name, profile, variant, host_keys):
    recipe = _read(RECIPES[name, profile, variant])
    own = EXPERIMENTS[name]["profiles"][profile]
    gpus = own["resources"]["gpus"]
    environ = {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(gpus)} if gpus > 1 else {}
    assert check_recipe(recipe, host_keys, environ, with_files=False) == []
    assert recipe["output_dir"] == f"runs/{name}/{variant}"
    assert recipe["seed"] in own["seeds"]
    assert not any(str(value).startswith(("/", "~")) for value in recipe.values())


@each_prerequisite
def test_what_is_trained_first_is_a_reward_model(name, profile, variant, host_keys):
    recipe, definition = _read(PREREQUISITES[name, profile, variant]), EXPERIMENTS[name]
    assert recipe["stage"] == "rm"
    assert set(recipe) <= set(host_keys)
    assert recipe["output_dir"] == f"runs/{name}/{variant}"
    runs = [_read(RECIPES[key]) for key in RECIPES if key[:2] == (name, profile)]
    for key in ("model_name_or_path", "template", "default_system", "lora_rank", "lora_target", "cutoff_len"):
        assert {run.get(key) for run in runs} == {recipe.get(key)}, key
    used = [run for run in runs if run.get("reward_model") == recipe["output_dir"]]
    answers = definition["profiles"][profile]["evaluation"]["answers"]
    assert (variant == answers["reward"]) == bool(used)
    assert used or variant == answers["judge"]
    if variant == answers["judge"]:
        assert not set(recipe["dataset"].split(",")) & {data for run in runs for data in run["dataset"].split(",")}


def test_strategies_share_what_they_are_compared_in():
    """Rollouts of all of them are the same, the budget's halves add up, and both halves know each other's output."""
    for profile in ("cpu", "gpu"):
        recipes = {
            key[2]: _read(path) for key, path in RECIPES.items() if key[:2] == ("ledpo_rlhf_combination", profile)
        }
        rolled = [recipe for recipe in recipes.values() if recipe["stage"] != "ledpo"]
        for key in ("max_new_tokens", "ppo_epochs", "ppo_buffer_size", "kl_coef", "reward_model", "rollout_backend"):
            assert len({recipe.get(key) for recipe in rolled}) == 1, key
        for key in ("dataset", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"):
            assert len({recipe.get(key) for recipe in recipes.values()}) == 1, key
        first, second = recipes["sequential.ledpo"], recipes["sequential.ppo"]
        assert second["adapter_name_or_path"] == second["beta_head_path"] == first["output_dir"]
        pairs, steps = map(int, recipes["alternating"]["alternate_schedule"].split(":"))
        assert pairs == steps
        assert steps % (second["ppo_epochs"] * second["ppo_buffer_size"]) == 0


@each_recipe
def test_max_steps_is_the_budget(name, profile, variant):
    recipe, own = _read(RECIPES[name, profile, variant]), EXPERIMENTS[name]["profiles"][profile]
    if "flops" in own["budget"]:
        share = _of_variants(EXPERIMENTS[name], profile)[variant]
        assert recipe["budget_flops"] == own["budget"]["flops"] * share
        assert recipe["max_steps"] == UNENDING
        assert set(own["checkpoint_steps"]) == set(_of_variants(EXPERIMENTS[name], profile))
        return
    rows = recipe["per_device_train_batch_size"] * recipe.get("gradient_accumulation_steps", 1)
    rows *= max(1, own["resources"]["gpus"])
    answers = 2 if recipe["stage"] == "ledpo_kto" else 1
    assert recipe["max_steps"] * rows == own["budget"]["examples"] * answers
    assert recipe["max_steps"] % own["checkpoints"] == 0
    assert recipe["warmup_steps"] <= recipe["max_steps"] / 4


def test_domains_are_mixed_as_the_host_takes_it():
    """Its `DataArguments` wants a probability for every training set, and as many names of sets for evaluation."""
    mixed = {key: _read(path) for key, path in RECIPES.items() if "interleave_probs" in _read(path)}
    assert {profile for _, profile, _ in mixed} == {"cpu", "gpu"}
    for key, recipe in mixed.items():
        count = len(recipe["dataset"].split(","))
        probabilities = [float(part) for part in recipe["interleave_probs"].split(",")]
        assert len(probabilities) == len(recipe["eval_dataset"].split(",")) == count > 1, key
        assert sum(probabilities) == pytest.approx(1), key


@each_recipe
def test_header_says_how_the_recipe_is_run(name, profile, variant):
    text = RECIPES[name, profile, variant].read_text(encoding="utf-8")
    assert text.startswith(f"# {name}, {profile}: ")
    assert f"llamafactory-cli train yaml_recipes/{name}/{profile}/{variant}.yaml" in text
    assert f"ledpo run yaml_recipes/{name} --profile {profile}" in text


@each_experiment
def test_gpu_data_sets_are_registered(name):
    known = json.loads((TREE / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    definition = EXPERIMENTS[name]
    files = {key[2]: path for key, path in (RECIPES | PREREQUISITES).items() if key[:2] == (name, "gpu")}
    for variant, path in files.items():
        recipe = _read(path)
        assert recipe["dataset_dir"] == "yaml_recipes/data"
        kinds = {"dataset": recipe["stage"] != "ledpo_kto", "eval_dataset": True, "sft_dataset": False}
        for key, pairs in kinds.items():
            for data in filter(None, recipe.get(key, "").split(",")):
                assert known[data].get("ranking", False) is pairs, f"{variant} {key}"
        assert "deepspeed" not in recipe or (ROOT / recipe["deepspeed"]).is_file()
    evaluation = definition["profiles"].get("gpu", {}).get("evaluation", {})  # an experiment may have none
    assert all(known[data].get("ranking") for data in evaluation.get("pairs", ()))
    assert not any(known[data].get("ranking") for data in evaluation.get("instructions", ()))


def test_nothing_is_trained_on_that_is_held_out():
    for name, definition in EXPERIMENTS.items():
        for profile, own in definition["profiles"].items():
            held_out = {*own["evaluation"]["pairs"], *own["evaluation"]["instructions"]}
            held_out |= {own["evaluation"]["answers"]["prompts"]} if "answers" in own["evaluation"] else set()
            files = {key[2]: path for key, path in (RECIPES | PREREQUISITES).items() if key[:2] == (name, profile)}
            for variant, path in files.items():
                recipe = _read(path)
                trained = {*recipe["dataset"].split(","), *recipe.get("sft_dataset", "").split(",")}
                assert not trained & held_out, f"{name}/{profile}/{variant}"


def test_losses_keep_the_recommended_values():
    """Up to one factor of the learning rate, common to all variants of a profile."""
    from ledpo_plugin.recipes.reading import loss_of, mode_of, recommended, stage_of

    for profile in ("cpu", "gpu"):
        factors = set()
        for variant in _variants(EXPERIMENTS["loss_variants_impact"], profile):
            recipe = _read(RECIPES["loss_variants_impact", profile, variant])
            loss = loss_of(recipe, stage_of(recipe))
            values = recommended(recipe, loss, mode_of(recipe, stage_of(recipe), loss))
            factors.add(round(recipe["learning_rate"] / values.pop("learning_rate"), 6))
            if profile == "gpu" and loss.name == "sigmoid":
                values["pref_beta"] = 0.01  # the best on UltraFeedback
            given = {key: recipe[key] for key in values if key in recipe}
            assert given == {key: values[key] for key in given}, variant
            assert "pref_beta" in given
        assert len(factors) == 1, factors


def test_the_shares_of_instructions_are_those_of_the_plan():
    for profile in ("cpu", "gpu"):
        mixture = [key for key in RECIPES if key[:2] == ("data_mixture_impact", profile)]
        shares = {_read(RECIPES[key]).get("sft_ratio", 0) for key in mixture}
        assert shares == {0, 0.25, 0.5, 0.75}


def test_zero_configurations_leave_sizes_to_the_recipe():
    for stage in (2, 3):
        config = json.loads((TREE / "deepspeed" / f"ds_z{stage}.json").read_text(encoding="utf-8"))
        assert config["zero_optimization"]["stage"] == stage
        assert config["bf16"]["enabled"] == config["train_batch_size"] == "auto"


def test_the_fsdp_configuration_is_one_that_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(TREE / "accelerate" / "fsdp.yaml"))
    assert config.distributed_type == "FSDP"
    assert config.num_processes == 8
