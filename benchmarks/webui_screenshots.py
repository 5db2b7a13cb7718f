"""The pictures in docs/webui: the accordion, a run that is watched, and the experiments, with a tiny random model.

python benchmarks/webui_screenshots.py        needs Debian's chromium (`make browser`)
"""

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from conftest import Tiny, build_data, build_model  # noqa: E402
from test_webui_experiments import Tab  # noqa: E402
from tiny_experiment import write_experiment  # noqa: E402
from webui_pages import Board, running_browser, running_ui  # noqa: E402

FOLDER = ROOT / "docs" / "webui"
QUICK = '{"preprocessing_num_workers": 1, "disable_gradient_checkpointing": true}'


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "data").mkdir()
        (root / "model").mkdir()
        build_data(root / "data")
        build_model(root / "model")
        shutil.copytree(ROOT / "yaml_recipes", root / "yaml_recipes")
        top = {"title": "Three losses on a tiny model", "question": "Does each loss train, measure and report?"}
        write_experiment(root / "yaml_recipes" / "tiny_losses", Tiny(root / "model", root / "data"), seeds=[1], top=top)
        with running_ui(root) as ui, running_browser() as browser:
            board = Board(browser, ui, width=1240)
            page = board.page
            page.add_style_tag(content=".toast-wrap {display: none !important}")  # they would cover what is shown
            board.model("model")
            board.stage("LEDPO")
            board.add(board.field("Dataset"), "pairs")
            page.locator("#ledpo_note").get_by_text("beta_mode: head").wait_for()
            page.mouse.move(0, 0)
            page.locator("#ledpo_accordion").screenshot(path=FOLDER / "accordion.png")
            board.choose(board.field("Compute type"), "fp32")
            board.fill(board.field("Learning rate"), "5e-4")
            board.fill(board.field("Epochs"), "40")
            board.fill(board.field("Gradient accumulation"), "2")
            board.fill(board.field("Val size"), "0.25")
            board.open("Extra configurations")
            board.fill(board.field("Save steps"), "20")
            board.fill(board.field("Extra arguments"), QUICK)
            board.open("Extra configurations")
            board.press("Start")
            page.locator("#ledpo_viewer img").wait_for(timeout=600_000)
            page.wait_for_function(
                "[...document.querySelectorAll('.prose')].some(e => /'epoch': (1[5-9]|2\\d)/.test(e.innerText))",
                timeout=600_000,
            )
            page.get_by_role("button", name="Preview command").first.evaluate("button => button.scrollIntoView()")
            page.screenshot(path=FOLDER / "training.png")
            board.said("^Finished", timeout=900)
            page.context.close()
            tab = Tab(browser, ui)
            tab.choose("tiny_losses")
            tab.press("start")
            tab.until("finished", 900)
            tab.page.wait_for_timeout(3000)  # until the list says so, too
            tab.page.mouse.move(0, 0)
            tab.page.screenshot(path=FOLDER / "experiments.png", full_page=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
