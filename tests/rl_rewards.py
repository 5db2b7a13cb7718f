"""Reward functions for the tests of rollouts; a run names them as `rl_rewards:NAME`."""

import os
from pathlib import Path


def lower_case(prompts, responses):
    """Return the share of small ASCII letters."""
    return [sum(c.isascii() and c.islower() for c in text) / max(1, len(text)) for text in responses]


def lower_case_with_gaps(prompts, responses):
    """As `lower_case`, but of answers with an odd number of characters nothing is known."""
    scores = lower_case(prompts, responses)
    return [None if len(text) % 2 else score for text, score in zip(responses, scores, strict=True)]


def breaks_while_told(prompts, responses):
    """As `lower_case`, but it raises from its third call on while the file named by RL_BREAK is there."""
    breaks_while_told.calls += 1
    if breaks_while_told.calls > 2 and Path(os.environ["RL_BREAK"]).exists():
        raise ConnectionError("the scorer is gone")
    return lower_case(prompts, responses)


breaks_while_told.calls = 0
