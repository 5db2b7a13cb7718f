"""Pairs and rated answers with images, on a tiny random Qwen2-VL: what the documents say of images, by running it."""

import importlib
import json
import math
import random

import public_inputs as inputs
import pytest
import torch
from conftest import Tiny, series, train

from ledpo_plugin.host.contract import TUNER
from ledpo_plugin.modeling.forward import forward_rows, kinds_of_tokens
from ledpo_plugin.workflow import build_trainer

SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


@pytest.fixture(scope="module")
def seeing(tiny, tmp_path_factory) -> Tiny:
    """A tiny random Qwen2-VL with its processor, and data of which every other row has an image, not the first."""
    from PIL import Image
    from transformers import (
        AutoTokenizer,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    root = tmp_path_factory.mktemp("seeing")
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *SPECIAL]})
    start, _, image, video = (tokenizer.convert_tokens_to_ids(token) for token in SPECIAL)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(root / "model")
    Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=tokenizer.chat_template,
    ).save_pretrained(root / "model")
    (root / "data").mkdir()
    Image.new("RGB", (56, 56), (200, 30, 30)).save(root / "data" / "red.png")
    rng, rows = random.Random(1), {"pairs": [], "rated": [], "whole": []}
    for i in range(16):
        asked = ("<image>" if i % 2 else "") + inputs.say(rng)
        images = {"images": ["red.png"] if i % 2 else []}
        rows["pairs"].append(inputs.pair(rng, [inputs.human(asked)], **images))
        rows["rated"].append(inputs.labelled(rng, i % 3 == 0) | images)
        rows["rated"][-1]["messages"][0]["content"] = asked
        sides = {side: [inputs.user(asked), inputs.assistant(inputs.say(rng))] for side in ("chosen", "rejected")}
        rows["whole"].append(sides | images)
    entries = {"pairs": inputs.PAIRS, "rated": inputs.LABELLED, "whole": inputs.PAIRS}
    for name, entry in entries.items():
        columns = {"chosen": "chosen", "rejected": "rejected"} if name == "whole" else entry["columns"]
        inputs.write_data(root / "data", name, entry | {"columns": columns | {"images": "images"}}, rows[name])
    return Tiny(root / "model", root / "data")


def _recipe(seeing, tmp_path, dataset, **changes):
    own = {"template": "qwen2_vl", "media_dir": str(seeing.data), "max_steps": 2, "per_device_train_batch_size": 2}
    return seeing.recipe(tmp_path, cutoff_len=256, **(own | changes)) | {"dataset": dataset}


def test_pairs_with_images_train_as_in_the_stock_stage(seeing, tmp_path):
    stock = train(_recipe(seeing, tmp_path / "stock", "pairs", stage="dpo", pref_beta=0.1))
    ours = train(_recipe(seeing, tmp_path / "ours", "pairs", beta_mode="fixed", pref_beta=0.1))
    assert series(ours, "loss") == pytest.approx(series(stock, "loss"), abs=2e-6)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("stage", "dataset"), [("ledpo", "pairs"), ("ledpo", "whole"), ("ledpo_kto", "rated")])
def test_images_train_from_a_stream(seeing, tmp_path, stage, dataset, workers):
    more = {"streaming": True, "buffer_size": 4, "dataloader_num_workers": workers}
    first = series(train(_recipe(seeing, tmp_path / "run", dataset, stage=stage, **more)), "loss")[0]
    assert first == pytest.approx(0.5 if stage == "ledpo_kto" else math.log(2), abs=1e-5)


def test_whole_dialogues_with_images_train(seeing, tmp_path):
    assert series(train(_recipe(seeing, tmp_path / "run", "whole")), "loss")[0] == pytest.approx(math.log(2), abs=1e-5)


def test_rated_answers_with_images_train(seeing, tmp_path):
    """Stock LLaMA-Factory stops: mm_token_type_ids is missing."""
    losses = series(train(_recipe(seeing, tmp_path / "run", "rated", stage="ledpo_kto")), "loss")
    assert losses[0] == pytest.approx(0.5, abs=1e-5)
    assert len(losses) == 2


def test_positions_made_anew_are_those_of_the_collator(seeing, tmp_path):
    """The neighbour's answers replaced by the own ones: both passes must say the same of them."""
    arguments = importlib.import_module(TUNER).get_train_args(
        _recipe(seeing, tmp_path / "run", "rated", stage="ledpo_kto", per_device_train_batch_size=4)
    )
    trainer, _ = build_trainer(*arguments[:4])
    for batch in list(trainer.get_train_dataloader())[:3]:
        own = {key: value for key, value in batch.items() if not key.startswith("kl_") and key != "kto_tags"}
        same = own | {f"kl_{key}": own[key] for key in ("input_ids", "attention_mask", "labels")}
        again = trainer.preference_loss.mismatched(trainer.model, same)
        assert "position_ids" not in again
        assert (again["mm_token_type_ids"] == 1).any()
        with torch.no_grad():
            expected, found = (forward_rows(trainer.model.eval(), rows).logps for rows in (own, again))
        assert torch.allclose(found, expected, atol=1e-4)


def test_models_without_images_are_asked_for_nothing_more(tiny):
    from transformers import AutoModelForCausalLM

    assert kinds_of_tokens(AutoModelForCausalLM.from_pretrained(tiny.model), torch.zeros(1, 3, dtype=torch.long)) == {}


def test_no_reference_is_kept_of_data_with_images_in_any_row(seeing, tmp_path):
    """Row 0 has none: other pictures with the same tokens would get the values of these."""
    arguments = importlib.import_module(TUNER).get_train_args(_recipe(seeing, tmp_path / "run", "pairs"))
    trainer, _ = build_trainer(*arguments[:4])
    rows = json.loads((seeing.data / "pairs.json").read_text())
    assert not rows[0]["images"]
    assert trainer.caches == []
