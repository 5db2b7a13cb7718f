"""A model behind LLaMA-Factory's own OpenAI-compatible server, for as long as it is needed, on this machine only."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ledpo_plugin.common.files import tail
from ledpo_plugin.experiments.processes import die_with_parent, stock_command

WAIT = 300.0  # seconds until the model must be there
HOST = "127.0.0.1"


@contextmanager
def served(arguments: Mapping[str, Any], port: int, log: Path) -> Iterator[None]:
    """Serve a model with `llamafactory-cli api` on 127.0.0.1 while the block runs.

    Args:
        arguments: of the server, as model_name_or_path, template, adapter_name_or_path.
        port: a free one. It is not chosen here: judgements are kept under the address that gave them.
        log: where what the server says is added.

    Raises:
        OSError: the port is taken.
        RuntimeError: the server ended, or did not answer in time; the message has the last lines of its log.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"Port {port} of {HOST} is taken ({error.strerror}). Give the judge another base_url."
            ) from None
    given = [part for key, value in arguments.items() if value is not None for part in (f"--{key}", str(value))]
    command = [stock_command(), "api", *given]
    environ = os.environ | {"API_HOST": HOST, "API_PORT": str(port)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environ,
            preexec_fn=die_with_parent,
        )
        try:
            _wait(process, f"http://{HOST}:{port}/v1/models", log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = "\n".join(tail(log, 12))
            raise RuntimeError(
                f"llamafactory-cli api ended with status {process.returncode}; its log ends with\n{lines}"
            )
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"llamafactory-cli api did not answer within {WAIT:g} s; its log: {log}")
