"""The parts of the web UI's form that need no browser."""

import inspect
import json
import subprocess
import sys
import warnings
from dataclasses import field, make_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ledpo_plugin import hparams
from ledpo_plugin.facts import BETAS
from ledpo_plugin.host import arguments, contract
from ledpo_plugin.hparams import LedpoArguments, argument_fields
from ledpo_plugin.recipes.check import check_recipe
from ledpo_plugin.stages import STAGES
from ledpo_plugin.training import live_log
from ledpo_plugin.webui import curves, datasets, keys, plain, saved, words
from ledpo_plugin.webui.keys import acting, entered, form_keys

DEFAULTS = {name: key.default for name, key in form_keys().items()}


# --- Keys ------------------------------------------------------------------------------------------------------------


def test_every_plugin_key_is_in_the_form_once_and_in_a_section():
    assert set(argument_fields()) <= set(form_keys())
    assert {key.section for key in form_keys().values()} <= set(keys.SECTIONS)
    assert [name for name in argument_fields() if form_keys()[name].section == "other"] == []


def test_a_new_argument_appears_by_itself(monkeypatch):
    own = field(default=0.5, metadata={"help": "A new one.", "low": 0.0, "high": 1.0, "modes": ("head",)})
    wider = make_dataclass("Wider", [("beta_new", float, own)], bases=(LedpoArguments,))
    monkeypatch.setattr(hparams, "LedpoArguments", wider)
    monkeypatch.setattr(keys, "LedpoArguments", wider)
    form_keys.cache_clear()
    try:
        found = form_keys()["beta_new"]
        assert (found.widget, found.section, found.limits, found.step) == ("slider", "beta", "≥ 0, ≤ 1", 0.01)
        assert "beta_new" in acting("ledpo", {})
        assert "beta_new" not in acting("ledpo", {"beta_mode": "fixed"})
        assert entered("ledpo", {"beta_new": 0.25})["beta_new"] == 0.25
        assert words.label("beta_new", "ja") == "beta_new"
        assert words.info(found, "zh") == "`beta_new`: A new one. (≥ 0, ≤ 1)"
    finally:
        form_keys.cache_clear()


def test_a_form_left_as_it_is_makes_a_recipe_without_problems():
    """At every stage, with every loss and beta mode it admits: nothing is sent that has no effect."""
    host_keys, tried = arguments.recipe_keys(), 0
    start = {"do_train": True, "model_name_or_path": "some/model", "dataset": "pairs", "template": "chatml"}
    for name, stage in STAGES.items():
        losses = keys.pairwise_losses() if stage.any_loss else (stage.default_loss,)
        for loss in losses:
            for mode in ("", *BETAS):
                values = {**DEFAULTS, "pref_loss": loss, "beta_mode": mode}
                if stage.rollouts:
                    values |= {"reward_model": "some/model", "rollout_pairs": True}
                recipe = {**start, "stage": name, **entered(name, values)}
                found = check_recipe(recipe, host_keys, {}, with_files=False)
                # A mode that the loss does not admit, and losses without a reference where one is needed, are refused.
                assert {problem.key for problem in found} <= {"beta_mode", "pref_loss"}, (recipe, found)
                tried += not found
    assert tried > 60


@pytest.mark.parametrize(
    ("stage", "values", "shown", "hidden"),
    [
        ("ledpo", {}, "beta_mode beta_head_widths sft_ratio disable_shared_prompt ref_model", "kl_coef reward_model"),
        ("ledpo", {"beta_mode": "fixed"}, "pref_beta", "beta_min beta_penalty beta_head_path"),
        ("ledpo", {"beta_mode": "mallows"}, "mallows_phi", "beta_dpo_alpha beta_head_widths"),
        ("ledpo", {"pref_loss": "simpo"}, "simpo_gamma", "ref_model pref_bco_weight cpo_alpha"),
        ("ledpo", {"pref_loss": "cpo"}, "cpo_alpha", "simpo_gamma ref_model"),
        ("ledpo_ipo", {}, "pref_beta beta_mode", "pref_loss dpo_label_smoothing"),
        ("ledpo_kto", {}, "kto_chosen_weight", "ld_alpha disable_shared_prompt pref_loss"),
        ("ledpo_ppo", {}, "reward_model kl_coef gae_lambda", "sft_ratio disable_shared_prompt ppo_target"),
        ("ledpo_ppo", {"advantage_estimator": "grpo", "kl_control": "adaptive"}, "ppo_target", "gae_lambda"),
        ("ledpo_alternate", {}, "alternate_schedule prompt_dataset pref_loss", "sft_ratio"),
    ],
)
def test_only_what_applies_is_shown(stage, values, shown, hidden):
    acts = set(acting(stage, values))
    assert set(shown.split()) <= acts
    assert not set(hidden.split()) & acts


