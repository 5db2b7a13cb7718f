"""Runs that are kept as small files: another checkout goes on from them, and ends in the same report."""

import json
import re
import shutil
from pathlib import Path

import pytest
from test_experiment_engine import ledpo
from tiny_experiment import write_experiment

RESULTS = Path("runs/experiments/tiny/cpu")


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory) -> Path:
    """A checkout with an experiment of two runs, finished, and `kept/` with their files."""
    cwd = tmp_path_factory.mktemp("kept")
    write_experiment(cwd / "tiny", tiny, seeds=[1])
    done = ledpo("run", "tiny", "--only", "dpo,ledpo", "--keep", "kept", cwd=cwd, cache=cwd / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


@pytest.fixture
def elsewhere(kept, tmp_path) -> Path:
    """Another checkout, which has the experiment and the kept files alone."""
    for name in ("tiny", "kept"):
        shutil.copytree(kept / name, tmp_path / name)
    return tmp_path


def summary(cwd: Path) -> dict:
    """What the report rests on, but for what says when and where it was made and what texts were written."""
    found = json.loads((cwd / RESULTS / "results.json").read_text())
    runs = {(row["variant"], row["seed"]): row["final"] for row in found["runs"]}
    bases = {row["base"]: row["metrics"] for row in found["bases"]}
    return {"runs": runs, "bases": bases, "per_item": found["per_item"], "metrics": found["metrics"]}


def strings(path: Path) -> list[str]:
    """Every text of some length in a JSON file, however deep."""

    def walk(value):
        if isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from walk(inner)
        elif isinstance(value, str) and len(value) > 12:
            yield value

    return list(walk(json.loads(path.read_text())))


def test_kept_files_are_small_and_hold_no_text_of_a_data_set(kept, tiny):
    files = sorted(path.relative_to(kept / "kept").as_posix() for path in (kept / "kept").rglob("*.json"))
    assert files[1:] == ["runs/dpo/seed-1.json", "runs/ledpo/seed-1.json"]
    assert re.fullmatch(r"base/[0-9a-f]{12}\.json", files[0])
    texts = {text for name in ("heldout", "instructions") for text in strings(tiny.data / f"{name}.json")}
    assert len(texts) > 4
    for name in files:
        text = (kept / "kept" / name).read_text()
        assert len(text) < 20_000
        assert not [one for one in texts if one in text]
    run = json.loads((kept / "kept" / files[1]).read_text())
    pairs = run["measures"]["step-000004/pairs/heldout.json"]
    assert pairs["items"] == "as_base"
    assert set(pairs["columns"]) == {"margin", "chosen_logps", "rejected_logps"}
    assert len(run["measures"]) == 2  # of the last checkpoint alone


def test_another_checkout_reports_the_same_and_trains_nothing(kept, elsewhere):
    words = ("run", "tiny", "--only", "dpo,ledpo", "--keep", "kept")
    listed = ledpo(*words, "--dry-run", cwd=elsewhere, cache=elsewhere / "cache")
    assert len(re.findall(r"seed 1 +kept ", listed.stdout)) == 2, listed.stdout + listed.stderr
    done = ledpo(*words, cwd=elsewhere, cache=elsewhere / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs, 2 finished before" in done.stdout
    assert not list((elsewhere / RESULTS).rglob("trainer_state.json"))
    ours, theirs = summary(elsewhere), summary(kept)
    assert ours["per_item"]["items"] == theirs["per_item"]["items"]
    for one, other in zip(ours["per_item"]["runs"], theirs["per_item"]["runs"], strict=True):
        assert one["values"].keys() == other["values"].keys()
        for metric, values in other["values"].items():
            assert one["values"][metric] == pytest.approx(values, rel=1e-5, abs=1e-5)
    for key in ("runs", "bases", "metrics"):
        assert ours[key] == theirs[key]


def test_what_is_not_kept_is_run_and_kept_then(kept, elsewhere):
    (elsewhere / "kept/runs/ledpo/seed-1.json").unlink()
    done = ledpo("run", "tiny", "--only", "dpo,ledpo", "--keep", "kept", cwd=elsewhere, cache=elsewhere / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 runs, 1 finished before" in done.stdout
    trained = [path.parts[-4] for path in (elsewhere / RESULTS).glob("runs/*/*/train/trainer_state.json")]
    assert trained == ["ledpo"]
    ours, theirs = (json.loads((cwd / "kept/runs/ledpo/seed-1.json").read_text()) for cwd in (elsewhere, kept))
    assert ours["measures"].keys() == theirs["measures"].keys()
    assert [one["columns"] for one in ours["measures"].values()] == [o["columns"] for o in theirs["measures"].values()]
    assert ours["result"]["final"] == theirs["result"]["final"]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda told: told["told"]["recipes"][""].update(learning_rate=0.5), "learning_rate is 0.5 there"),
        (lambda told: told["told"].update(budget={"unit": "steps", "amount": 9}), "the budget is .*9.* there"),
        (
            lambda told: told["result"]["provenance"]["data_sha256"].update(heldout="0" * 64),
            "data set heldout is another file",
        ),
        (lambda told: told.update(format=99), "damaged, or of a later version"),
        (lambda told: told["measures"].update({"../../x.json": {"columns": {}}}), "damaged, or of a later version"),
    ],
)
def test_a_kept_run_of_something_else_is_refused_before_anything_runs(elsewhere, broken, said):
    path = elsewhere / "kept/runs/dpo/seed-1.json"
    told = json.loads(path.read_text())
    broken(told)
    path.write_text(json.dumps(told))
    done = ledpo("run", "tiny", "--only", "dpo", "--keep", "kept", cwd=elsewhere, cache=elsewhere / "cache")
    assert done.returncode != 0
    assert re.search(said, done.stderr), done.stderr
    assert "delete" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((elsewhere / RESULTS).rglob("trainer_state.json"))
