"""A second small base model that needs no network: SmolLM2-135M-Instruct with five of its thirty layers taken out."""

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ledpo_plugin.quickstart import model as quickstart

# What is left when the layer that hurts least is taken out, five times; see HOW.
KEPT_LAYERS = (0, 1, 2, *range(7, 26), 27, 28, 29)
NAME = f"{quickstart.NAME}-{len(KEPT_LAYERS)}-layers"
CHANCE_SHARE = 0.75  # a model whose loss on prose is above this share of a uniform guess is taken to be broken
CARD = """# {name}

Made on this machine by ledpo: {source} (its folder is beside this one) with {dropped} of its {layers} layers taken
out. **Not a published model, not trained after the cut**: a smaller, worse base model, to ask whether a result depends
on the base model where there is no network.

- Layers kept, counted from 0: {kept}.
- Loss on a paragraph of plain prose: {nats:.2f} nats per token (the whole model: {whole:.2f}).
- How the layers were chosen: {how}
- Licence: that of SmolLM2 (Apache-2.0).
"""
HOW = (
    "one at a time, each time the layer without which the answers to twelve instructions of alpaca_en_demo lost least "
    "likelihood. Nats per token of these answers: 1.66 whole, 2.36 with these 25 layers, 3.56 with five fewer."
)


def ensure_pruned(source: Path, folder: Path) -> Path:
    """Return `folder` holding the pruned model, made of the model in `source` if it is absent, outdated or damaged.

    Raises:
        ModelError: there is no room, or what came out does not work.
    """
    if is_valid(folder):
        print(f"Model: {folder} (already there, checksums match)", flush=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < 0.6e9:
        raise quickstart.ModelError(
            f"{folder.parent} has {free / 1e9:.1f} GB free; {NAME} needs 0.6 GB. Make room and try again."
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        made = Path(temporary) / NAME
        nats = _prune(source, made)
        quickstart.move_into_place(made, folder)
    print(f"Model: {folder} ({len(KEPT_LAYERS)} layers of {source.name}, {nats:.2f} nats/token on prose)", flush=True)
    return folder


def is_valid(folder: Path) -> bool:
    """Return whether `folder` was made by this version of this module and has not changed since."""
    try:
        kept = json.loads((folder / quickstart.MARKER).read_text(encoding="utf-8"))["kept_layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return kept == list(KEPT_LAYERS) and quickstart.is_valid(folder)


def keep_layers(model: Any, kept: tuple[int, ...]) -> Any:
    """Take all other decoder layers out of a causal language model, in place; weights and config agree afterwards."""
    import torch

    layers = [model.model.layers[i] for i in kept]
    for number, layer in enumerate(layers):
        layer.self_attn.layer_idx = number  # the place in the key-value cache
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    return model


def prose_loss(model: Any, tokenizer: Any) -> float:
    """Return the mean negative log-likelihood of plain prose, in nats per token."""
    import torch

    ids = tokenizer(quickstart.PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids, labels=ids).loss.item()


def _prune(source: Path, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    layers, whole = model.config.num_hidden_layers, prose_loss(model, tokenizer)
    keep_layers(model, KEPT_LAYERS).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Measured on what a trainer will load, not on what was saved.
    nats = prose_loss(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer)
    if not nats < CHANCE_SHARE * math.log(model.config.vocab_size):
        raise quickstart.ModelError(
            f"{NAME} predicts plain prose with {nats:.2f} nats per token: its weights came out wrong, perhaps with "
            f"another version of transformers than constraints.txt pins (`make setup`)."
        )
    card = CARD.format(
        name=NAME,
        source=source.name,
        layers=layers,
        dropped=layers - len(KEPT_LAYERS),
        kept=", ".join(map(str, KEPT_LAYERS)),
        nats=nats,
        whole=whole,
        how=HOW,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_marker(source, folder)
    return nats


def _write_marker(source: Path, folder: Path) -> None:
    """Write the quickstart's marker, so that its check of checksums serves here too."""
    marker = json.loads((source / quickstart.MARKER).read_text(encoding="utf-8"))
    marker |= {
        "kept_layers": list(KEPT_LAYERS),
        "files": {path.name: quickstart.sha256_of(path) for path in sorted(folder.iterdir())},
    }
    marker.pop("checks", None)  # they are the whole model's
    (folder / quickstart.MARKER).write_text(json.dumps(marker, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
