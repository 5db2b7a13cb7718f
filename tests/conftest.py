"""A tiny random model with a real tokenizer and real-looking data, and ways to run the real LLaMA-Factory on them."""

import json
import os
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

# A test may use another's helpers, in whichever folder that stands; names of files are unique.
sys.path += sorted(str(folder) for folder in Path(__file__).parent.iterdir() if folder.is_dir())

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LEDPO_CACHE"] = tempfile.mkdtemp(prefix="ledpo-tests-")  # nothing of a test outlives it, or precedes it
os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "WARN")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads; bits depend on their number

WORDS = (
    "river stone light garden winter bridge copper signal paper engine cloud forest answer question number letter "
    "silver market morning island window thunder candle"
).split()

# Each file runs on one worker as a whole; those that take minutes start first, so that none of them is left over at the
# end while the other workers have nothing to do. (With --no-loadscope-reorder, which keeps the order of collection.)
LONGEST_FIRST = ("test_webui.py", "test_webui_experiments.py", "test_rl_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order is otherwise as it was."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def _sentence(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def build_model(folder: Path) -> None:
    """Write the tiny model and its tokenizer into a folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "<|endoftext|>", "<|im_start|>", "<|im_end|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=vocab["<|im_start|>"],
        eos_token_id=vocab["<|im_end|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def build_data(folder: Path) -> None:
    """Write the tiny data sets into a folder."""
    rng = random.Random(3)
    pairs, labelled, instructions = [], [], []
    for _ in range(64):
        turn = [{"from": "human", "value": _sentence(rng, 2, 8)}]
        good, bad = _sentence(rng, 2, 7), _sentence(rng, 2, 7)
        pairs.append(
            {"conversations": turn, "chosen": {"from": "gpt", "value": good}, "rejected": {"from": "gpt", "value": bad}}
        )
        kind = rng.random() < 0.5
        answer = {"role": "assistant", "content": good if kind else bad}
        labelled.append({"messages": [{"role": "user", "content": turn[0]["value"]}, answer], "label": kind})
        instructions.append({"instruction": turn[0]["value"], "input": "", "output": good})
    sharegpt = {"formatting": "sharegpt", "ranking": True}
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    info = {
        "pairs": {"file_name": "pairs.json", **sharegpt, "columns": columns},
        "heldout": {"file_name": "heldout.json", **sharegpt, "columns": columns},
        "labelled": {
            "file_name": "labelled.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
            },
        },
        "instructions": {"file_name": "instructions.json"},
    }
    for name, rows in (
        ("pairs", pairs[:48]),
        ("heldout", pairs[48:]),
        ("labelled", labelled),
        ("instructions", instructions),
    ):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps(info))


@dataclass(frozen=True)
class Tiny:
    """Paths of the tiny model and data, and recipes over them."""

    model: Path
    data: Path

    def recipe(self, output: Path, **changes: Any) -> dict[str, Any]:
        """Return a recipe of a few quick steps; `changes` replace keys, a value of None drops one."""
        recipe = {
            "model_name_or_path": str(self.model),
            "stage": "ledpo",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": 4,
            "lora_target": "all",
            "dataset": "labelled" if changes.get("stage") in ("kto", "ledpo_kto") else "pairs",
            "dataset_dir": str(self.data),
            "template": "chatml",
            "cutoff_len": 160,
            "output_dir": str(output),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 4,
            "learning_rate": 5.0e-3,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "seed": 11,
            "disable_gradient_checkpointing": True,
            "dataloader_num_workers": 0,
        } | changes
        return {key: value for key, value in recipe.items() if value is not None}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """The tiny model and data, made once."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "data").mkdir()
    build_model(root / "model")
    build_data(root / "data")
    return Tiny(root / "model", root / "data")


def history(output: Path) -> list[dict[str, Any]]:
    """Return the log history of a finished run."""
    return json.loads((Path(output) / "trainer_state.json").read_text())["log_history"]


def series(output: Path, key: str) -> list[float]:
    """Return every logged value of `key`, in order."""
    return [row[key] for row in history(output) if key in row]


def untied(tiny, folder: Path, **changes) -> Path:
    """Write a random model with the tiny one's tokenizer and embeddings that are not tied; return its folder.

    Stage rm cannot save a whole model with tied ones (LLaMA-Factory 0.9.5 with transformers 5 stops in safetensors).
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(8)
    config = AutoConfig.from_pretrained(tiny.model, tie_word_embeddings=False, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.model).save_pretrained(folder)
    return folder


def train(recipe: dict[str, Any]) -> Path:
    """Run a recipe in this process through LLaMA-Factory's own entry; return its output folder."""
    from llamafactory.train.tuner import run_exp

    from ledpo_plugin.host.data import templates_kept

    with templates_kept():
        run_exp(dict(recipe))
    return Path(recipe["output_dir"])


def cli(*arguments: str, env: dict[str, str] | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run the stock `llamafactory-cli` in a process of its own."""
    bin_folder = str(Path(sys.executable).parent)
    path = {"PATH": bin_folder + os.pathsep + os.environ["PATH"]}  # the host starts `torchrun` by name
    command = [f"{bin_folder}/llamafactory-cli", *arguments]
    return subprocess.run(
        command, env=os.environ | path | (env or {}), capture_output=True, text=True, timeout=timeout, check=False
    )


def write_recipe(path: Path, recipe: dict[str, Any]) -> str:
    """Write a recipe as YAML and return its path."""
    path.write_text(yaml.safe_dump(recipe))
    return str(path)
