"""The start-up hook: free until LLaMA-Factory is imported, complete when it is, gone when the package is."""

import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from conftest import series, write_recipe

ROOT = Path(__file__).parents[2]


def _python(code: str, executable: str = sys.executable, **env: str) -> str:
    done = subprocess.run(
        [executable, "-c", code], env=os.environ | env, capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


def test_start_up_costs_a_fraction_of_the_interpreters_own_and_imports_nothing_heavy():
    # The yardstick is the interpreter itself, in CPU time: a busy or slow machine slows both alike. Half a
    # millisecond on a quiet one, where an interpreter takes twenty.
    code = (
        "import sys, time\n"
        "for name in [n for n in sys.modules if n.startswith('ledpo_plugin')]: del sys.modules[name]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Watcher']\n"
        "interpreter = time.process_time()\n"
        "import ledpo_plugin.autoload; ledpo_plugin.autoload.arm()\n"
        "print(time.process_time() / interpreter - 1)"
    )
    shares = [float(_python(code)) for _ in range(9)]
    assert statistics.median(shares) < 0.1, shares
    loaded = json.loads(_python("import json, sys; print(json.dumps(sorted(sys.modules)))"))
    ours = {name for name in loaded if name.startswith(("ledpo", "torch", "llamafactory", "yaml", "packaging"))}
    assert ours == {"ledpo_plugin", "ledpo_plugin.autoload"}


def test_the_watcher_is_there_at_start_up_and_can_be_switched_off():
    code = "import ledpo_plugin.autoload as a; print(a.armed())"
    assert _python(code) == "True"
    assert _python(code, LEDPO_PLUGIN_DISABLE="1") == "False"


def test_arming_twice_watches_once():
    code = (
        "import sys, ledpo_plugin.autoload as a; a.arm(); a.arm()\n"
        "print(sum(type(f).__name__ == '_Watcher' for f in sys.meta_path))"
    )
    assert _python(code) == "1"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """An environment of its own, outside the checkout, that sees LLaMA-Factory but not this checkout's plugin.

    Path files inside a folder that was itself added by a path file are not read, so the editable install stays out.
    """
    folder = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(folder, with_pip=True)
    site = next(folder.glob("lib/python*/site-packages"))
    host_site = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    (site / "host.pth").write_text(f"{host_site}\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    return next(out.glob("*.whl"))


def _train(python: Path, recipe: str) -> subprocess.CompletedProcess:
    code = (
        "import sys; sys.argv = ['llamafactory-cli', 'train', sys.argv[1]]; from llamafactory.cli import main; main()"
    )
    return subprocess.run(
        [str(python), "-c", code, recipe], capture_output=True, text=True, check=False, cwd=Path(recipe).parent
    )


def test_a_wheel_works_outside_the_checkout_and_leaves_nothing_behind(tiny, tmp_path, elsewhere, wheel):
    pip = [str(elsewhere), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    before = set(elsewhere.parents[1].rglob("*"))
    subprocess.run(pip, check=True, capture_output=True)
    where = _python("import ledpo_plugin; print(ledpo_plugin.__file__)", str(elsewhere))
    assert str(elsewhere.parents[1]) in where
    recipe = tiny.recipe(tmp_path / "run", beta_mode="head", max_steps=2)
    done = _train(elsewhere, write_recipe(tmp_path / "ledpo.yaml", recipe))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "beta_head.safetensors").is_file()

    stock = tiny.recipe(tmp_path / "stock_with", stage="dpo", max_steps=2)
    assert _train(elsewhere, write_recipe(tmp_path / "with.yaml", stock)).returncode == 0

    subprocess.run([str(elsewhere), "-m", "pip", "uninstall", "-q", "-y", "ledpo-plugin"], check=True)
    left = {p for p in set(elsewhere.parents[1].rglob("*")) - before if "__pycache__" not in str(p)}
    assert not left
    stock["output_dir"] = str(tmp_path / "stock_without")
    assert _train(elsewhere, write_recipe(tmp_path / "without.yaml", stock)).returncode == 0
    assert series(tmp_path / "stock_with", "loss") == series(tmp_path / "stock_without", "loss")
    refused = _train(elsewhere, str(tmp_path / "ledpo.yaml"))
    assert refused.returncode != 0
