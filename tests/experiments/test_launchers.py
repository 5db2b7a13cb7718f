"""Which accelerators a run is given: whole ones, several, or one that it shares."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ledpo_plugin.common.lock import locked
from ledpo_plugin.experiments.definition.experiment import Resources
from ledpo_plugin.experiments.running import launchers
from ledpo_plugin.experiments.running.launchers import LocalLauncher
from ledpo_plugin.experiments.running.tasks import NotEnough, Task

# Stands in for a worker's work alone: a process that says which devices it was given and stays until it is told to go.
SITS = (
    "import os, pathlib, sys, time\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "(folder / 'seen').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))\n"
    "while not (folder / 'go').exists(): time.sleep(0.02)"
)


@pytest.fixture
def sitting(monkeypatch):
    monkeypatch.setenv("LEDPO_FORK_RUNS", "0")
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


# ---- forked runs


@pytest.fixture
def forking():
    resources = Resources(cpus=1, memory_gb=0.001)
    launcher = LocalLauncher(resources, jobs=4)
    yield lambda name, folder: launcher.start(Task(name, folder, resources)), launcher
    launcher.stop()


def _job(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(text)
    return folder


def test_workers_are_forked_and_their_status_and_output_are_their_own(forking, tmp_path):
    start, launcher = forking
    start("none", _job(tmp_path / "none", "[]"))  # no job: the worker says so, and ends with 1
    start("odd", _job(tmp_path / "odd", json.dumps({"kind": "run", "cwd": "/nowhere"})))
    ended: dict[str, int] = {}
    _wait(lambda: ended.update(launcher.finished()) or len(ended) == 2)
    assert ended == {"none": 1, "odd": 1}
    assert "start this with `ledpo run`" in (tmp_path / "none" / "worker.log").read_text()
    assert "No such file or directory: '/nowhere'" in (tmp_path / "odd" / "worker.log").read_text()


def test_nothing_is_left_of_a_launcher_that_stops(forking, tmp_path):
    start, launcher = forking
    _job(tmp_path / "waits", json.dumps({"kind": "run", "cwd": "/"}))
    with locked(tmp_path / "waits", "a test"):  # the worker waits for the lock
        start("waits", tmp_path / "waits")
        log = tmp_path / "waits" / "worker.log"
        _wait(lambda: "waiting for" in log.read_text())
        launcher.finished()
        worker, server = launcher.running["waits"][0].pid, launcher.server.process.pid
        assert psutil.Process(worker).ppid() == server
        launcher.stop()
        _wait(lambda: not any(psutil.pid_exists(pid) for pid in (worker, server)))


def test_a_server_that_was_killed_takes_its_workers_along_and_the_next_run_has_a_new_one(forking, tmp_path):
    start, launcher = forking
    _job(tmp_path / "waits", json.dumps({"kind": "run", "cwd": "/"}))
    with locked(tmp_path / "waits", "a test"):
        start("waits", tmp_path / "waits")
        _wait(lambda: "waiting for" in (tmp_path / "waits" / "worker.log").read_text())
        launcher.finished()
        worker = launcher.running["waits"][0].pid
        os.kill(launcher.server.process.pid, signal.SIGKILL)
        _wait(lambda: launcher.finished() == {"waits": -signal.SIGKILL})
        _wait(lambda: not psutil.pid_exists(worker))
    start("none", _job(tmp_path / "none", "[]"))
    _wait(lambda: launcher.finished() == {"none": 1})


def test_the_libraries_of_the_server_leave_the_gpu_alone():
    """What is imported before the fork must neither use the GPU nor start threads of Python."""
    code = (
        "import threading\n"
        "from ledpo_plugin.experiments.running.worker_server import LIBRARIES, require_untouched_gpu\n"
        "[__import__(name) for name in LIBRARIES]\n"
        "require_untouched_gpu()\n"
        "import sys; print(threading.active_count(), 'llamafactory' in sys.modules)"
    )
    environ = os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_a_forked_training_ends_as_a_process_of_its_own_does(tmp_path):
    """Threads are waited for and exit functions called, whether the host's command returned or failed."""
    code = f"""
import atexit, os, sys, threading, time, types
from pathlib import Path
from ledpo_plugin.experiments import processes

folder = Path({str(tmp_path)!r})

def main():
    name = sys.argv[2]
    atexit.register(lambda: (folder / (name + ".exit")).write_text("called"))
    threading.Thread(target=lambda: (time.sleep(0.3), (folder / (name + ".thread")).write_text("done"))).start()
    print("said by", name)
    if name == "fails":
        raise RuntimeError("on purpose")
    if name == "leaves":
        sys.exit(3)

sys.modules["llamafactory.cli"] = types.SimpleNamespace(main=main)
processes._was_forked = True
with open(folder / "log", "ab") as log:
    print(*(processes.run_stock(["train", name], log, 1, log.fileno()) for name in ("works", "fails", "leaves")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1", "3"]
    for name in ("works", "fails", "leaves"):
        assert (tmp_path / f"{name}.exit").read_text() == "called"
        assert (tmp_path / f"{name}.thread").read_text() == "done"
    log = (tmp_path / "log").read_text()
    assert "RuntimeError: on purpose" in log
    assert [line for line in log.splitlines() if line.startswith("said by")] == [
        "said by works",
        "said by fails",
        "said by leaves",
    ]
