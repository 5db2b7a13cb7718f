"""Step `kernels`: where the time of a step goes, so that the next improvement can be chosen without a GPU."""

from pathlib import Path
from typing import Any

from common import Results, now, recipe, train, write_model, write_pairs

# (shape, tokens a side, pairs a step)
CASES = (("qwen2.5-0.5b", 512, 8), ("qwen2.5-7b", 2048, 2))
DRY = (("tiny", 96, 2),)
STAGES = {
    "LEDPO head": {"stage": "ledpo", "beta_mode": "head"},
    "LLaMA-Factory stage dpo, as it comes": {"stage": "dpo"},
}
STEPS, TOP = 8, 15  # two epochs; the last step but one is looked at


def run(results: Results, work: Path, dry: bool) -> None:
    """Profile a step of a later epoch of LEDPO's head, and beside it one of the host's own stage."""
    for shape, tokens, pairs in DRY if dry else CASES:
        model, data = write_model(work / shape, shape), work / f"data-{tokens}-{pairs}"
        write_pairs(data, pairs * STEPS // 2, tokens)
        for label, keys in STAGES.items():
            told = recipe(
                model, data, work / "out", bf16=not dry, per_device_train_batch_size=pairs, max_steps=STEPS,
                learning_rate=5e-6, logging_steps=1000, **keys,
            )  # fmt: skip
            case = {"shape": shape, "tuning": "lora", "tokens": tokens, "pairs": pairs, "label": label}
            results.measure(case, lambda t=told: profiled(t))


def profiled(told: dict[str, Any]) -> dict[str, Any]:
    """Profile one step; return its seconds, those the device was at work, and the kernels and calls that took most.

    Without a GPU the device is the CPU, and its operators stand for kernels.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    kept: dict[str, Any] = {}

    class Profiler(TrainerCallback):
        """Profiles the last step but one; the one before it is timed without a profiler."""

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == STEPS - 3:
                self.begin = now()
            if state.global_step == STEPS - 2:
                kept["seconds"] = now() - self.begin
                self.profile = profile(activities=activities)
                self.profile.__enter__()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == STEPS - 1:
                now()
                self.profile.__exit__(None, None, None)
                kept.update(summary(self.profile.key_averages(), cuda))

    train(told, [Profiler()])
    return kept


def summary(events, cuda: bool) -> dict[str, Any]:
    """Return the kernels that took most of the device's time, and the operators that took most of the CPU's."""

    def top(found: list, seconds) -> list[list]:
        whole = sum(map(seconds, found)) or 1.0
        chosen = sorted(found, key=lambda e: -seconds(e))[:TOP]
        return [[e.key[:120], e.count, seconds(e) / whole] for e in chosen]

    on_device = [e for e in events if (e.device_type.name == "CUDA") == cuda]

    def device_time(event) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    on_cpu = [e for e in events if e.device_type.name == "CPU"]
    launches = sum(e.count for e in on_cpu if "LaunchKernel" in e.key or "cuLaunch" in e.key)
    return {
        "device_seconds": sum(map(device_time, on_device)) / 1e6,
        "launches": launches,
        "kernels": top(on_device, device_time),
        "operators": top(on_cpu, lambda e: e.self_cpu_time_total),
    }
