"""LEDPO in LlamaBoard: the stock `llamafactory-cli webui`, with and without the plugin, in a real browser."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from webui_pages import Board, running_browser, running_ui

from ledpo_plugin.host import arguments
from ledpo_plugin.recipes.check import RecipeError, check_recipe
from ledpo_plugin.training.live_log import log_path, read_live_log
from ledpo_plugin.webui import words
from ledpo_plugin.webui.keys import form_keys
from ledpo_plugin.webui.saved import MARK

HOSTILE = "<img src=x onerror=window.hit=1>"
STOCK_STAGES = {
    "Supervised Fine-Tuning": "sft", "Reward Modeling": "rm", "PPO": "ppo", "DPO": "dpo", "KTO": "kto",
    "Pre-Training": "pt",
}  # fmt: skip
QUICK = '{"optim": "adamw_torch", "preprocessing_num_workers": 1, "disable_gradient_checkpointing": true}'


def _folder(root: Path, tiny) -> Path:
    """Make a working folder with the tiny data, and a data set and a model whose names are HTML."""
    data = root / "data"
    shutil.copytree(tiny.data, data)
    known = json.loads((data / "dataset_info.json").read_text())
    known[HOSTILE] = {"file_name": "pairs.json", "ranking": True}  # without columns: the check has something to say
    (data / "dataset_info.json").write_text(json.dumps(known))
    (root / HOSTILE).mkdir()
    return root


@pytest.fixture(scope="module")
def uis(tiny, tmp_path_factory):
    """Two UIs, started side by side: with the plugin and without."""
    folders = [_folder(tmp_path_factory.mktemp(name), tiny) for name in ("with", "without")]
    settings = ({}, {"LEDPO_PLUGIN_DISABLE": "1"})
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        starts = [running_ui(folder, **env) for folder, env in zip(folders, settings, strict=True)]
        yield list(threads.map(stack.enter_context, starts))


@pytest.fixture(scope="module")
def browser(uis):
    with running_browser() as launched:
        yield launched


@pytest.fixture
def board(browser, uis):
    """A page of the UI with the plugin; nothing may go wrong in its console."""
    page = Board(browser, uis[0])
    yield page
    assert page.messages == []
    page.page.context.close()


@pytest.fixture
def stock(browser, uis):
    """A page of the UI without the plugin."""
    page = Board(browser, uis[1])
    yield page
    page.page.context.close()


def _ready(board: Board, tiny, output: str, stage: str = "LEDPO") -> None:
    """Fill in what every run needs."""
    board.model(str(tiny.model))
    board.stage(stage)
    board.add(board.field("Dataset"), "pairs")
    board.choose(board.field("Compute type"), "fp32")
    board.open("Extra configurations")
    board.fill(board.field("Extra arguments"), QUICK)
    board.fill(board.field("Output dir"), output)


def _written(ui, output: str) -> dict:
    return yaml.safe_load((ui.folder / "saves/Custom/lora" / output / "training_args.yaml").read_text())


def _command(text: str) -> dict[str, str]:
    """Return the arguments of a previewed command."""
    lines = [line.strip().removesuffix("\\").strip() for line in text.splitlines() if line.strip().startswith("--")]
    return {line[2:].split(" ", 1)[0]: line.split(" ", 1)[1] for line in lines}


def test_a_run_is_filled_in_previewed_started_and_watched_to_its_end(board, tiny, uis, tmp_path):
    _ready(board, tiny, "watched")
    page = board.page
    board.fill(board.field("Val size"), "0.25")
    board.fill(board.field("Epochs"), "4")
    board.fill(board.field("Gradient accumulation"), "1")
    board.fill(board.field("Learning rate"), "")
    board.fill(board.field("Save steps"), "10")
    board.choose(board.key("pref_loss"), "sigmoid_norm")
    board.fill(board.key("pref_beta"), "4")
    board.fill(board.key("beta_penalty"), "0.01")
    board.key("beta_center").check()
    board.choose(board.key("beta_head_activation"), "sigmoid")
    board.fill(board.key("beta_head_widths"), "16")
    page.get_by_text("beta_mode: head").wait_for()  # what is left out is said beside the form
    board.press("Preview command")
    previewed = _command(board.said("llamafactory-cli train"))
    assert previewed["stage"] == "ledpo"
    assert "trust_remote_code" not in previewed  # which stock stages always have
    board.press("Start")
    page.locator("#ledpo_viewer img").wait_for(timeout=240_000)  # curves come while it runs ...
    assert board.progress().is_visible()
    page.locator("#ledpo_viewer").scroll_into_view_if_needed()
    said = board.said("^Finished", timeout=240)
    assert "'loss': " in said
    assert page.locator("img").count() >= 2  # ... beside the loss
    written = _written(uis[0], "watched")
    form = {
        "pref_loss": "sigmoid_norm", "pref_beta": 4, "beta_penalty": 0.01, "beta_center": True,
        "beta_head_activation": "sigmoid", "beta_head_widths": "16", "beta_lr_ratio": 5,
    }  # fmt: skip
    assert {key: written.get(key) for key in form} == form
    assert set(written) & set(form_keys()) == set(form), "keys that the form did not say"
    assert {key: str(value) for key, value in written.items()} == {**previewed, "beta_head_widths": "16"}
    assert (written["stage"], written["dataset"], written["num_train_epochs"]) == ("ledpo", "pairs", 4.0)
    assert "learning_rate" not in written
    output = uis[0].folder / "saves/Custom/lora/watched"
    record = json.loads((output / "ledpo_run.json").read_text())
    assert record["recipe"] == written
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    live = read_live_log(log_path(output))
    for key in ("beta/mean", "beta/q10", "beta/mean_positive_margin", "eval_rewards/accuracies"):
        logged = [(row["step"], row[key]) for row in history if key in row and row[key] == row[key]]
        assert len(logged) >= 3, key
        drawn = [(row["step"], row[key]) for row in live if key in row]
        assert drawn[: len(logged)] == logged, key  # the state is written before the evaluation at the end


@pytest.mark.parametrize(
    "title, stage, schedule", [("LEDPO PPO", "ledpo_ppo", None), ("LEDPO and PPO", "ledpo_alternate", "2:4")]
)
def test_rollouts_are_trained_on_rewards(board, tiny, uis, title, stage, schedule):
    shutil.copy(Path(__file__).parents[1] / "rl_rewards.py", uis[0].folder)
    _ready(board, tiny, stage, title)
    board.fill(board.field("Extra arguments"), json.dumps(json.loads(QUICK) | {"max_steps": 12}))
    board.fill(board.field("Gradient accumulation"), "1")
    board.fill(board.field("Logging steps"), "1")
    board.fill(board.field("Cutoff length"), "480")  # prompt and answer fit the tiny model's 512
    board.choose(board.key("reward_model_type"), "function")
    board.press("Preview command")
    board.said("reward_model: .* maximises rewards, and none is named")
    board.fill(board.key("reward_model"), "rl_rewards:lower_case")
    for key, value in {"max_new_tokens": "6", "ppo_buffer_size": "2", "ppo_epochs": "2", "kl_coef": "0.2"}.items():
        board.fill(board.key(key), value)
    if schedule:
        board.fill(board.key("alternate_schedule"), schedule)
    board.press("Start")
    board.said("^Finished", timeout=240)
    board.page.locator("#ledpo_viewer img").wait_for()
    written = _written(uis[0], stage)
    form = {"stage": stage, "reward_model": "rl_rewards:lower_case", "max_new_tokens": 6, "kl_coef": 0.2}
    assert {key: written.get(key) for key in form} == form
    assert written.get("alternate_schedule") == schedule
    rows = read_live_log(log_path(uis[0].folder / "saves/Custom/lora" / stage))
    rewards = [row["rewards/mean"] for row in rows if "rewards/mean" in row]
    assert len(rewards) >= 2
    assert all(0 <= value <= 1 for value in rewards)


def test_abort_stops_a_run_and_leaves_no_process(board, tiny, uis):
    _ready(board, tiny, "aborted")
    board.fill(board.field("Epochs"), "5000")
    board.press("Start")
    board.page.locator("#ledpo_viewer img").wait_for(timeout=240_000)
    assert len(uis[0].children()) >= 1
    board.reload()  # somebody comes back to a run that goes on: the form, the loss and the curves are there again
    board.page.locator("#ledpo_viewer img").wait_for(timeout=240_000)
    assert board.field("Stage").input_value() == "LEDPO"
    assert board.key("pref_loss").input_value() == "sigmoid"
    board.press("Abort")
    board.said("Aborted, wait|Finished", timeout=240)
    assert uis[0].children_after(120) == []
    history = json.loads((uis[0].folder / "saves/Custom/lora/aborted/trainer_state.json").read_text())
    assert 0 < history["global_step"] < history["max_steps"]


def test_wrong_values_are_told_as_in_recipes_and_nothing_starts(board, tiny, uis):
    _ready(board, tiny, "wrong")
    board.fill(board.key("pref_beta"), "-3")
    board.fill(board.key("sft_ratio"), "0.5")
    board.fill(board.field("Learning rate"), "fast")
    board.press("Preview command")
    board.said("The recipe has 3 problems")
    board.press("Start")
    said = board.said("The recipe has 3 problems")
    args = {
        "pref_beta": -3, "sft_ratio": 0.5, "sft_ratio_by": "examples", "learning_rate": "fast", "stage": "ledpo",
        "dataset": "pairs", "dataset_dir": str(tiny.data), "model_name_or_path": str(tiny.model), "do_train": True,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8,
    }  # fmt: skip
    for problem in check_recipe(args, arguments.recipe_keys(), os.environ):
        assert str(problem) in said
    assert RecipeError.__name__ not in said
    assert uis[0].children() == []
    assert not (uis[0].folder / "saves/Custom/lora/wrong").exists()


def test_names_with_html_stay_text(board, tiny, uis):
    _ready(board, tiny, "named")
    board.add(board.field("Dataset"), HOSTILE)
    board.press("Preview command")
    assert f"dataset: '{HOSTILE}' -> its entry does not say which columns" in board.said("problem")
    board.press("Start")
    board.said("problem")
    board.fill(board.field("Model path"), HOSTILE)
    board.press("Preview command")
    assert f"model_name_or_path: '{HOSTILE}' -> the folder holds no config.json" in board.said("2 problems")
    board.reload()
    _ready(board, tiny, "named")
    board.fill(board.key("ref_model"), f"org/{HOSTILE}``` <b>")
    board.press("Preview command")
    assert f"--ref_model org/{HOSTILE}``` <b>" in board.said("llamafactory-cli train")
    assert board.page.evaluate("typeof window.hit") == "undefined"
    assert uis[0].children() == []


@pytest.mark.parametrize("lang", words.LANGUAGES)
def test_every_language_renders(board, lang):
    board.choose(board.field("Language"), lang)
    title = words.text("accordion", lang)
    board.choose(board.page.get_by_label(_stage_label(lang), exact=True).first, "LEDPO")
    board.page.locator("#ledpo_accordion").get_by_text(title, exact=True).wait_for()
    for name in ("beta_mode", "beta_head_widths", "sft_ratio", "disable_fused_lora"):
        shown = board.page.locator(f"#ledpo_{name}").inner_text()
        assert words.label(name, lang) in shown
        assert words.info(form_keys()[name], lang).replace("`", "")[:40] in shown
    filled = board.page.locator("#ledpo_note")
    filled.get_by_text(words.text("filled", lang)).wait_for()
    board.choose(board.page.locator("#ledpo_pref_loss input"), "cpo")
    board.page.locator("#ledpo_cpo_alpha").get_by_text(words.label("cpo_alpha", lang), exact=True).wait_for()
    board.choose(board.page.get_by_label(_lang_label(lang), exact=True).first, "en")
    board.field("Stage").wait_for()


def _stage_label(lang: str) -> str:
    from llamafactory.webui.locales import LOCALES

    return LOCALES["training_stage"][lang]["label"]


def _lang_label(lang: str) -> str:
    from llamafactory.webui.locales import LOCALES

    return LOCALES["lang"][lang]["label"]


def _stock_commands(board: Board, tiny) -> dict[str, str]:
    """Preview every stock stage and the evaluation after the same clicks; return what the page says."""
    said = {}
    board.model(str(tiny.model))
    board.fill(board.field("Output dir"), "same")
    for title, stage in STOCK_STAGES.items():
        board.stage(title)
        kind = {"DPO": "pairs", "Reward Modeling": "pairs", "KTO": "labelled"}.get(title, "instructions")
        board.add(board.field("Dataset"), kind)
        if title == "DPO":
            board.open("RLHF configurations")
            board.fill(board.field("Beta value"), "0.3")
            board.choose(board.field("Loss type"), "simpo")
        board.press("Preview command")
        said[title] = board.said("select a reward model" if stage == "ppo" else f"--stage {stage} ")
    board.stage("DPO")
    board.add(board.field("Dataset"), "pairs")
    board.fill(board.field("Config path"), "stock.yaml")
    board.press("Save arguments")
    board.said("stock.yaml")
    said["saved"] = (board.ui.folder / "llamaboard_config/stock.yaml").read_text()
    board.page.get_by_role("tab", name="Evaluate & Predict").click()
    board.add(board.field("Dataset"), "instructions")
    board.fill(board.field("Output dir"), "same_eval")
    board.press("Preview command")
    said["evaluate"] = board.said("--eval_dataset")
    return said


def test_stock_stages_and_tabs_are_the_same_with_and_without_the_plugin(board, stock, tiny):
    with_plugin, without = _stock_commands(board, tiny), _stock_commands(stock, tiny)
    assert with_plugin == without
    assert "--pref_loss simpo" in without["DPO"]
    assert "--pref_beta 0.3" in without["DPO"]
    assert "ledpo" not in json.dumps(with_plugin)
    assert "--trust_remote_code True" in without["DPO"]
    tabs = board.page.get_by_role("tab").all_inner_texts()
    assert [tab for tab in tabs if tab in stock.page.get_by_role("tab").all_inner_texts()] == [
        "Train", "Evaluate & Predict", "Chat", "Export"
    ]  # fmt: skip


# What is entered in each field of the form; others get a value by their kind.
ENTERED = {"pref_loss": "apo_zero", "pref_beta": "0.07", "beta_mode": "head", "beta_head_widths": "64,32"}


def _enter(board: Board, name: str) -> None:
    """Give a field a value that is not its default."""
    key, field = form_keys()[name], board.key(name)
    if key.widget == "checkbox":
        field.check()
    elif key.widget == "datasets":
        board.add(field, "instructions")
    elif key.widget == "dropdown":
        board.choose(field, ENTERED.get(name) or str(next(c for c in reversed(key.choices) if c != key.default)))
    elif key.widget == "text":
        board.fill(field, ENTERED.get(name, f"some/{name}"))
    else:
        low, high = key.low or 0, key.high or 10
        board.fill(field, ENTERED.get(name) or f"{round(low + (high - low) * 0.35, 2):g}")


def test_every_field_is_as_it_was_after_save_restart_and_load(browser, uis, tiny):
    ui, folder = uis[0], uis[0].folder
    views = (  # every field of the form is shown by one of these; the last is how it is saved
        ("LEDPO KTO", {}), ("LEDPO PPO", {"rollout_pairs": True, "advantage_estimator": "gae"}),
        ("LEDPO PPO", {"reward_model_type": "api"}),
        *(("LEDPO", {"beta_mode": mode}) for mode in ("ppl", "beta_dpo", "epsilon_dpo", "mallows")),
        *(("LEDPO", {"pref_loss": loss}) for loss in ("cpo", "discopop", "alphapo", "r_dpo", "dpop", "simpo")),
        ("LEDPO and PPO", {"advantage_estimator": "rloo", "kl_control": "adaptive"}),
        ("LEDPO", {"beta_mode": "head", "pref_loss": "apo_zero"}),
    )  # fmt: skip
    done: set[str] = set()
    board = Board(browser, ui)
    _ready(board, tiny, "kept")
    board.fill(board.field("Warmup steps"), "7")
    for title, choices in views:
        board.stage(title)
        for name, value in choices.items():
            if value is True:
                board.key(name).check()
            elif board.key(name).input_value() != value:
                board.choose(board.key(name), value)
            done.add(name)
        board.settle()
        for name in form_keys():
            if name not in done and board.key(name).is_visible():
                _enter(board, name)
                done.add(name)
    assert set(form_keys()) == done
    board.add(board.field("Dataset"), "pairs")
    board.fill(board.field("Config path"), "mine.yaml")
    board.press("Save arguments")
    board.said("mine.yaml")
    first = (folder / "llamaboard_config/mine.yaml").read_text()
    shown = {name: board.state(name) for name in form_keys() if board.key(name).is_visible()}
    assert board.messages == []
    ui.kill()
    form = json.loads(first.split(MARK)[1])
    assert [name for name, key in form_keys().items() if form[f"train.ledpo_{name}"] == key.default] == []
    ui.start()
    board = Board(browser, ui)
    board.fill(board.field("Config path"), "mine.yaml")
    board.press("Load arguments")
    board.said("restored")
    board.page.locator("#ledpo_accordion").wait_for()
    board.settle()
    assert {name: board.state(name) for name in form_keys() if board.key(name).is_visible()} == shown
    board.fill(board.field("Model path"), str(tiny.model))  # LlamaBoard does not keep it
    board.fill(board.field("Config path"), "again.yaml")
    board.press("Save arguments")
    board.said("again.yaml")
    assert (folder / "llamaboard_config/again.yaml").read_text() == first
    assert board.messages == []
    without = uis[1].folder / "llamaboard_config"
    without.mkdir(exist_ok=True)
    shutil.copy(folder / "llamaboard_config/mine.yaml", without / "mine.yaml")


def test_a_configuration_saved_with_the_plugin_is_no_harm_without_it(stock, tiny, uis):
    """After the test above. The stage is unknown there, so it is refused, never trained as another."""
    stock.fill(stock.field("Config path"), "mine.yaml")
    stock.press("Load arguments")
    stock.said("restored")
    stock.open("Extra configurations")
    assert stock.field("Extra arguments").input_value() == QUICK
    assert stock.field("Warmup steps").input_value() == "7"
    stock.fill(stock.field("Model path"), str(tiny.model))
    stock.press("Start")
    stock.page.get_by_text("not in the list of choices").first.wait_for()
    assert uis[1].children() == []
    stock.stage("DPO")
    stock.add(stock.field("Dataset"), "pairs")
    stock.press("Preview command")
    assert "--stage dpo" in stock.said("llamafactory-cli train")