def test_nothing_acts_at_a_stock_stage():
    for stage in ("dpo", "sft", "ppo", None):
        assert acting(stage, DEFAULTS) == ()
        assert entered(stage, DEFAULTS) == {}


def test_what_is_empty_is_left_out_and_what_is_hidden_is_not_sent():
    values = DEFAULTS | {"pref_beta": None, "beta_mode": "fixed", "beta_min": 0.5, "ref_model": "  ", "pref_ftx": 0}
    assert entered("ledpo", values) == {"pref_loss": "sigmoid", "beta_mode": "fixed", "pref_ftx": 0}
    mixed = DEFAULTS | {"sft_dataset": ["a", "b"], "sft_ratio": 0.25}
    sent = entered("ledpo", mixed)
    assert (sent["sft_dataset"], sent["sft_ratio"], sent["sft_ratio_by"]) == ("a,b", 0.25, "examples")


# --- Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", words.LANGUAGES)
def test_every_key_is_shown_in_every_language_and_what_is_untranslated_is_listed(lang):
    """A key without words of its own is shown in English; that is listed as a warning, and fails nothing."""
    told = words._words()[lang]["keys"]
    for name, key in form_keys().items():
        assert words.label(name, lang)
        assert f"`{name}`: " in words.info(key, lang)
    missing = untranslated(lang)
    if missing:
        warnings.warn(f"words/{lang}.json: not translated: {', '.join(missing)}", stacklevel=1)
    assert [name for name in told if name not in form_keys()] == [], f"words/{lang}.json: no such key"


def untranslated(lang):
    """The keys that a language has no label or help for; English help is the key's own."""
    told = words._words()[lang]["keys"]
    needed = ("label",) if lang == "en" else ("label", "info")
    return [name for name in form_keys() if not all(told.get(name, {}).get(part) for part in needed)]


def test_what_is_untranslated_is_found(monkeypatch):
    before = {lang: untranslated(lang) for lang in words.LANGUAGES}
    monkeypatch.delitem(words._words()["ja"]["keys"]["beta_min"], "info")
    monkeypatch.delitem(words._words()["en"]["keys"], "beta_max")
    found = {lang: set(untranslated(lang)) - set(before[lang]) for lang in words.LANGUAGES}
    assert found == {"en": {"beta_max"}, "ja": {"beta_min"}, "ru": set(), "zh": set(), "ko": set()}
    assert words.label("beta_max", "en") == "beta_max"
    with pytest.warns(UserWarning, match=r"words/ja.json: not translated: .*beta_min"):
        test_every_key_is_shown_in_every_language_and_what_is_untranslated_is_listed("ja")


def test_texts_and_sections_are_there_in_every_language():
    english = words._words()["en"]
    for lang in words.LANGUAGES:
        told = words._words()[lang]
        assert (set(told["texts"]), set(told["sections"])) == (set(english["texts"]), set(keys.SECTIONS))
        assert told["texts"]["rate"].count("{}") == 1
    for name, said in words.locales().items():
        assert set(said) == set(words.LANGUAGES), name
        assert name.startswith(words.PREFIX)


def test_no_element_of_ours_takes_a_stock_name():
    from llamafactory.webui.locales import LOCALES

    stock = [name for name in words.locales() if name in LOCALES and LOCALES[name] != words.locales()[name]]
    assert stock == []


# --- Text that stays text --------------------------------------------------------------------------------------------


def test_problems_stay_text():
    hostile = "The recipe has 1 problem.\n1. dataset: '<img src=x onerror=hit=1>' -> **no** [a](http://b) `c` $$x$$ <b>"
    shown = plain.as_markdown(hostile)
    for sign in "<>*[`$_":
        assert sign not in shown
    assert shown.startswith("The recipe has 1 problem.\n\n1. dataset&#58; '&#60;img")
    assert "http://b" not in shown


