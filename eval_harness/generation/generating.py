"""Answers to prompts, in batches, kept batch by batch so that a killed run goes on where it was."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList

from ledpo_plugin.common.files import read_json, write_json
from ledpo_plugin.common.lookup import lookup
from ledpo_plugin.modeling.generate import GumbelNoise, cut_at_stop, no_settings_of_its_own, row_seed
from ledpo_plugin.modeling.padding import padded

from .decoding import Decoding, adapted
from .loading import Loaded
from .warping import Filters, Penalty

FORMAT = 1


def generate(
    loaded: Loaded,
    prompts: Sequence[str],
    decoding: Decoding,
    *,
    seed: int = 0,
    max_new_tokens: int = 256,
    batch_size: int = 8,
    folder: Path | None = None,
    backend: str = "transformers",
) -> list[dict[str, Any]]:
    """Return a model's answer to each prompt, in the order of the prompts.

    A prompt's random stream follows from seed and prompt alone, so that an answer does not depend on the others in its
    batch (but for the rounding of a padded batch, which can turn a near tie).

    Args:
        loaded: the model.
        prompts: user messages of one turn.
        decoding: the settings.
        seed: of the draws.
        max_new_tokens: where an answer is cut off.
        batch_size: prompts at a time, sorted by length.
        folder: keeps finished batches; what is there of the very same call is not generated again.
        backend: "transformers", or "vllm" where that is installed.

    Returns:
        Rows of `instruction`, `output`, `generator`, `ids` (without what ended the answer), `tokens`, `ended`,
        `prompt_tokens`, `seconds` (of its batch, shared out); `beta` where the run has a beta(x), and the value of
        the adapted setting.

    Raises:
        ValueError: the decoding follows beta(x), and the model has none; there is no prompt; or a number is below 1.
        KeyError: the backend is unknown.
        RuntimeError: the backend is not installed.
    """
    if not prompts:
        raise ValueError("There is no prompt to answer. Give one at least.")
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size is {batch_size} and max_new_tokens {max_new_tokens}; set both to 1 or more.")
    answer = lookup(BACKENDS, "backend", backend)
    betas = loaded.betas(prompts) if loaded.per_prompt else None
    values = None if decoding.adaptive is None else _adapted_values(loaded, decoding, betas)
    ids = loaded.encode(prompts)
    order = sorted(range(len(prompts)), key=lambda place: (len(ids[place]), place))
    rows: list[dict[str, Any] | None] = [None] * len(prompts)
    for number, first in enumerate(range(0, len(order), batch_size)):
        part = order[first : first + batch_size]
        part_values = None if values is None else [values[place] for place in part]
        part_ids = [ids[place] for place in part]
        settings = [decoding.settings(), seed, max_new_tokens, backend, part_values]
        key = hashlib.sha256(json.dumps([FORMAT, loaded.identity, *settings, part_ids]).encode()).hexdigest()
        path = None if folder is None else Path(folder) / f"{number:05d}.json"
        kept = read_json(path) if path else None
        if not isinstance(kept, dict) or kept.get("key") != key:
            started = time.monotonic()
            texts = [prompts[place] for place in part]
            answers = answer(loaded, texts, part_ids, decoding, part_values, seed, max_new_tokens)
            kept = {"key": key, "rows": answers, "seconds": time.monotonic() - started}
            if path:
                write_json(path, kept)
        for place, answered in zip(part, kept["rows"], strict=True):
            row = {
                "instruction": prompts[place],
                "output": loaded.tokenizer.decode(answered["ids"], skip_special_tokens=True),
                "generator": loaded.name,
                "ids": answered["ids"],
                "tokens": len(answered["ids"]),
                "ended": answered["ended"],
                "prompt_tokens": len(ids[place]),
                "seconds": kept["seconds"] / len(part),
            }
            row |= {} if betas is None else {"beta": betas[place]}
            row |= {} if values is None else {decoding.adaptive.of: values[place]}
            rows[place] = row
    return rows


def _adapted_values(loaded: Loaded, decoding: Decoding, betas: Sequence[float] | None) -> list[float]:
    """Return each prompt's value of the setting that follows beta(x)."""
    if betas is None:
        raise ValueError(
            f"The decoding's {decoding.adaptive.of} follows beta(x), and {loaded.name} has none. Name a run of "
            "a learned head (beta_mode head or ppl), or remove `adaptive`."
        )
    return adapted(decoding, betas, loaded.head["beta0"])


@torch.no_grad()
def _by_transformers(
    loaded: Loaded,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    values: Sequence[float] | None,
    seed: int,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    pad = loaded.tokenizer.pad_token_id or 0
    ids, mask = padded(prompts, pad, left=True)
    width = ids.shape[1]
    processors = LogitsProcessorList()
    if decoding.repetition_penalty is not None:
        processors.append(Penalty(decoding.repetition_penalty, [width - len(prompt) for prompt in prompts]))
    if decoding.draws:
        processors.append(Filters(decoding, values))
        processors.append(GumbelNoise([row_seed(seed, text) for text in texts]))
    config = GenerationConfig(
        do_sample=False,  # the draw is made by the noise above
        num_beams=decoding.num_beams or 1,
        length_penalty=1.0 if decoding.length_penalty is None else decoding.length_penalty,
        max_new_tokens=max_new_tokens,
        eos_token_id=loaded.stops(),
        pad_token_id=pad,
        use_cache=True,
    )
    inner = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    with no_settings_of_its_own(inner):
        sequences = inner.generate(
            ids.to(loaded.device),
            attention_mask=mask.to(loaded.device),
            generation_config=config,
            logits_processor=processors,
        )
    stops = frozenset(loaded.stops())
    return [cut_at_stop(new.tolist(), stops) for new in sequences[:, width:]]


def _by_vllm(
    loaded: Loaded,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    values: Sequence[float] | None,
    seed: int,
    max_new_tokens: int,
) -> list[dict[str, Any]]:
    """Answer with vLLM. Written after its documentation and never run here, where there is no GPU."""
    try:
        from vllm import SamplingParams
    except ImportError:
        raise RuntimeError("vLLM is not installed here: pip install vllm, or use backend transformers.") from None
    if decoding.method == "beam" or decoding.typical_p is not None:
        raise ValueError("vLLM's generate has no beam search and no typical sampling. Use backend transformers.")
    from .vllm_engine import engine_of

    engine, lora = engine_of(loaded)
    params = []
    for row, text in enumerate(texts):
        settings = decoding if values is None else replace(decoding, **{decoding.adaptive.of: values[row]})
        params.append(
            SamplingParams(
                temperature=(1.0 if settings.temperature is None else settings.temperature) if settings.draws else 0.0,
                top_p=settings.top_p or 1.0,
                top_k=settings.top_k or 0,
                min_p=settings.min_p or 0.0,
                repetition_penalty=settings.repetition_penalty or 1.0,
                max_tokens=max_new_tokens,
                stop_token_ids=loaded.stops(),
                seed=row_seed(seed, text) if settings.draws else None,
            )
        )
    inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = engine.generate(inputs, params, lora_request=lora, use_tqdm=False)
    return [cut_at_stop(list(output.outputs[0].token_ids), frozenset(loaded.stops())) for output in outputs]


BACKENDS = {"transformers": _by_transformers, "vllm": _by_vllm}
