"""A results folder as experiments leave it, made of plausible random numbers: what tests of reports read."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "Some code:\n```python\nprint('hi')\n```\n~~~~\n`````\n# not a heading\n</details><b>bold</b>",
    "left \u202eright\u202c to \x1b[31mred\x07, a lone \ud83d half, a return\rand a tab\t.",
)
DATASET, INSTRUCTIONS, PAIRS = "general_heldout", "instructions_heldout", 24


@dataclass(frozen=True)
class Variant:
    """How the runs of a variant come out."""

    label: str
    settings: dict[str, Any]
    recipe: dict[str, Any]
    gain: float  # of the margin at the end, nats
    shift: float = 0.1  # of chosen answers, nats per token
    scale: float = 0.69  # of the loss


VARIANTS = {
    "dpo": Variant("DPO", {}, {"stage": "ledpo", "pref_loss": "sigmoid", "beta_mode": "fixed"}, 1.0),
    "ledpo": Variant(
        "LEDPO (head)",
        {"changes": ["beta_mode"], "note": "the default of the stage, see https://example.org/paper"},
        {"stage": "ledpo", "pref_loss": "sigmoid", "beta_mode": "head"},
        1.6,
        0.05,
    ),
    "orpo": Variant(
        "ORPO",
        {"changes": ["stage", "learning_rate"], "note": "the paper's learning rate | tenfold for *LoRA*"},
        {"stage": "ledpo_orpo", "learning_rate": 8e-5},
        0.4,
        0.3,
        1.9,
    ),
    "mix50": Variant(
        "SFT 50 % <b>& a long name",
        {"changes": ["sft_dataset", "sft_ratio"], "compares_to": "dpo"},
        {"stage": "ledpo", "sft_dataset": "instructions_train", "sft_ratio": 0.5},
        0.7,
        0.2,
    ),
    "simpo": Variant("SimPO", {"changes": ["stage"]}, {"stage": "ledpo_simpo"}, 0.2, -0.4, 1.1),
    "kto": Variant(
        "KTO", {"changes": ["stage", "dataset"]}, {"stage": "ledpo_kto", "dataset": "general_rated_train"}, 0.6
    ),
}


def definition(names: list[str], seeds: list[int], **profile: Any) -> dict[str, Any]:
    """Return an experiment's definition with the one profile merged in."""
    evaluation = {
        "pairs": [DATASET],
        "instructions": [INSTRUCTIONS],
        "generations": {"prompts": DATASET, "count": 3, "max_new_tokens": 48},
        "primary": f"{DATASET}/accuracy",
        "secondary": [f"{DATASET}/margin", f"{INSTRUCTIONS}/nll"],
        "target": {"metric": f"{DATASET}/accuracy", "at_least": 0.6},
    }
    return {
        "name": "loss_variants_impact",
        "title": "Loss variants",
        "question": "Does the loss decide what is learned from the same pairs?",
        "status": "planned",
        "baseline": "dpo",
        "variants": {name: {"label": VARIANTS[name].label, **VARIANTS[name].settings} for name in names},
        "profile_name": "cpu",
        "profile": {
            "seeds": seeds,
            "budget": {"examples": 240},
            "checkpoints": 4,
            "evaluation": evaluation,
            **profile,
        },
    }


