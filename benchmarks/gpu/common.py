"""What the steps of the GPU run share: random models, data of exact lengths, results that survive."""

import gc
import json
import os
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any

STEPS = ("correct", "speed", "kernels", "study", "rollouts")  # in the order of their value
# Shapes of published models (their config.json). Weights are random: a step's time and memory do not depend on them.
SHAPES = {
    "tiny": {"kind": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
    "qwen2.5-0.5b": {"kind": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
                     "tie_word_embeddings": True},
    "qwen2.5-7b": {"kind": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                   "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                   "tie_word_embeddings": False},
    "llama-3-8b": {"kind": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                   "tie_word_embeddings": False},
}  # fmt: skip
TEMPLATE_TOKENS = 48  # what the template adds to a pair's text, at most


class Results:
    """A step's rows, written to its JSON file after each: what is done survives a cut."""

    def __init__(self, path: Path, **facts: Any):
        self.path, self.facts, self.rows = path, facts, []
        self.begin = time.perf_counter()
        self.write(complete=False)

    def write(self, complete: bool) -> None:
        """Replace the file as a whole."""
        content = {**self.facts, "complete": complete, "seconds": time.perf_counter() - self.begin, "rows": self.rows}
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(unfinished, self.path)

    def measure(self, case: dict[str, Any], measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Add a row: the case and what was measured, or the error that ended it. Later cases go on."""
        begin = time.perf_counter()
        try:
            row = {**case, **measured()}
        except Exception as error:  # a case that fails is a result; the others must not be lost with it
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            row = {**case, "error": f"{type(error).__name__}: {str(error)[:600]} ({place})"}
        row["took"] = time.perf_counter() - begin
        self.rows.append(row)
        self.write(complete=False)
        free()
        print(json.dumps({key: value for key, value in row.items() if not isinstance(value, (list, dict))}), flush=True)
        return row


def now() -> float:
    """Return the time, in seconds, once the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def free() -> None:
    """Give the memory of what is no longer used back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def write_model(folder: Path, shape: str, positions: int = 16384, weights: bool = False) -> Path:
    """Write the configuration of a shape and a byte-level tokenizer (a token a byte of ASCII).

    Args:
        folder: where to.
        shape: a name of `SHAPES`.
        positions: the longest row that the model takes.
        weights: write random weights, too; else whoever trains makes its own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    told = dict(SHAPES[shape])
    kind = {"llama": LlamaConfig, "qwen2": Qwen2Config}[told.pop("kind")]
    ids = {"bos_token_id": vocab["<|im_start|>"], "eos_token_id": vocab["<|im_end|>"]}
    config = kind(**told, **ids, pad_token_id=vocab["<|endoftext|>"], max_position_embeddings=positions)
    config.architectures = [kind.__name__.replace("Config", "ForCausalLM")]
    config.save_pretrained(folder)
    if weights:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def write_pairs(folder: Path, count: int, tokens: int, seed: int = 1) -> list[tuple[int, int, int]]:
    """Write pairs of which the longer side has `tokens` tokens, half of them the prompt's.

    Returns:
        Per pair the tokens of prompt, chosen and rejected answer (without the template's).
    """
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz "
    prompt = max(4, tokens // 2 - TEMPLATE_TOKENS)

    def text(length: int) -> str:
        return "".join(rng.choice(letters) for _ in range(length - 1)) + "."

    rows, lengths = [], []
    for number in range(count):
        answers = [max(4, tokens // 2), max(4, int(tokens // 2 * rng.uniform(0.5, 1)))]
        answers = answers if number % 2 else answers[::-1]
        sides = {
            side: {"from": "gpt", "value": text(n)} for side, n in zip(("chosen", "rejected"), answers, strict=True)
        }
        rows.append({"conversations": [{"from": "human", "value": text(prompt)}], **sides})
        lengths.append((prompt, *answers))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    labelled = [
        {"conversations": [*row["conversations"], row["chosen" if i % 2 else "rejected"]], "label": bool(i % 2)}
        for i, row in enumerate(rows)
    ]
    (folder / "labelled.json").write_text(json.dumps(labelled))
    tagged = {"file_name": "labelled.json", "formatting": "sharegpt"}
    tagged["columns"] = {"messages": "conversations", "kto_tag": "label"}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry, "labelled": tagged}))
    return lengths


def recipe(model: Path, data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return a recipe of a randomly initialised model; `changes` replace keys, a value of None drops one."""
    told = {
        "model_name_or_path": str(model),
        "train_from_scratch": True,
        "template": "chatml",
        "stage": "ledpo",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset": "pairs",
        "dataset_dir": str(data),
        "cutoff_len": 16384,
        "overwrite_cache": True,
        "output_dir": str(output),
        "overwrite_output_dir": True,
        "disable_shuffling": True,
        "pref_beta": 0.1,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "dataloader_num_workers": 0,
        "seed": 11,
    }
    return {key: value for key, value in (told | changes).items() if value is not None}


def train(told: dict[str, Any], callbacks: list | None = None) -> Path:
    """Run a recipe in this process through LLaMA-Factory's own entry; return its output folder."""
    from llamafactory.train.tuner import run_exp

    from ledpo_plugin.host.data import templates_kept

    with templates_kept(), born_on_device():
        run_exp(dict(told), callbacks=callbacks or [])
    return Path(told["output_dir"])


@contextmanager
def born_on_device() -> Iterator[None]:
    """Make random weights on the GPU, where there is one, and the same ones whenever a model of that shape is made."""
    import torch
    from llamafactory.model import loader

    stock = loader.AutoModelForCausalLM

    class Born(stock):
        """The host's model class with weights that a fixed seed decides."""

        @classmethod
        def from_config(cls, config, **kwargs):
            torch.manual_seed(7)
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                return stock.from_config(config, **kwargs)

    loader.AutoModelForCausalLM = Born
    try:
        yield
    finally:
        loader.AutoModelForCausalLM = stock


def log_of(output: Path, key: str) -> list[float]:
    """Return every logged value of `key` of a finished run, in order."""
    rows = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [row[key] for row in rows if key in row]


def provenance(commit: str) -> dict[str, Any]:
    """Return the card, driver, versions, date and commit of this run."""
    import platform
    import subprocess
    from datetime import datetime

    import torch

    from ledpo_plugin.common.run_record import package_versions

    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit}
    found |= {"python": platform.python_version(), "cores": os.cpu_count(), "versions": package_versions()}
    found["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if torch.cuda.is_available():
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        found["cuda"] = torch.version.cuda
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1024**3
    return found
