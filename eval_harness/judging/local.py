"""A model of this process as judge: the probabilities of its two verdicts, without writing a word."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from .judge import VERDICTS, Judge
from .openai_client import Usage


class LocalModel:
    """A loaded model, with the ids of its verdicts."""

    def __init__(self, judge: Judge, usage: Usage):
        """Load the model.

        Raises:
            ValueError: a verdict is no single token of the model's, or the model cannot be loaded as asked.
        """
        from eval_harness.generation.loading import load

        self.judge, self.usage = judge, usage
        self.loaded = load(
            judge.model,
            template=judge.template,
            adapter=judge.adapter,
            default_system=judge.default_system,
            trust_remote_code=judge.trust_remote_code,
        )
        self.ids = []
        for verdict in VERDICTS:
            ids = self.loaded.tokenizer.encode(verdict, add_special_tokens=False)
            if len(ids) != 1:
                raise ValueError(
                    f"The judge {judge.name}: the verdict {verdict!r} is {len(ids)} tokens of {judge.model}, so that "
                    "its probability cannot be read at one place. Use another model, or serve it and use kind: http."
                )
            self.ids += ids

    def ask_all(
        self, questions: Sequence[str], keep: Callable[[int, dict[str, Any], dict[str, Any]], None]
    ) -> dict[int, str]:
        """Ask all questions, as `Endpoint.ask_all`; questions longer than the model's context have no answer."""
        import torch

        from ledpo_plugin.modeling.padding import padded

        started = time.monotonic()
        loaded, gaps = self.loaded, {}
        prompts = loaded.encode(questions)
        longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        order = []
        for place in sorted(range(len(prompts)), key=lambda place: len(prompts[place])):
            if longest is not None and len(prompts[place]) > longest:
                gaps[place] = f"longer than the judge's context ({len(prompts[place])} of {longest} tokens)"
            else:
                order.append(place)
        for first in range(0, len(order), self.judge.batch_size):
            part = order[first : first + self.judge.batch_size]
            ids, mask = padded([prompts[place] for place in part], loaded.tokenizer.pad_token_id or 0, left=True)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            with torch.no_grad():
                logits = loaded.model(
                    input_ids=ids.to(loaded.device),
                    attention_mask=mask.to(loaded.device),
                    position_ids=positions.to(loaded.device),
                    logits_to_keep=1,
                ).logits[:, -1]
            found = logits.float().log_softmax(1)[:, self.ids].tolist()
            for place, logprobs in zip(part, found, strict=True):
                top = [{"token": t, "logprob": value} for t, value in zip(VERDICTS, logprobs, strict=True)]
                content = VERDICTS[int(logprobs[1] > logprobs[0])]
                self.usage.add(calls=1, tokens_in=len(prompts[place]))
                keep(place, {"content": content, "logprobs": [top]}, {"in": len(prompts[place]), "out": 0})
        self.usage.add(seconds=time.monotonic() - started)
        return dict(sorted(gaps.items()))

    def close(self) -> None:
        """Nothing is open."""
