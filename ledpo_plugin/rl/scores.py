"""What a model says of given answers, token by token: the one pass that rollouts and updates are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ledpo_plugin.modeling.forward import OURS
from ledpo_plugin.modeling.logit_positions import Plan, plan_of_rows
from ledpo_plugin.modeling.output_layer import output_layer
from ledpo_plugin.modeling.padding import answered_prompts
from ledpo_plugin.modeling.scoring import scored


@dataclass(frozen=True)
class TokenScores:
    """A pass over `R` answers of at most `T` tokens; what was not asked for is None."""

    logps: Tensor  # [R, T], fp32, of the answer's tokens, 0 behind its end
    states: Tensor | None = None  # [R, T, d], the hidden state that predicts each token, 0 behind the answer's end
    hidden: Tensor | None = None  # [R, d], last prompt token, detached
    prompt_nll: Tensor | None = None  # [R], mean over the prompt's tokens, detached


def answers_batch(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, *, plan_prompts: bool = False
) -> dict[str, Tensor]:
    """Return `R` prompts, each followed by its answer, padded on the right, with labels and the plan of a pass.

    Args:
        prompts: token ids.
        answers: token ids, at least one each.
        pad_id: any id; padded positions are masked.
        plan_prompts: also plan the prompts' own tokens, for their perplexity.
    """
    rows = answered_prompts(prompts, answers, pad_id)
    labels = rows.pop("labels")
    return {**rows, **plan_of_rows(rows["input_ids"], labels, rows["attention_mask"], plan_prompts).to_batch()}


def score_answers(
    model: nn.Module, batch: Mapping[str, Any], wants: frozenset[str] = frozenset(), temperature: float = 1.0
) -> TokenScores:
    """Run `model` over a batch of `answers_batch` and return log-probabilities of every token of the answers.

    Args:
        model: a causal language model, wrapped or not.
        batch: on the model's device.
        wants: of "states", "hidden", "prompt_nll".
        temperature: the log-probabilities are those of sampling at this temperature.

    Raises:
        ValueError: the model does not call its output layer, or that has a bias and the temperature is not 1.
    """
    layer = output_layer(model)
    if temperature != 1 and getattr(layer, "bias", None) is not None:
        raise ValueError(
            f"temperature: {temperature:g} cannot be taken into account with {type(model).__name__}, whose output "
            "layer has a bias. Set temperature: 1.0."
        )
    plan = Plan.from_batch(batch)
    inputs = {key: value for key, value in batch.items() if not key.startswith(OURS)}
    inputs |= {"return_dict": True, "use_cache": False}
    scores = scored(model, inputs, layer, plan, wants, temperature=temperature)
    if scores.token_logps is None:
        raise ValueError(
            f"{type(model).__name__} did not call its output layer, so that predictions at single positions cannot "
            "be read. This model cannot be trained on rollouts."
        )
    prompt_nll = None
    if scores.prompt_logps is not None:
        own = (plan.prompt_place < plan.prompt_target.shape[0]).sum(1).clamp(min=1)
        prompt_nll = -in_rows(scores.prompt_logps, plan.prompt_place).sum(1) / own
    return TokenScores(
        logps=in_rows(scores.token_logps, plan.place),
        states=None if scores.states is None else in_rows(scores.states, plan.place),
        hidden=scores.hidden,
        prompt_nll=prompt_nll,
    )


def in_rows(values: Tensor, place: Tensor) -> Tensor:
    """Return `[R, T, ...]` from `[N, ...]`: every answer's values from its first token on, 0 behind its end."""
    return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[place]
