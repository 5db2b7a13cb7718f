"""Step `correct`: here, too, the fast layouts train what the ordinary one trains, whatever the loss and beta mode."""

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

from common import Results, log_of, recipe, train, write_model, write_pairs

# Largest difference of a logged loss from the ordinary layout's, relative to the largest loss of the run. bf16 has 8
# bits of mantissa: two orders of summation differ by about 2^-8 a step.
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
ORDINARY = {
    "disable_shared_prompt": True,
    "disable_response_logits": True,
    "disable_fused_lora": True,
    "disable_reference_cache": True,
}
STEPS = 6  # two epochs of the pairs: the second reads the cache


def run(results: Results, work: Path, dry: bool) -> None:
    """Compare, most valuable first; a row per comparison."""
    import torch

    from ledpo_plugin.betas import BETAS
    from ledpo_plugin.hparams import argument_fields
    from ledpo_plugin.losses import LOSSES

    model, data = write_model(work / "tiny", "tiny"), work / "data"
    write_pairs(data, 12, 96)
    dtypes = ("fp32",) if dry else ("bf16", "fp32")

    def base(dtype: str, **changes: Any) -> dict[str, Any]:
        told = {"bf16": dtype == "bf16", "per_device_train_batch_size": 4, "max_steps": STEPS, "learning_rate": 1e-3}
        return recipe(model, data, work / "out", disable_gradient_checkpointing=True, **told | changes)

    if not dry:
        large = write_model(work / "large", "qwen2.5-0.5b")
        write_pairs(work / "large_data", 12, 512)
        for dtype in dtypes:
            told = base(dtype, model_name_or_path=str(large), dataset_dir=str(work / "large_data"), learning_rate=1e-4)
            case = {"what": "fast against ordinary layout, 0.5B shape, head", "dtype": dtype}
            results.measure(case, lambda t=told, d=dtype: compare(t, t | ORDINARY, d))
    for dtype in dtypes:
        head, fixed, stock = base(dtype), base(dtype, beta_mode="fixed"), base(dtype, stage="dpo")
        case = {"what": "stage ledpo, fixed beta, against stage dpo", "dtype": dtype}
        results.measure(case, lambda f=fixed, s=stock, d=dtype: compare(f, s, d))
        if torch.cuda.is_available():
            case = {"what": "device synchronisations in a step", "dtype": dtype}
            results.measure(case, lambda t=head: synchronisations(t))
        case = {"what": "resume", "dtype": dtype}
        results.measure(case, lambda t=head: resumed(t))
        for mode in BETAS:
            told = base(dtype, beta_mode=mode)
            case = {"what": f"fast against ordinary layout, beta_mode {mode}", "dtype": dtype}
            results.measure(case, lambda t=told, d=dtype: compare(t, t | ORDINARY, d))
        for name, loss in LOSSES.items():
            told, ordinary = base(dtype, beta_mode="fixed", pref_loss=name, pref_beta=None), dict(ORDINARY)
            if loss.data == "unpaired":
                told |= {"stage": "ledpo_kto", "dataset": "labelled"}
                told.pop("pref_loss")
                keys = argument_fields()  # single answers have the layout of the ordinary rows already
                ordinary = {key: on for key, on in ORDINARY.items() if keys[key].metadata.get("data") != "pairs"}
            case = {"what": f"fast against ordinary layout, pref_loss {name}", "dtype": dtype}
            results.measure(case, lambda t=told, o=ordinary, d=dtype: compare(t, t | o, d))


def compare(ours: dict[str, Any], other: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Train both; return the losses of each and the largest relative difference."""
    losses = [log_of(train(told), "loss") for told in (ours, other)]
    scale = max(max(abs(value) for value in losses[1]), 1e-12)
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True)) / scale
    within = math.isfinite(difference) and difference <= TOLERANCE[dtype]
    moved = max(losses[1]) - min(losses[1])
    return {"losses": losses, "difference": difference, "moved": moved, "tolerance": TOLERANCE[dtype], "passed": within}


def resumed(told: dict[str, Any]) -> dict[str, Any]:
    """Train without a break, and with one half-way; return whether the later losses are the same numbers."""
    told = told | {"save_strategy": "steps", "save_steps": STEPS // 2, "weight_decay": 0.01}
    out = Path(told["output_dir"])
    shutil.rmtree(out, ignore_errors=True)
    whole = log_of(train(told), "loss")
    shutil.rmtree(out / f"checkpoint-{STEPS}", ignore_errors=True)
    again = log_of(train(told | {"resume_from_checkpoint": str(out / f"checkpoint-{STEPS // 2}")}), "loss")
    shutil.rmtree(out)
    half = STEPS // 2
    difference = max(abs(a - b) for a, b in zip(whole[half:], again[half:], strict=True))
    return {"losses": [whole, again], "difference": difference, "tolerance": 0.0, "passed": difference == 0}


def synchronisations(told: dict[str, Any]) -> dict[str, Any]:
    """Count, by the line of Python that asked for it, where a step waits for the device, after two steps.

    Nothing of the plugin may wait in a step. What accelerate and transformers do (moving the batch, the gradient's norm
    that is logged) is named beside it.
    """
    import torch
    from transformers import TrainerCallback

    sites: dict[str, int] = {}

    def seen(message, category, filename, lineno, file=None, line=None) -> None:
        if "synchroniz" in str(message):
            place = "/".join(Path(filename).parts[-3:])
            sites[f"{place}:{lineno}"] = sites.get(f"{place}:{lineno}", 0) + 1

    class Watch(TrainerCallback):
        """Turns the warnings on inside steps."""

        def on_step_begin(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("warn" if state.global_step >= 2 else "default")

        def on_step_end(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("default")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        train(told | {"logging_steps": 100}, [Watch()])
    ours = {place: count for place, count in sites.items() if "ledpo_plugin" in place}
    return {"steps": STEPS - 2, "sites": sites, "ours": ours, "passed": not ours}
