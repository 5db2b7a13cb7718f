"""The GPU's command: parts that arrive whole, steps that a cut leaves valid, a report that names what is missing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GPU = ROOT / "benchmarks" / "gpu"
RUN, PACK = GPU / "run.sh", GPU / "pack.sh"


@pytest.fixture
def gpu(monkeypatch):
    """The scripts as modules; they stand beside each other, not in a package."""
    monkeypatch.syspath_prepend(str(GPU))
    names = ("common", "parts", "report", "prepare", "study")
    for name in names:
        sys.modules.pop(name, None)
    yield lambda name: __import__(name)
    for name in names:
        sys.modules.pop(name, None)


# ---- parts


def test_parts_are_put_together_again(gpu, tmp_path):
    parts = gpu("parts")
    source = tmp_path / "source"
    source.mkdir()
    contents = {"a.whl": os.urandom(2500), "b.whl": os.urandom(10), "empty": b""}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    parts.split(source, tmp_path / "parts", limit=1000)
    folders = sorted((tmp_path / "parts").glob("part-*"))
    assert len(folders) == 3
    assert all(sum(file.stat().st_size for file in folder.iterdir()) <= 1000 for folder in folders)
    made = parts.join(tmp_path / "parts", tmp_path / "joined")
    assert {path.name: path.read_bytes() for path in made} == contents


def test_a_damaged_and_a_missing_part_are_named(gpu, tmp_path):
    parts = gpu("parts")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.whl").write_bytes(os.urandom(2500))
    parts.split(tmp_path / "source", tmp_path / "parts", limit=1000)
    piece = next((tmp_path / "parts" / "part-2").iterdir())
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match=r"a\.whl is damaged.*carry its parts again"):
        parts.join(tmp_path / "parts", tmp_path / "joined")
    shutil.rmtree(tmp_path / "parts" / "part-2")
    with pytest.raises(SystemExit, match=r"part-2 not in .*carry"):
        parts.join(tmp_path / "parts", tmp_path / "joined")


# ---- what a cut leaves

ENDLESS = """
import sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from common import Results
results = Results(Path({out!r}), step="correct", device="cpu", cores=1, date="today", commit="none", versions={{}})
number = 0
while True:
    case = {{"what": f"case {{number}}", "dtype": "fp32"}}
    results.measure(case, lambda: {{"difference": 0.0, "tolerance": 0.1, "passed": True, "filler": ["x" * 1000] * 50}})
    number += 1
"""


def test_a_cut_at_any_time_leaves_valid_json(gpu, tmp_path):
    out = tmp_path / "correct.json"
    for attempt in range(6):
        out.unlink(missing_ok=True)
        code = ENDLESS.format(folder=str(GPU), out=str(out))
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
        while not out.is_file():
            time.sleep(0.01)
        time.sleep(0.05 + 0.13 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = json.loads(out.read_text())
        assert found["complete"] is False
        assert [row["what"] for row in found["rows"]] == [f"case {n}" for n in range(len(found["rows"]))]
    text = gpu("report").markdown(tmp_path)
    assert "The step was cut off" in text
    assert "| case 0 |" in text
    assert "Not measured yet: speed, kernels, study, rollouts. The command: `" in text


def test_a_case_that_fails_does_not_take_the_others_with_it(gpu, tmp_path):
    results = gpu("common").Results(tmp_path / "speed.json", step="speed")
    results.measure({"case": 1}, lambda: {"value": 1 / 0})
    results.measure({"case": 2}, lambda: {"value": 2})
    first, second = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert "ZeroDivisionError" in first["error"]
    assert second["value"] == 2


def test_the_report_is_that_of_the_figures_in_the_repository(gpu):
    report = gpu("report")
    assert (ROOT / "docs" / "gpu.md").read_text() == report.document(ROOT / "docs" / "gpu")
    assert set(report.STEPS) == set(gpu("common").STEPS)


def test_a_study_takes_as_many_runs_as_memory_and_cores_allow(gpu, monkeypatch):
    study = gpu("study")
    monkeypatch.setattr(study.os, "cpu_count", lambda: 16)
    assert study.seats(3.0) == 1
    assert study.seats(10 * study.GB_OF_A_RUN) == 10
    assert study.seats(1000) == 14


# ---- the whole of it


def _closure(names: list[str]) -> set[str]:
    """Every installed distribution that the named ones need, themselves included."""
    found, waiting = set(), list(names)
    while waiting:
        name = re.split(r"[ ;<>=!~\[(]", waiting.pop().strip())[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [need for need in needs if "extra ==" not in need]
    return found


def bare_environment(folder: Path) -> Path:
    """An interpreter that has what a GPU machine has, torch above all, and nothing of ours; by links to this one's."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    told = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip())
    lines = (GPU / "machine.txt").read_text().splitlines()
    for name in _closure([line for line in lines if line and not line.startswith("#")]):
        for file in metadata.files(name) or []:
            first = file.parts[0]
            if first in ("..", "__pycache__") or (packages / first).exists():
                continue
            (packages / first).symlink_to(Path(metadata.distribution(name).locate_file(first)).resolve())
    return python


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_step_runs_from_the_packed_parts_where_nothing_else_of_ours_is(tmp_path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environ = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    environ |= {"PYTHON": sys.executable, "LEDPO_PACK_PYTHON": version}
    subprocess.run([PACK, "--wheels", tmp_path / "parts"], check=True, env=environ, timeout=600)
    assert all(
        sum(file.stat().st_size for file in part.iterdir()) < 60 * 1024**2
        for part in (tmp_path / "parts").glob("part-*")
    )
    python = bare_environment(tmp_path / "machine")
    lacking = (
        "import importlib.util as u; print([n for n in ('torch', 'llamafactory', 'ledpo_plugin') if u.find_spec(n)])"
    )
    seen = subprocess.run(
        [python, "-c", lacking], capture_output=True, text=True, check=True, cwd="/", env=environ
    ).stdout
    assert seen.strip() == "['torch']"
    begin = time.monotonic()
    environ |= {"PYTHON": str(python), "LEDPO_SITE": str(tmp_path / "site")}
    command = [RUN, "--dry-run", tmp_path / "parts", tmp_path / "out"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=1500, cwd=tmp_path, check=False)
    logs = "".join(f"\n== {path.name}\n{path.read_text()[-3000:]}" for path in (tmp_path / "out").glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    seconds = time.monotonic() - begin
    for step in ("prepare", "correct", "speed", "kernels", "study", "rollouts"):
        found = json.loads((tmp_path / "out" / f"{step}.json").read_text())
        assert found["complete"], step
        assert found["rows"], step
        failed = [row for row in found["rows"] if "error" in row]
        assert not failed, (step, failed)
        assert all(row.get("passed", True) for row in found["rows"]), step
    report = subprocess.run(
        [sys.executable, GPU / "report.py", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert report.returncode == 0, report.stderr
    assert "Not measured yet" not in (tmp_path / "gpu.md").read_text()
    busy = os.getloadavg()[0] > 4
    assert seconds < (1500 if busy else 300), seconds
