"""Experiments run for real, with the stock LLaMA-Factory, on the tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import cli
from tiny_experiment import write_experiment

from ledpo_plugin.cli import main
from ledpo_plugin.common.files import read_json, read_lines, tail, write_json
from ledpo_plugin.common.lock import is_locked, locked

# What two runs of the same recipe may differ in: where and when, and what was in the cache before.
ELSEWHERE = ("started", "ended", "seconds", "measure_seconds", "provenance", "recipe", "peak_memory_bytes")
CACHE = ("reference_tokens_run",)


def numbers(results: Path) -> dict:
    """Every number of every run, but for times."""
    found = {}
    for path in sorted(results.glob("runs/*/seed-*/result.json")):
        result = json.loads(path.read_text())
        for key in ELSEWHERE:
            result.pop(key, None)
        result["usage"] = {k: v for k, v in result["usage"].items() if k not in (*ELSEWHERE, *CACHE)}
        result["phases"] = [{k: v for k, v in one.items() if k != "seconds"} for one in result["phases"]]
        result["training"] = [
            {k: v for k, v in row.items() if "runtime" not in k and "per_second" not in k} for row in result["training"]
        ]
        found[str(path.parent.relative_to(results))] = result
    return found


def ledpo(*words: str, cwd: Path, cache: Path, timeout: float = 600) -> subprocess.CompletedProcess:
    environ = os.environ | {"LEDPO_CACHE": str(cache)}
    command = [str(Path(sys.executable).parent / "ledpo"), *words]
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """An experiment, and its results."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    write_experiment(cwd / "tiny", tiny, seeds=[1])
    done = ledpo("run", "tiny", cwd=cwd, cache=cwd / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    return cwd


def test_an_experiment_runs_to_its_report(undisturbed):
    results = undisturbed / "runs/experiments/tiny/cpu"
    found = numbers(results)
    assert list(found) == [f"runs/{name}/seed-1" for name in ("dpo", "ledpo", "orpo")]
    for result in found.values():
        assert result["budget"] == {"unit": "steps", "amount": 4, "used": 4}
        assert [checkpoint["step"] for checkpoint in result["checkpoints"]] == [2, 4]
        texts = {key: value for key, value in result["final"].items() if key.startswith("gen/")}
        assert result["final"] == result["checkpoints"][-1]["metrics"] | texts
        assert len(texts) == 4
        assert [row["step"] for row in result["training"]] == [1, 2, 3, 4]
        assert result["usage"]["measure_tokens"] > 0
        assert (results / "base" / result["base"] / "result.json").is_file()
    assert found["runs/ledpo/seed-1"]["final"]["heldout/beta_mean"] != 0.1
    assert not list(results.glob("runs/*/*/train/checkpoint-*"))  # measured, so not needed any more
    for name in ("report.html", "report.md", "results.json"):
        assert (results / name).stat().st_size > 1000


def test_again_nothing_is_run_twice(undisturbed):
    results = undisturbed / "runs/experiments/tiny/cpu"
    before = {path: path.stat().st_mtime_ns for path in results.glob("runs/**/*") if path.is_file()}
    started = time.monotonic()
    done = ledpo("run", "tiny", cwd=undisturbed, cache=undisturbed / "cache")
    assert done.returncode == 0
    assert "3 runs, 3 finished before" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert time.monotonic() - started < 200


def test_the_recipe_that_ran_runs_by_itself(undisturbed):
    """With the stock command: the same losses, bit for bit."""
    run = undisturbed / "runs/experiments/tiny/cpu/runs/ledpo/seed-1"
    done = cli("train", str(run / "recipe.yaml"), f"output_dir={undisturbed / 'alone'}")
    assert done.returncode == 0, done.stderr[-3000:]
    alone = json.loads((undisturbed / "alone" / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in alone if "loss" in row]
    assert losses == [row["loss"] for row in json.loads((run / "result.json").read_text())["training"]]


def test_status_and_dry_run(undisturbed, monkeypatch, capsys):
    monkeypatch.chdir(undisturbed)
    assert main(["status", "tiny"]) == 0
    out = capsys.readouterr().out
    assert out.count(" finished ") >= 3
    assert "3 of 3 runs finished" in out
    assert main(["run", "tiny", "--dry-run", "--seeds", "1,7"]) == 0
    out = capsys.readouterr().out
    assert "6 runs, budget 4 steps each" in out
    assert "dpo seed 7" in out
    assert "Nothing was run" in out
    assert not (undisturbed / "runs/experiments/tiny/cpu/runs/dpo/seed-7").exists()
    assert main(["report", "runs/experiments/tiny/cpu"]) == 0


def test_a_changed_recipe_does_not_mix_with_finished_runs(undisturbed, tiny, tmp_path, capsys, monkeypatch):
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    before = numbers(tmp_path / "runs/experiments/tiny/cpu")
    write_experiment(tmp_path / "tiny", tiny, seeds=[1], common={"learning_rate": 1e-4})
    assert main(["run", "tiny"]) == 1
    error = capsys.readouterr().err
    assert "recipe of dpo: learning_rate is 0.005 there, 0.0001 here" in error
    assert "recipe of orpo: learning_rate" in error
    assert "name another folder with --results" in error
    write_experiment(tmp_path / "other", tiny, seeds=[1])
    assert main(["run", "other", "--results", "runs/experiments/tiny/cpu"]) == 1
    assert "name: 'tiny' there, 'other' here" in capsys.readouterr().err
    assert numbers(tmp_path / "runs/experiments/tiny/cpu") == before


def test_changed_data_do_not_mix_with_finished_runs(undisturbed, tiny, tmp_path, capsys, monkeypatch):
    shutil.copytree(undisturbed / "runs", tmp_path / "runs")
    shutil.copytree(tiny.data, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    kept = read_json(tmp_path / "runs/experiments/tiny/cpu/experiment.json")
    for recipe in kept["recipes"].values():
        recipe["dataset_dir"] = "data"
    write_json(tmp_path / "runs/experiments/tiny/cpu/experiment.json", kept)
    write_experiment(tmp_path / "tiny", tiny, seeds=[1], common={"dataset_dir": "data"})
    pairs = json.loads((tmp_path / "data/heldout.json").read_text())
    (tmp_path / "data/heldout.json").write_text(json.dumps(pairs[1:]))
    assert main(["run", "tiny"]) == 1
    error = capsys.readouterr().err
    assert "data set heldout: its file has changed since" in error
    assert "2. " not in error


def test_a_folder_of_something_else_is_left_alone(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path / "tiny", tiny)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert main(["run", "tiny", "--results", "mine"]) == 1
    assert "holds no experiment.json (but thesis.tex)" in capsys.readouterr().err
    assert main(["status", "mine"]) == 1
    assert "no results folder" in capsys.readouterr().err
    assert main(["status", "tiny"]) == 1
    assert "nothing of tiny was run" in capsys.readouterr().err


def test_a_failing_variant_does_not_stop_the_others(tiny, tmp_path):
    """Its learning rate makes the loss infinite; the log's end is shown, the exit status tells, the report says so."""
    write_experiment(
        tmp_path / "tiny",
        tiny,
        seeds=[1],
        variants={"orpo": {"changes": ["stage", "beta_mode", "fill_reference_cache", "learning_rate"]}, "ledpo": None},
        recipes={"orpo": {"learning_rate": 1e20}},
        evaluation={"pairs": ["heldout"], "primary": "heldout/accuracy"},
    )
    done = ledpo("run", "tiny", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "FAILED   orpo seed 1: llamafactory-cli train ended with exit status 1" in done.stdout
    assert "NonFiniteLoss" in done.stdout
    results = tmp_path / "runs/experiments/tiny/cpu"
    assert list(numbers(results)) == ["runs/dpo/seed-1"]
    assert "NonFiniteLoss" in (results / "report.md").read_text()
    status = ledpo("status", "tiny", cwd=tmp_path, cache=tmp_path / "cache")
    assert status.returncode == 1
    assert "1 failed" in status.stdout


def test_a_full_disk_is_said_and_nothing_is_lost(tiny, tmp_path):
    write_experiment(tmp_path / "tiny", tiny, seeds=[1], resources={"cpus": 1, "memory_gb": 1, "disk_gb": 1e6})
    done = ledpo("run", "tiny", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 1
    assert "NOT STARTED" in done.stdout
    assert "1e+06 GB of disk" in done.stdout
    assert "the same command again" in done.stdout


def test_two_at_once_in_one_folder(undisturbed, capsys, monkeypatch):
    monkeypatch.chdir(undisturbed)
    results = undisturbed / "runs/experiments/tiny/cpu"
    with locked(results, "(a test)"):
        assert main(["run", "tiny"]) == 1
        assert is_locked(results)
    assert "(a test)" in capsys.readouterr().err
    assert not is_locked(results)


# ---- killing


def start(cwd: Path, cache: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "ledpo"), "run", "tiny"],
        cwd=cwd,
        env=os.environ | {"LEDPO_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def workers_of(cwd: Path) -> list[int]:
    """The processes that work in a folder, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(cwd) in words and ("worker" in words or "llamafactory" in words):
                found.append(int(entry.name))
    return found


def test_killed_in_training_it_goes_on_and_equals_the_undisturbed(undisturbed, tiny, tmp_path):
    write_experiment(tmp_path / "tiny", tiny, seeds=[1])
    results = tmp_path / "runs/experiments/tiny/cpu"
    process = start(tmp_path, tmp_path / "cache")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(results.glob("runs/*/*/train/checkpoint-2/trainer_state.json")):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert workers_of(tmp_path) == []  # nothing is left behind
    done = ledpo("run", "tiny", cwd=tmp_path, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stdout
    assert numbers(results) == numbers(undisturbed / "runs/experiments/tiny/cpu")


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills_at_random_moments(tiny, tmp_path):
    """Scheduler, workers or trainings, at any moment; then the same command until it is through."""
    import random

    rng, kills, rounds = random.Random(20), 0, []
    whole = _longer(tiny, tmp_path / "whole")
    done = ledpo("run", "tiny", cwd=whole, cache=tmp_path / "whole-cache")
    assert done.returncode == 0, done.stdout
    while kills < 20:  # a machine may be through before the last kill: then once more, from the start
        rounds.append(_longer(tiny, tmp_path / f"killed-{len(rounds)}"))
        cache = tmp_path / f"{rounds[-1].name}-cache"
        while kills < 20:
            process = start(rounds[-1], cache)
            try:
                process.wait(timeout=rng.uniform(2, 25))
                if process.returncode == 0:
                    break
            except subprocess.TimeoutExpired:
                pass
            victims = [process.pid, *workers_of(rounds[-1])]
            victim = rng.choice(victims) if rng.random() < 0.5 else process.pid
            os.kill(victim, signal.SIGKILL)
            kills += 1
            if victim != process.pid:
                process.kill()
            process.wait()
        done = ledpo("run", "tiny", cwd=rounds[-1], cache=cache)
        assert done.returncode == 0, done.stdout
    wanted = numbers(whole / "runs/experiments/tiny/cpu")
    assert len(wanted) == 4
    for cwd in rounds:
        assert numbers(cwd / "runs/experiments/tiny/cpu") == wanted, cwd


def _longer(tiny, cwd: Path) -> Path:
    """Write an experiment of more steps into a folder; return the folder."""
    steps = {"budget": {"steps": 12}, "common": {"max_steps": 12}, "checkpoints": 3}
    write_experiment(cwd / "tiny", tiny, variants={"orpo": None}, **steps)
    return cwd


# ---- a cluster


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_of_two_nodes_gives_the_same_table(undisturbed, tiny, tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path / "tiny", tiny, seeds=[1])
    monkeypatch.setenv("LEDPO_CACHE", str(tmp_path / "cache"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        done = ledpo(
            "run", "tiny", "--launcher", "ray", "--ray-address", cluster.address, cwd=tmp_path, cache=tmp_path / "cache"
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        ray.shutdown()
        cluster.shutdown()
    results = tmp_path / "runs/experiments/tiny/cpu"
    assert numbers(results) == numbers(undisturbed / "runs/experiments/tiny/cpu")
    nodes = {json.loads(path.read_text())["host"] for path in results.glob("runs/*/*/state.json")}
    assert len(nodes) == 2


# ---- files


def test_files_are_whole_or_the_old_ones(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    path.write_text("{")
    assert read_json(path) is None


def test_logs_of_any_bytes_are_read(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n\xff\xfe broken\n{"step": 2}\n[3]\n{"ste')
    assert read_lines(log) == ([{"step": 1}, {"step": 2}], 3)
    assert read_lines(tmp_path / "none") == ([], 0)
    log.write_bytes(b"one\n 10%|# |\r 20%|## |\r100%\nlast \xff\n")
    assert tail(log, 2) == ["100%", "last \ufffd"]
