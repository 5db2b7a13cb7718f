"""Which accelerators a run is given: whole ones, several, or one that it shares."""

import sys
import time
from pathlib import Path

import pytest

from ledpo_plugin.experiments import launchers
from ledpo_plugin.experiments.definition import Resources
from ledpo_plugin.experiments.launchers import LocalLauncher, NotEnough, Task

# Stands in for a worker's work alone: a process that says which devices it was given and stays until it is told to go.
SITS = (
    "import os, pathlib, sys, time\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "(folder / 'seen').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))\n"
    "while not (folder / 'go').exists(): time.sleep(0.02)"
)


@pytest.fixture
def sitting(monkeypatch):
    monkeypatch.setattr(launchers, "worker_command", lambda folder: [sys.executable, "-c", SITS, str(folder)])


def _wait(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _seen(folder: Path) -> str:
    _wait(lambda: (folder / "seen").is_file() and (folder / "seen").read_text())
    return (folder / "seen").read_text()


@pytest.mark.parametrize(
    ("gpus", "devices", "expected"),
    [
        (0.5, "3,5", ["3", "5", "3", "5"]),
        (0.25, "0", ["0"] * 4),
        (0.3, "0", ["0"] * 3),
        (1, "4,7", ["4", "7"]),
        (2, "0,1", ["0,1"]),
    ],
)
def test_runs_share_an_accelerator_or_have_it_alone(gpus, devices, expected, sitting, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
    monkeypatch.setattr(launchers.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    resources = Resources(cpus=1, memory_gb=0.001, gpus=gpus)
    launcher = LocalLauncher(resources)
    assert launcher.slots == len(expected)
    tasks = [Task(f"run {i}", tmp_path / str(i), resources) for i in range(len(expected) + 1)]
    try:
        for task in tasks[: launcher.slots]:
            launcher.start(task)
        assert [_seen(task.folder) for task in tasks[: launcher.slots]] == expected
        assert not launcher.free or len(launcher.free) < resources.devices
        (tasks[0].folder / "go").touch()  # its place is the next one's
        _wait(lambda: launcher.finished() == {"run 0": 0})
        launcher.start(tasks[-1])
        assert _seen(tasks[-1].folder) == expected[0]
    finally:
        launcher.stop()


def test_jobs_are_no_more_than_there_is_room_on_accelerators(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert LocalLauncher(Resources(memory_gb=0.001, gpus=0.125), jobs=20).slots == 8
    assert LocalLauncher(Resources(memory_gb=0.001, gpus=0.125), jobs=3).slots == 3


def test_a_share_needs_an_accelerator(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(NotEnough, match=r"needs 0\.125 GPU.*there are 0 here"):
        LocalLauncher(Resources(memory_gb=0.001, gpus=0.125))


def test_a_share_is_one_process():
    assert [Resources(gpus=gpus).processes for gpus in (0, 0.125, 1, 4)] == [1, 1, 1, 4]