def make(
    folder: Path, names: list[str], seeds: list[int], *, steps: int = 30, failed: tuple[tuple[str, int], ...] = ()
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Fill a results folder; return the definition and the states of its runs."""
    states = []
    for name in names:
        for seed in seeds:
            run = folder / "runs" / name / f"seed-{seed}"
            run.mkdir(parents=True)
            state = {
                "variant": name,
                "seed": seed,
                "phase": "finished",
                "folder": str(run),
                "error": None,
                "log_tail": [],
            }
            if (name, seed) in failed:
                tail = ["Traceback (most recent call last):", "```", "RuntimeError: <b>out of memory</b> \x1b[31m"]
                state |= {"phase": "failed", "error": "training ended with status 1", "log_tail": tail}
                (run / "recipe.yaml").write_text(yaml.safe_dump(_recipe(name, seed, steps)))
            else:
                _write_run(run, name, seed, steps)
            states.append(state)
    _write_base(folder / "base" / "3f2a")
    return definition(names, seeds), states


def _recipe(name: str, seed: int, steps: int) -> dict[str, Any]:
    common = {
        "model_name_or_path": ".ledpo/models/SmolLM2-135M-Instruct",
        "stage": "ledpo",
        "dataset": "general_train",
        "learning_rate": 5e-6,
        "per_device_train_batch_size": 8,
        "hub_token": "hf_secret",
    }
    return common | VARIANTS[name].recipe | {"max_steps": steps, "seed": seed, "output_dir": f"runs/{name}/seed-{seed}"}


def _write_run(run: Path, name: str, seed: int, steps: int) -> None:
    rng, variant = random.Random(f"{name}-{seed}"), VARIANTS[name]
    mixed, learned = "sft_ratio" in variant.recipe, variant.recipe.get("beta_mode") == "head"
    training = []
    for step in range(1, steps + 1):
        done = step / steps
        row = {
            "step": step,
            "loss": variant.scale * (1 - 0.3 * done)
            + rng.gauss(0, 0.02)
            + (1.0 if name == "simpo" and step == 20 else 0),
            "grad_norm": rng.lognormvariate(0.2, 0.25),
            "learning_rate": 5e-6 * (1 - done),
            "margins/beta_free": variant.gain * done + rng.gauss(0, 0.15),
            "beta/mean": 0.1 * (1 + 0.4 * done * learned),
            "beta/q10": 0.1 * (1 + 0.1 * done * learned),
            "beta/q90": 0.1 * (1 + 0.8 * done * learned),
            "flops": 3.1e11 * step,
        }
        if mixed:
            row |= {"sft_share": 0.5, "preference_loss": row["loss"], "sft_nll": 2.1 - 0.4 * done + rng.gauss(0, 0.05)}
        training.append(row)
    checkpoints = []
    for part in range(1, 5):
        step = steps * part // 4
        columns = _columns(name, seed, part / 4)
        metrics = _pair_metrics(columns, learned) | {
            f"{INSTRUCTIONS}/nll": 2.2 - 0.3 * mixed * part / 4 + rng.gauss(0, 0.02),
            "gen/length": 40 + rng.gauss(0, 2),
            "gen/ended": 1 / 3,
            "gen/distinct2": 0.8 + rng.gauss(0, 0.03),
            "gen/repetition": abs(rng.gauss(0.02, 0.01)),
        }
        metrics[f"{INSTRUCTIONS}/perplexity"] = math.exp(metrics[f"{INSTRUCTIONS}/nll"])
        checkpoints.append({"step": step, "flops": 3.1e11 * step, "metrics": metrics})
        folder = run / "measures" / f"step-{step:06d}"
        _json(folder / "pairs" / f"{DATASET}.json", {"dataset": DATASET, "n": PAIRS, "columns": columns})
        nll = {"nll": [40 + rng.gauss(0, 4) for _ in range(24)], "length": [20] * 24}
        _json(folder / "instructions" / f"{INSTRUCTIONS}.json", {"dataset": INSTRUCTIONS, "n": 24, "columns": nll})
        _json(folder / "generations.json", _generations(f"{name} {seed}"))
    sft = 120 if mixed else 0
    result = {
        "format": 1,
        "experiment": "loss_variants_impact",
        "profile": "cpu",
        "variant": name,
        "seed": seed,
        "base": "3f2a",
        "recipe": _recipe(name, seed, steps),
        "recipe_sha256": f"{rng.getrandbits(256):064x}",
        "resolved": {"pref_beta": 0.1, "beta_mode": variant.recipe.get("beta_mode", "fixed")},
        "started": "2026-11-24T07:00:00+00:00",
        "ended": f"2026-11-24T07:0{seed}:30+00:00",
        "provenance": _provenance(),
        "budget": {"unit": "examples", "amount": 240, "used": 240},
        "usage": {
            "steps": steps,
            "examples": (240 - sft) * (2 if name == "kto" else 1),
            "sft_examples": sft,
            "policy_tokens": 98_304 + rng.randrange(2000),
            "predictions": 40_000,
            "sft_tokens": 20_000 if mixed else 0,
            "reference_tokens": 61_440,
            "reference_tokens_run": 61_440 if seed == 1 else 0,
            "reference_predictions": 30_000,
            "flops": 3.1e11 * steps,
            "seconds": 61.3 + rng.random() * 9,
            "peak_memory_bytes": 1_400_000_000 + rng.randrange(10**8),
            "measure_seconds": 30.1,
            "generated_tokens": 0,
            "measure_tokens": 144,
        },
        "training": training,
        "unreadable_log_lines": 0,
        "checkpoints": checkpoints,
        "final": checkpoints[-1]["metrics"],
    }
    _json(run / "result.json", result)


def _columns(name: str, seed: int, done: float) -> dict[str, list[float]]:
    items, noise, variant = random.Random(5), random.Random(f"{name}-{seed}-{done}"), VARIANTS[name]
    learned = variant.recipe.get("beta_mode") == "head"
    columns: dict[str, list[float]] = {}
    for _ in range(PAIRS):
        chosen, rejected, length = items.uniform(-90, -40), items.uniform(-90, -40), items.randrange(20, 40)
        ease = items.gauss(0, 1)
        margin = done * (variant.gain + 1.5 * ease) + noise.gauss(0, 0.5) * done
        up = done * variant.shift * length
        row = {
            "margin": margin,
            "chosen_logps": chosen + up,
            "rejected_logps": rejected + up - margin,
            "reference_chosen_logps": chosen,
            "reference_rejected_logps": rejected,
            "chosen_length": length,
            "rejected_length": length + 3,
        }
        if learned:
            row["beta"] = 0.1 * math.exp(0.4 * done * (1 + 0.5 * ease + noise.gauss(0, 0.3)))
        else:
            row["beta"] = 0.1
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return columns


def _pair_metrics(columns: dict[str, list[float]], learned: bool) -> dict[str, float]:
    margins, betas = columns["margin"], sorted(columns["beta"])
    shifts = {
        which: sum(
            (now - before) / length
            for now, before, length in zip(
                columns[f"{which}_logps"], columns[f"reference_{which}_logps"], columns[f"{which}_length"], strict=True
            )
        )
        / PAIRS
        for which in ("chosen", "rejected")
    }
    mean = sum(betas) / PAIRS
    return {
        f"{DATASET}/accuracy": sum((m > 0) + 0.5 * (m == 0) for m in margins) / PAIRS,
        f"{DATASET}/margin": sum(margins) / PAIRS,
        f"{DATASET}/logp_accuracy": 0.5,
        f"{DATASET}/chosen_shift": shifts["chosen"],
        f"{DATASET}/rejected_shift": shifts["rejected"],
        f"{DATASET}/beta_mean": mean,
        f"{DATASET}/beta_std": math.sqrt(sum((b - mean) ** 2 for b in betas) / PAIRS) if learned else 0.0,
        f"{DATASET}/beta_q10": betas[2],
        f"{DATASET}/beta_q90": betas[-3],
        **({f"{DATASET}/beta_margin_corr": 0.4} if learned else {}),
    }


def _generations(who: str) -> dict[str, Any]:
    prompts = ("What is the capital of France?", "Write a haiku about winter, please.", "Show me a loop.")
    rows = [
        {"prompt": prompt, "output": f"{who} says: {HOSTILE[i]}", "tokens": 30 + i, "ended": i == 0}
        for i, prompt in enumerate(prompts)
    ]
    return {"dataset": DATASET, "max_new_tokens": 48, "rows": rows}


def _provenance() -> dict[str, Any]:
    return {
        "versions": {"python": "3.11.2", "torch": "2.14.1", "transformers": "5.0.0", "trl": None},
        "model_sha256": "ab" * 32,
        "data_sha256": {"general_train": "cd" * 32, DATASET: "ef" * 32},
        "hardware": {"cpu": "AMD EPYC", "cores": 2, "memory_gb": 23, "gpus": [], "threads": 1, "host": "box"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    }


def _write_base(folder: Path) -> None:
    metrics = {
        f"{DATASET}/accuracy": 0.5,
        f"{DATASET}/margin": 0.0,
        f"{DATASET}/chosen_shift": 0.0,
        f"{DATASET}/rejected_shift": 0.0,
        f"{INSTRUCTIONS}/nll": 2.21,
        f"{INSTRUCTIONS}/perplexity": math.exp(2.21),
        "gen/length": 41.0,
        "gen/ended": 1 / 3,
        "gen/distinct2": 0.81,
        "gen/repetition": 0.02,
    }
    result = {"format": 1, "base": "3f2a", "model": "m/SmolLM2", "metrics": metrics, "provenance": _provenance()}
    _json(folder / "result.json", result)
    _json(folder / "measures" / "step-000000" / "generations.json", _generations("base"))


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
