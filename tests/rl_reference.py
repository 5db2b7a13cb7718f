"""TRL 0.24's arithmetic of PPO, GRPO and RLOO, run as installed, and made-up rollouts to run it on."""

import inspect
import textwrap
from collections import defaultdict, deque
from types import SimpleNamespace

import llamafactory.train.dpo.trainer  # noqa: F401 before trl: its import of mergekit fails otherwise
import numpy as np
import torch
from trl.trainer import ppo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

TIGHT = {"rtol": 1e-9, "atol": 1e-12}  # float64 against float64
TRL_WHITENED = {"rtol": 1e-6, "atol": 1e-7}  # TRL's masked_var rounds n / (n - 1) to fp32
LENGTHS = (7, 4, 1, 0, 6, 2)  # a full answer, one token, none
TRL_LENGTHS = (7, 4, 1, 6, 2)  # TRL has no answer without tokens: the index of its last one would be -1


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def close(ours, expected, **options):
    expected = torch.as_tensor(np.asarray(expected)) if not isinstance(expected, torch.Tensor) else expected
    torch.testing.assert_close(ours, expected.to(ours.dtype), **{**TIGHT, **options})


def mask_of(lengths=LENGTHS, tokens=7):
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


def noise(seed, *shape, scale=1.0, dtype=torch.float64):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rollout(seed=0, lengths=LENGTHS, tokens=7, dtype=torch.float64):
    """A policy that has moved by up to two clips since its rollout, its values and their targets."""
    shape = (len(lengths), tokens)
    old = -noise(seed, *shape, dtype=dtype).abs() - 0.2
    values = noise(seed + 1, *shape, dtype=dtype)
    return SimpleNamespace(
        mask=mask_of(lengths, tokens),
        old_logps=old,
        logps=old + noise(seed + 2, *shape, scale=0.3, dtype=dtype),
        reference_logps=old + noise(seed + 3, *shape, scale=0.5, dtype=dtype),
        old_values=values,
        values=values + noise(seed + 4, *shape, scale=0.3, dtype=dtype),
        returns=values + noise(seed + 5, *shape, dtype=dtype),
        advantages=noise(seed + 6, *shape, dtype=dtype),
        scores=noise(seed + 7, len(lengths), dtype=dtype),
    )


# --- TRL as installed ------------------------------------------------------------------------------------------------


def trl_ppo(first, last, **names):
    """Run the lines from `first` to `last` of TRL's PPOTrainer.train, which has no smaller callables; its names."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    stop = next(i for i, line in enumerate(lines[start:], start) if line.strip().startswith(last))
    space = {**vars(ppo_trainer), **names}
    exec(compile(textwrap.dedent("\n".join(lines[start : stop + 1])), "trl's PPOTrainer.train", "exec"), space)
    return SimpleNamespace(**space)


def trl_ppo_advantages(batch, lengths, *, kl_estimator="k1", kl_coef=0.05, gamma=0.98, lam=0.9, whiten=False):
    """TRL's rewards, returns and whitened advantages, and the masks of its policy and of its values.

    TRL pays the score one column after the last token where there is one, and gives that column a value: what it calls
    `padding_mask_p1`. Ours pays on the last token. With TRL's longer mask both are the same computation.
    """
    sequence_lengths = torch.tensor(lengths) - 1  # TRL: the index of the last token
    columns = torch.arange(batch.mask.shape[1]).expand(batch.mask.shape)
    padding_mask, padding_mask_p1 = columns > sequence_lengths[:, None], columns > sequence_lengths[:, None] + 1
    found = trl_ppo(
        "# 4. compute rewards",
        "advantages = torch.masked_fill(advantages, padding_mask, 0)",
        args=SimpleNamespace(kl_estimator=kl_estimator, kl_coef=kl_coef, gamma=gamma, lam=lam, whiten_rewards=whiten),
        logprobs=batch.old_logps.masked_fill(padding_mask, ppo_trainer.INVALID_LOGPROB),
        ref_logprobs=batch.reference_logps.masked_fill(padding_mask, ppo_trainer.INVALID_LOGPROB),
        values=batch.old_values.masked_fill(padding_mask_p1, 0),
        scores=batch.scores,
        responses=columns,
        sequence_lengths=sequence_lengths,
        sequence_lengths_p1=sequence_lengths + 1,
        padding_mask=padding_mask,
        padding_mask_p1=padding_mask_p1,
    )
    return found, ~padding_mask, ~padding_mask_p1


def trl_ppo_losses(batch, *, clip=0.2, value_clip=0.2, coefficient=0.1):
    """TRL's policy and value loss, clip fractions and approximate KL of one micro-batch, on one mask."""
    found = trl_ppo(
        "vpredclipped = torch.clamp(",
        "approxkl = ",
        args=SimpleNamespace(cliprange=clip, cliprange_value=value_clip, vf_coef=coefficient),
        accelerator=SimpleNamespace(backward=lambda loss: None),
        optimizer=SimpleNamespace(step=lambda: None, zero_grad=lambda: None),
        micro_batch_inds=slice(None),
        padding_mask=~batch.mask,
        padding_mask_p1=~batch.mask,
        new_logprobs=batch.logps.masked_fill(~batch.mask, ppo_trainer.INVALID_LOGPROB),
        mb_logprobs=batch.old_logps.masked_fill(~batch.mask, ppo_trainer.INVALID_LOGPROB),
        mb_advantage=batch.advantages.masked_fill(~batch.mask, 0),
        vpred=batch.values.masked_fill(~batch.mask, 0),
        mb_values=batch.old_values.masked_fill(~batch.mask, 0),
        mb_return=batch.returns,
        logits=torch.zeros(*batch.mask.shape, 3),
    )
    return found


