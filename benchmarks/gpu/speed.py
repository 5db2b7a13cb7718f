"""Step `speed`: seconds a step, tokens a second, MFU and peak memory of every contender on the same pairs."""

import statistics
import time
from pathlib import Path
from typing import Any

from common import SHAPES, TEMPLATE_TOKENS, Results, born_on_device, now, recipe, train, write_model, write_pairs

PER_EPOCH, EPOCHS = 4, 3  # steps; the first epoch's first step warms up
STEPS = PER_EPOCH * EPOCHS


# Most valuable first: (shape, finetuning_type, tokens a side, pairs a step, contenders or None for all)
CASES = (
    ("qwen2.5-7b", "lora", 2048, 2, None),
    ("qwen2.5-0.5b", "lora", 512, 8, None),
    ("qwen2.5-7b", "lora", 512, 4, ("lf", "trl_liger", "ledpo_head")),
    ("qwen2.5-0.5b", "full", 512, 8, ("lf", "trl", "trl_liger", "ledpo_fixed", "ledpo_head")),
    ("qwen2.5-7b", "lora", 8192, 1, ("lf", "lf_liger", "trl_liger", "ledpo_head")),
    ("qwen2.5-0.5b", "lora", 2048, 4, ("lf", "trl_liger", "ledpo_head")),
    ("llama-3-8b", "lora", 2048, 2, ("lf", "ledpo_head")),
)
# Those with liger are left out: triton stops where there is no GPU.
DRY = (("tiny", "lora", 128, 2, ("lf", "ledpo_head", "ledpo_fixed", "trl", "trl_precompute")),)
# name -> (label, kind, recipe keys or those of TRL's DPOConfig). LLaMA-Factory's come with gradient checkpointing, and
# so does TRL; all have it here.
CONTENDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lf": ("LLaMA-Factory stage dpo, as it comes", "recipe", {"stage": "dpo"}),
    "ledpo_head": ("LEDPO head", "recipe", {"stage": "ledpo", "beta_mode": "head"}),
    "ledpo_fixed": ("LEDPO fixed beta", "recipe", {"stage": "ledpo", "beta_mode": "fixed"}),
    "lf_liger": ("LLaMA-Factory stage dpo with liger", "recipe", {"stage": "dpo", "enable_liger_kernel": True}),
    "trl": ("TRL DPOTrainer, as it comes", "trl", {}),
    "trl_precompute": ("TRL DPOTrainer, precompute_ref_log_probs", "trl", {"precompute_ref_log_probs": True}),
    "trl_liger": ("TRL DPOTrainer, use_liger_loss", "trl", {"use_liger_loss": True}),
}


def run(results: Results, work: Path, dry: bool) -> None:
    """Time the cases, each contender in a run of its own; the first one again at the end of a case, to see drift."""
    for shape, tuning, tokens, pairs, names in DRY if dry else CASES:
        model, data = write_model(work / shape, shape), work / f"data-{tokens}-{pairs}"
        lengths = write_pairs(data, pairs * PER_EPOCH, tokens)
        wanted = list(names or CONTENDERS)
        for number, name in enumerate([*wanted, wanted[0]]):
            if number == len(wanted) and dry:
                break
            case = {"shape": shape, "tuning": tuning, "tokens": tokens, "pairs": pairs, "contender": name}
            case |= {"again": number == len(wanted), "label": CONTENDERS[name][0]}
            case["flops"] = unique_flops(SHAPES[shape], lengths, tuning) * pairs / len(lengths)
            case["tokens_a_step"] = 2 * pairs * tokens  # as they are computed where a prompt is repeated and padded
            told = recipe(
                model, data, work / "out", bf16=not dry, finetuning_type=tuning, per_device_train_batch_size=pairs,
                num_train_epochs=float(EPOCHS), learning_rate=5e-6, logging_steps=1000,
            )  # fmt: skip
            if tuning == "full":
                told = {key: value for key, value in told.items() if not key.startswith("lora_")}
            results.measure(case, lambda n=name, t=told, w=work / f"cache-{number}": timed(n, t, w))


