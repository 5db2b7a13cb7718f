"""What the speed comparisons share: contenders that are processes of their own and make one step at a time, on demand.

The driver holds a `Contender` for each; the contender's process reads a line of its standard input before each step and
reports with `say`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PIPE = "SPEED_FD"  # the environment variable that tells a contender where to report to


class Contender:
    """A process that makes steps on demand.

    Args:
        name: how its process is told which contender to be.
        label: what it is called in reports.
        folder: where it works; its output goes to a file there.
        arguments: of the running script, beyond those that say so.
        cache: the reference cache that it uses.
    """

    def __init__(self, name: str, label: str, folder: Path, arguments: list[str], cache: Path):
        self.name, self.label = name, label
        self.steps: list[dict] = []
        self.said: list[dict] = []  # everything else
        read, write = os.pipe()
        self.log = open(folder / f"{name}.log", "w", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(Path(sys.argv[0]).resolve()), "--contender", name, "--work", str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            env=os.environ | {PIPE: str(write), "LEDPO_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
            pass_fds=(write,),
            cwd=folder,
            text=True,
        )
        os.close(write)
        self.events = os.fdopen(read, encoding="utf-8")
        self.ready = self._next("ready")
        self.before = self.ready["memory"]

    def _next(self, wanted: str) -> dict:
        for line in self.events:
            event = json.loads(line)
            if event["event"] == wanted:
                return event
            self.said.append(event)
        sys.exit(f"{self.label} ended early; see {self.log.name}")

    def step(self) -> float:
        """Let it make one step; return its seconds."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.steps.append(self._next("step"))
        return self.steps[-1]["seconds"]

    @property
    def seconds(self) -> list[float]:
        """Return the seconds of each step."""
        return [step["seconds"] for step in self.steps]

    @property
    def memory(self) -> float:
        """Return what the process took at most, in GB."""
        return (self.steps or [self.ready])[-1]["memory"]

    def heard(self, event: str) -> list[dict]:
        """Return what it has reported as `event` between its steps."""
        return [said for said in self.said if said["event"] == event]

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def say(event: str, **facts) -> None:
    """Report to the driver, past whatever else is printed."""
    os.write(int(os.environ[PIPE]), (json.dumps({"event": event, **facts}) + "\n").encode())


def memory(field: str) -> float:
    """Return a field of this process's status in GB: VmRSS (resident now) or VmHWM (its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024**2
    raise RuntimeError(f"no {field} in /proc/self/status")