def trl_trainer(**attributes):
    return SimpleNamespace(
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), process_index=0, gather=lambda x: x, unwrap_model=lambda x: x
        ),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=None, per_device_train_batch_size=99, steps_per_generation=1, gradient_accumulation_steps=1
        ),
        _metrics={"train": defaultdict(list)},
        **attributes,
    )


def trl_grpo_loss(batch, advantages, beta, clip=0.2):
    """TRL's GRPOTrainer._compute_loss, unbound, on our log-probabilities."""
    trainer = trl_trainer(
        top_entropy_quantile=1.0,
        beta=beta,
        importance_sampling_level="token",
        epsilon_low=clip,
        epsilon_high=clip,
        use_vllm=False,
        loss_type="bnpo",
        current_gradient_accumulation_steps=1,
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logps, torch.zeros_like(batch.logps)),
    )
    ids = batch.mask.long()
    return GRPOTrainer._compute_loss(
        trainer,
        None,
        {
            "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": ids,
            "advantages": advantages, "old_per_token_logps": batch.old_logps,
            "ref_per_token_logps": batch.reference_logps,
        },
    )  # fmt: skip


def trl_group_advantages(trainer_class, scores, group, *, beta=0.0, logps=None, reference_logps=None, **options):
    """The advantages of GRPOTrainer or RLOOTrainer, from `_generate_and_score_completions`, unbound."""
    rows = len(scores)
    tokens = 1 if logps is None else logps.shape[1]
    reference = SimpleNamespace()

    def forward(model, *_, **__):
        return (reference_logps if model is reference else logps), None

    trainer = trl_trainer(
        _generate=lambda prompts, images: ([[1]] * rows, [[1] * tokens] * rows, *options.pop("generated"), {}),
        _get_per_token_logps_and_entropies=forward,
        _calculate_rewards=lambda *_: scores[:, None],
        _logs=defaultdict(deque, rewards=defaultdict(deque)),
        processing_class=SimpleNamespace(batch_decode=lambda ids, **_: ["x"] * rows),
        reward_weights=torch.ones(1, dtype=scores.dtype),
        reward_func_names=["score"],
        num_generations=group,
        num_iterations=1,
        beta=beta,
        ref_model=reference,
        pad_token_id=0,
        eos_token_id=2,
        mask_truncated_completions=False,
        use_vllm=False,
        scale_rewards="group",
        reward_clip_range=None,
        normalize_advantages=False,
    )
    return trainer_class._generate_and_score_completions(trainer, [{"prompt": "x"}] * rows)["advantages"]


def trl_grpo_advantages(scores, group):
    return trl_group_advantages(GRPOTrainer, scores, group, generated=(len(scores), None))


def trl_rloo_advantages(scores, group, **options):
    options.setdefault("logps", torch.zeros(len(scores), 1, dtype=scores.dtype))
    return trl_group_advantages(RLOOTrainer, scores, group, generated=(), **options)