@pytest.mark.parametrize("inside", ["plain", "```\n<img>", "a ````` b"])
def test_a_fence_is_longer_than_what_it_holds(inside):
    done = plain.fenced(f"```bash\n{inside}\n```")
    fence = done.partition("bash")[0]
    assert done == f"{fence}bash\n{inside}\n{fence}"
    assert fence not in inside
    assert plain.fenced("no code") == "no code"


# --- Data sets -------------------------------------------------------------------------------------------------------


def test_data_sets_by_what_a_stage_needs(tiny):
    found = {name: datasets.choices_for(str(tiny.data), stage) for name, stage in STAGES.items()}
    assert found["ledpo"] == found["ledpo_alternate"] == ["pairs", "heldout"]
    assert found["ledpo_kto"] == ["labelled"]
    assert found["ledpo_ppo"] == ["pairs", "heldout", "labelled", "instructions"]
    assert datasets.choices_of(str(tiny.data), "instructions") == ["instructions"]
    assert datasets.choices_of(str(tiny.data / "none"), "pairs") == []


# --- Saved configurations --------------------------------------------------------------------------------------------


def _save(path, values):
    Path(path).write_text(yaml.safe_dump(values))


def _load(path):
    return yaml.safe_load(Path(path).read_text()) if Path(path).exists() else None


@pytest.fixture
def with_stages(monkeypatch):
    stages = contract.webui_api().TRAINING_STAGES
    monkeypatch.setitem(stages, "LEDPO", "ledpo")


def test_a_saved_configuration_has_nothing_that_the_stock_ui_does_not_know(tmp_path, with_stages):
    path = str(tmp_path / "c.yaml")
    values = {"top.template": "chatml", "train.training_stage": "LEDPO", "train.ledpo_beta_min": 0.5}
    values |= {"train.ledpo_sft_dataset": ["a\u2028b", "# ledpo-plugin: {}"], "train.ledpo_pref_beta": None}
    saved.write(_save, path, values)
    assert _load(path) == {"top.template": "chatml", "train.training_stage": "LEDPO"}
    assert saved.read(_load, path) == values
    saved.write(_save, path, values | {"train.training_stage": "DPO"})
    assert Path(path).read_text() == yaml.safe_dump({"top.template": "chatml", "train.training_stage": "DPO"})


def test_an_edited_or_foreign_comment_does_no_harm(tmp_path, with_stages):
    path = tmp_path / "c.yaml"
    for comment in ("{", "[1]", json.dumps({"train.ledpo_gone": 1, "top.template": "evil"})):
        path.write_text(f"top.template: chatml\n{saved.MARK}{comment}\n")
        assert saved.read(_load, str(path)) == {"top.template": "chatml"}
    assert saved.read(_load, str(tmp_path / "none.yaml")) is None


# --- Curves ----------------------------------------------------------------------------------------------------------

ROWS = [
    {"step": 1, "beta/mean": 0.1, "beta/q10": 0.09, "beta/q90": 0.11, "rewards/accuracies": 0.5, "loss": 0.7},
    {"step": 2, "eval_rewards/accuracies": 0.6, "eval_other_rewards/accuracies": 0.4, "eval_beta/mean": 0.2},
    {"step": 3, "beta/mean": 0.2, "beta/q10": 0.1, "beta/q90": 0.3, "beta/mean_positive_margin": 0.25,
     "beta/mean_negative_margin": 0.15, "rewards/accuracies": 0.75},
]  # fmt: skip


def _lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def test_curves_are_what_was_logged():
    beta, accuracy = curves.draw(ROWS).axes
    assert _lines(beta) == {
        "mean": ([1, 3], [0.1, 0.2]),
        "mean where margin > 0": ([3], [0.25]),
        "mean where margin < 0": ([3], [0.15]),
    }
    (edge,) = beta.collections
    assert edge.get_label() == "10 % to 90 %"
    corners = sorted({tuple(point) for point in edge.get_paths()[0].vertices})
    assert corners == [
        (1, 0.09),
        (1, 0.11),
        (3, 0.1),
        (3, 0.3),
    ]
    drawn = _lines(accuracy)
    assert drawn["training batches"] == ([1, 3], [0.5, 0.75])
    assert (drawn["held out"], drawn["held out, other"]) == (([2], [0.6]), ([2], [0.4]))


