"""Runs on a Ray cluster: each is one task with its own CPUs, GPUs and memory; results go to storage all nodes share."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ledpo_plugin.experiments.definition.experiment import Resources
from ledpo_plugin.experiments.results.store import NODE, WORKER_LOG

from .tasks import NotEnough, Task, worker_command, worker_environ

POLL = 0.2  # seconds


def _work(command: list[str], environ: dict[str, str], cwd: str, log: str) -> int:
    """Run a worker on the node that Ray chose; end it when Ray cancels the task."""
    import ray

    environ = environ | {NODE: f"{os.uname().nodename} {ray.get_runtime_context().get_node_id()[:12]}"}
    with open(log, "ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=os.environ | environ, cwd=cwd
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()  # its training dies with it
                process.wait()


class RayLauncher:
    """Workers as tasks of an existing Ray cluster. Ray queues what there is no room for."""

    def __init__(self, resources: Resources, *, address: str | None = None, jobs: int | None = None):
        """Connect to the cluster.

        Args:
            resources: what one run needs.
            address: of the cluster; left out: $RAY_ADDRESS, else the one that runs on this machine.
            jobs: runs side by side at most; left out: as many as the cluster has room for.

        Raises:
            NotEnough: there is no cluster, or none of its nodes has room for a run.
            RuntimeError: Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise RuntimeError("Ray is not installed here: pip install 'ledpo-plugin[ray]' on every node.") from None
        self.ray = ray
        if not ray.is_initialized():
            try:
                ray.init(address=address or os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False)
            except ConnectionError as error:
                raise NotEnough(
                    f"No Ray cluster was found ({error}). Start one (`ray start --head`, and `ray start --address=...` "
                    f"on the other nodes), or give --ray-address."
                ) from None
        self._require_room(resources)
        self.slots = 10_000 if jobs is None else jobs
        self.running: dict[Any, str] = {}

    def _require_room(self, resources: Resources) -> None:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for node in nodes:
            enough = node.get("CPU", 0) >= resources.cpus and node.get("GPU", 0) >= resources.gpus
            if enough and node.get("memory", 0) >= resources.memory_gb * 1e9:
                return
        rooms = "; ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / 1e9:.1f} GB"
            for node in nodes
        )
        raise NotEnough(
            f"A run needs {resources.cpus} CPU(s), {resources.gpus:g} GPU(s) and {resources.memory_gb:g} GB on one "
            f"node, and no node of the cluster has that (nodes: {rooms or 'none'}). Add a node, or lower resources in "
            f"experiment.yaml."
        )

    def start(self, task: Task) -> None:
        """Give a task to the cluster."""
        task.folder.mkdir(parents=True, exist_ok=True)
        remote = self.ray.remote(_work).options(
            num_cpus=task.resources.cpus,
            num_gpus=task.resources.gpus,
            memory=int(task.resources.memory_gb * 1e9),
            max_retries=0,
            name=task.name,
        )
        reference = remote.remote(
            worker_command(task.folder),
            worker_environ(task.resources),
            str(Path.cwd()),
            str((task.folder / WORKER_LOG).absolute()),
        )
        self.running[reference] = task.name

    def finished(self) -> dict[str, int]:
        """Return name -> exit status of the tasks that ended since the last call; 1 where Ray lost the node."""
        if not self.running:
            return {}
        ready, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        ended = {}
        for reference in ready:
            name = self.running.pop(reference)
            try:
                ended[name] = self.ray.get(reference)
            except self.ray.exceptions.RayError:
                ended[name] = 1
        return ended

    def stop(self) -> None:
        """Cancel what runs or waits."""
        for reference in self.running:
            self.ray.cancel(reference, force=False)
        deadline = time.monotonic() + 10
        while self.running and time.monotonic() < deadline:
            self.finished()
            time.sleep(POLL)
        self.running.clear()
