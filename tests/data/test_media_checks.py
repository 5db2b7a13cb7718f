"""Rows whose image tokens were cut by cutoff_len, made by the host's own code, are dropped and named."""

from types import SimpleNamespace

import pytest
from datasets import Dataset

from ledpo_plugin.data.cut_media import REASON, media_fault
from ledpo_plugin.data.unusable import drop_unusable
from ledpo_plugin.host import contract

CUTOFF = 300


@pytest.fixture(scope="module")
def vision(tiny):
    """LLaMA-Factory's llava template with a tokenizer that has its token, and a processor of tiny images (4 tokens)."""
    from llamafactory.data.template import TEMPLATES
    from transformers import AutoTokenizer, CLIPImageProcessor

    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = SimpleNamespace(
        image_processor=CLIPImageProcessor(**sizes),
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )
    return TEMPLATES["llava"], tokenizer, processor


def _rows(vision, prompts: list[str]) -> Dataset:
    """Return pairs as the host tokenizes them."""
    from llamafactory.data.processor.pairwise import PairwiseDatasetProcessor
    from PIL import Image

    template, tokenizer, processor = vision
    arguments = SimpleNamespace(cutoff_len=CUTOFF)
    made = PairwiseDatasetProcessor(template=template, tokenizer=tokenizer, processor=processor, data_args=arguments)
    answers = [{"role": "assistant", "content": text} for text in ("good", "bad")]
    rows = []
    for prompt in prompts:
        images = [Image.new("RGB", (28, 28))] * prompt.count("<image>")
        turn = [{"role": "user", "content": prompt}]
        found = made._encode_data_example(turn, answers, None, None, images, [], [])
        names = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
        rows.append(dict(zip(names, found, strict=True)) | {"images": images})
    return Dataset.from_list(rows)


def test_a_row_without_all_tokens_of_its_image_is_dropped_and_named(vision):
    pieces = contract.host_api()
    marks = {"images": pieces.IMAGE_PLACEHOLDER, "videos": pieces.VIDEO_PLACEHOLDER, "audios": pieces.AUDIO_PLACEHOLDER}
    long = "x" * 400
    rows = _rows(vision, ["<image>what", f"{long}<image>", f"<image>{long}", long, f"<image>{long}<image>"])
    fault = media_fault(*vision, CUTOFF, marks)
    # Whole; its image behind the cut; its image before the cut; no image; one of two behind the cut.
    assert [fault(row) for row in rows] == [None, REASON, None, None, REASON]
    said = []
    kept = drop_unusable(rows, "train", "pairs", said.append, fault)
    assert len(kept) == 3
    assert said == [f"Dropped 2 of 5 rows of the train dataset: 2 {REASON}."]