def test_rollouts_have_reward_and_kl_and_a_band_of_the_standard_deviation():
    rows = [{"step": s, "beta/mean": 0.1, "beta/std": 0.02, "rewards/mean": 1.0, "kl/sequence": 0.3} for s in (1, 2)]
    beta, reward, kl = curves.draw(rows).axes
    assert beta.collections[0].get_label() == "mean ± standard deviation"
    assert _lines(reward) == {"rollouts": ([1, 2], [1.0, 1.0])}
    assert _lines(kl) == {"rollouts": ([1, 2], [0.3, 0.3])}
    assert curves.draw([{"step": 1, "loss": 1.0}]) is None


def test_a_figure_is_drawn_once_for_what_is_there(tmp_path):
    path = tmp_path / live_log.NAME
    watched = curves.Curves(path)
    assert watched.figure_if_new() is None
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert watched.figure_if_new() is not None
    assert watched.figure_if_new() is None
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[2]) + '\n{"half')
    assert len(watched.figure_if_new().axes) == 2


def test_the_live_log_goes_on_where_training_goes_on(tmp_path):
    log = live_log.LiveLog()
    args = SimpleNamespace(output_dir=str(tmp_path / "run"))

    def state(step):
        return SimpleNamespace(global_step=step, is_world_process_zero=True)

    path = live_log.log_path(args.output_dir)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4)), (0, (1,))):  # from scratch; from step 2; from scratch again
        log.on_train_begin(args, state(start), None)
        for step in steps:
            log.on_log(args, state(step), None, logs={"loss": 1.0 / step, "x": float("nan"), "note": "text"})
        rows = live_log.read_live_log(path)
        expected = {0: steps, 2: (1, 2, *steps)}[start]
        assert rows == [{"loss": 1.0 / step, "step": step} for step in expected]
    log.on_log(args, SimpleNamespace(global_step=9, is_world_process_zero=False), None, logs={"loss": 1.0})
    assert len(live_log.read_live_log(path)) == 1, "only one process of several writes"
    assert live_log.read_live_log(tmp_path / "none") == []


# --- The host --------------------------------------------------------------------------------------------------------


def test_the_installed_web_ui_is_as_expected():
    assert contract.webui_mismatches() == []


def test_another_web_ui_stays_as_it_is_and_says_so(monkeypatch, capsys):
    from ledpo_plugin.webui.hook import install

    ui = contract.webui_api().interface
    before = ui.create_train_tab
    monkeypatch.setattr(ui, "create_train_tab", inspect.unwrap(before))
    wrong = (*contract.WEBUI_SIGNATURES, (contract.WEBUI_RUNNER, "Runner.gone", ("self",)))
    monkeypatch.setattr(contract, "WEBUI_SIGNATURES", wrong)
    install()
    assert not hasattr(ui.create_train_tab, "ledpo_original")
    said = capsys.readouterr().err
    assert "Runner.gone is missing" in said
    assert "stock web UI is shown" in said


def test_the_ui_is_built_without_what_only_its_buttons_need(tmp_path):
    """What makes its start slow; `benchmarks/webui_startup.py` measures that."""
    script = (
        "import gc, sys\n"
        "from llamafactory.webui.interface import create_ui\n"
        "create_ui()\n"
        "print(gc.get_freeze_count(), *(name for name in sys.modules if name.startswith('ledpo_plugin.')))"
    )
    command = [sys.executable, "-c", script]
    # LlamaBoard writes files of its own where it is started.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300)
    frozen, *modules = done.stdout.splitlines()[-1].split()
    assert int(frozen) > 100_000
    assert {"ledpo_plugin.webui.form", "ledpo_plugin.webui.experiments"} <= set(modules)
    later = ("recipes.check", "rewards", "experiments", "training.trainer", "webui.experiments_pages")
    assert [name for name in modules if name.removeprefix("ledpo_plugin.").startswith(later)] == []
