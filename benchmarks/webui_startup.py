"""How much the plugin slows the start of LLaMA-Factory's web UI: both starts side by side, pair after pair.

    python benchmarks/webui_startup.py [PAIRS]

A pair is the stock command twice at the same moment, with the plugin and with LEDPO_PLUGIN_DISABLE=1, so that whatever
else the machine does happens to both; which of the two is started first changes from pair to pair. A start ends when
the page is served. It writes docs/webui/startup.json and docs/webui/startup.md.
"""

import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

FOLDER = Path(__file__).parents[1] / "docs" / "webui"
KINDS = {"with": {}, "without": {"LEDPO_PLUGIN_DISABLE": "1"}}
LIMIT = 1.05  # the slowest start that is accepted, as a multiple of the stock one
RESAMPLES = 10_000
SERVED = "To create a public link"  # gradio says so when it has fetched its own page


class NotStarted(RuntimeError):
    """A web UI ended before it served its page."""


def _free_port() -> int:
    """Return a port that is free, and below those that connections take while the UI is still starting."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as taken:
            if taken.connect_ex(("127.0.0.1", port)) != 0:
                return port


def pair(first: str) -> dict[str, dict[str, float]]:
    """Start both side by side; return the seconds on the clock and on the processor until each serves its page.

    Raises:
        NotStarted: gradio gave one up, as it does where it cannot reach its own page within 3 s.
    """
    started, found = {}, {}
    command = shutil.which("llamafactory-cli", path=Path(sys.executable).parent)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for kind in sorted(KINDS, key=lambda kind: kind != first):
                env = {
                    **os.environ, **KINDS[kind], "GRADIO_SERVER_PORT": str(_free_port()),
                    "GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                }  # fmt: skip
                log = Path(folder) / kind
                with log.open("w") as output:
                    run = subprocess.Popen([command, "webui"], cwd=folder, env=env, stdout=output, stderr=output)
                started[kind] = (run, log, time.perf_counter())
            while len(found) < len(started):
                for kind, (run, log, start) in started.items():
                    if run.poll() is not None:
                        raise NotStarted(log.read_text()[-500:])
                    if kind not in found and SERVED in log.read_text():
                        used = psutil.Process(run.pid).cpu_times()
                        found[kind] = {"wall": time.perf_counter() - start, "cpu": used.user + used.system}
                time.sleep(0.02)
        finally:
            for run, _, _ in started.values():
                run.kill()
                run.wait()
    return found


def summary(pairs: list[dict], clock: str) -> dict[str, float]:
    """Return the medians of both starts and of the paired ratio, with a bootstrap interval of 95 % over pairs."""
    ratios = [item["with"][clock] / item["without"][clock] for item in pairs]
    rng = random.Random(0)
    drawn = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return {
        "with": statistics.median(item["with"][clock] for item in pairs),
        "without": statistics.median(item["without"][clock] for item in pairs),
        "ratio": statistics.median(ratios),
        "low": drawn[int(0.025 * RESAMPLES)],
        "high": drawn[int(0.975 * RESAMPLES)],
    }


def report(result: dict) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Start of the web UI",
        "",
        f"Made by `python benchmarks/webui_startup.py` on {result['date']}; do not edit. `llamafactory-cli webui` "
        "until its page is served, with the plugin and with `LEDPO_PLUGIN_DISABLE=1`, the two of a pair side by side; "
        f"{len(result['pairs'])} pairs. {result['machine']}, LLaMA-Factory {result['llamafactory']}.",
        "",
        "| seconds, median | with the plugin | without | ratio, median of pairs (95 % interval) |",
        "|---|---|---|---|",
    ]
    for clock, name in (("wall", "on the clock"), ("cpu", "on the processor")):
        row = result[clock]
        ratio = f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(f"| {name} | {row['with']:.2f} | {row['without']:.2f} | {ratio} |")
    verdict = "kept" if result["cpu"]["ratio"] <= LIMIT and result["wall"]["ratio"] <= LIMIT else "NOT kept"
    return "\n".join([*lines, "", f"Limit: {LIMIT:.2f}; {verdict}."]) + "\n"


def write(pairs: list[dict]) -> str:
    """Write what was measured so far; return it as Markdown."""
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "llamafactory": version("llamafactory"),
        "wall": summary(pairs, "wall"),
        "cpu": summary(pairs, "cpu"),
        "pairs": pairs,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "startup.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "startup.md").write_text(report(result), encoding="utf-8")
    return report(result)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    pairs: list[dict] = []  # the first is not counted: it fills the caches of files and of compiled modules
    given_up = 0
    while len(pairs) < count + 1:
        try:
            pairs.append(pair(list(KINDS)[len(pairs) % 2]))
        except NotStarted as error:
            given_up += 1
            print(f"A pair is repeated: {error}", file=sys.stderr)
            if given_up > count:
                return 1
            continue
        if len(pairs) > 1:
            print(write(pairs[1:]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