def unique_flops(shape: dict[str, Any], lengths: list[tuple[int, int, int]], tuning: str) -> float:
    """Return the operations that the policy needs at least for these pairs, forward and backward.

    Each unique token once, logits at response positions alone. Per weight and token 2 operations forward, 2 backward
    through it, and 2 more for its gradient where it is trained; attention its part of a causal triangle. Recomputation
    for gradient checkpointing is not counted, as MFU has it.
    """
    d, layers, inner = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    kv = d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    linear = layers * (2 * d * d + 2 * d * kv + 3 * d * inner)
    factor, total = (4 if tuning == "lora" else 6), 0.0
    for prompt, *answers in lengths:
        prompt += TEMPLATE_TOKENS // 2
        seen = prompt * prompt / 2 + sum(n * (prompt + n / 2) for n in answers)
        total += factor * (linear * (prompt + sum(answers)) + shape["vocab_size"] * d * sum(answers))
        total += 3 * 4 * d * layers * seen
    return total


def gate():
    """Return a callback that keeps when each step ended, the weights' size and the peak of memory."""
    import torch
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        """Waits for the device at the end of each step alone."""

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.weights = sum(p.numel() * p.element_size() for p in model.parameters())
            self.ends, self.losses = [now()], []
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

        def on_step_end(self, args, state, control, **kwargs):
            self.ends.append(now())

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.losses += [logs["train_loss"]] if logs and "train_loss" in logs else []

    return Gate()


def timed(name: str, told: dict[str, Any], cache: Path) -> dict[str, Any]:
    """Run a contender; return the seconds of its steps, and its memory in GB."""
    import os

    import torch

    os.environ["LEDPO_CACHE"] = str(cache)
    _, kind, keys = CONTENDERS[name]
    watch, extra = gate(), {}
    if kind == "recipe":
        train(told | keys, [watch])
    else:
        extra = be_trl(told, keys, watch)
    seconds = [b - a for a, b in zip(watch.ends, watch.ends[1:], strict=False)]
    found = {"seconds": seconds, "train_loss": watch.losses, **extra}
    found["first_epoch"] = statistics.median(seconds[1:PER_EPOCH])
    found["later_epochs"] = statistics.median(seconds[PER_EPOCH + 1 :])
    if torch.cuda.is_available():
        gb = 1024**3
        found |= {"weights_gb": watch.weights / gb, "peak_gb": torch.cuda.max_memory_allocated() / gb}
        found["above_gb"] = found["peak_gb"] - found["weights_gb"]
    return found


def be_trl(told: dict[str, Any], keys: dict[str, Any], watch) -> dict[str, Any]:
    """Run TRL's DPOTrainer on the very token ids that LLaMA-Factory's data loading makes."""
    import llamafactory.train.dpo.trainer  # noqa: F401  (before trl, which else asks for a package that is not there)
    import torch
    from datasets import Dataset
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer
    from trl import DPOConfig, DPOTrainer

    stock = told | {"stage": "dpo", "disable_gradient_checkpointing": True}
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(stock)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]
    with born_on_device():
        model = load_model(module["tokenizer"], model_args, finetuning_args, True)
        full = told["finetuning_type"] == "full"
        reference = load_model(module["tokenizer"], model_args, finetuning_args, False) if full else None
    for one in {type(model), type(getattr(model, "get_base_model", lambda m=model: m)())}:
        one.warnings_issued = {}
    rows = []
    for row in data:
        prompt = next(i for i, label in enumerate(row["chosen_labels"]) if label != -100)
        rows.append(
            {
                "prompt_input_ids": row["chosen_input_ids"][:prompt],
                "chosen_input_ids": row["chosen_input_ids"][prompt:],
                "rejected_input_ids": row["rejected_input_ids"][prompt:],
            }
        )
    config = DPOConfig(
        output_dir=told["output_dir"],
        per_device_train_batch_size=told["per_device_train_batch_size"],
        num_train_epochs=told["num_train_epochs"],
        learning_rate=told["learning_rate"],
        lr_scheduler_type="constant",
        beta=told["pref_beta"],
        bf16=told["bf16"],
        max_length=None,
        max_prompt_length=None,
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        **keys,
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows))
    trainer = DPOTrainer(
        model=model, ref_model=reference, args=config, train_dataset=text, processing_class=module["tokenizer"],
        callbacks=[watch],
    )  # fmt: skip
    trainer.train_dataset = Dataset.from_list(rows)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    found: dict[str, Any] = {"checkpointing": bool(config.gradient_checkpointing)}
    if "precompute_ref_log_probs" in keys:
        begin = time.perf_counter()
        trainer.get_train_dataloader()
        found["precompute_seconds"] = time.perf_counter() - begin
    trainer.train()
    return found
