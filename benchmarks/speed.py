"""A step of LEDPO against LLaMA-Factory's own DPO stage and TRL's DPOTrainer, side by side in one run.

    python benchmarks/speed.py                 about 25 minutes on 2 cores; needs `ledpo quickstart prepare`

Every contender is a process of its own that loads the same model and the same tokenized pairs in the same order, and
waits; the driver lets one of them make one step at a time, in turn, so that all see the same state of the machine.
Writes docs/performance.md, docs/performance.png and docs/performance.json.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from contender import Contender, memory, say

ROOT = Path(__file__).parents[1]
WORK = Path(os.environ.get("LEDPO_BENCHMARK_WORK", ROOT / ".ledpo"))  # what `ledpo quickstart prepare` made
MODEL = WORK / "models" / "SmolLM2-135M-Instruct"
PAIRS, BATCH, CUTOFF = 24, 2, 512

# name -> (label, kind, recipe keys beyond the common ones)
CONTENDERS = {
    "a": ("LLaMA-Factory stage dpo, as it comes", "recipe", {"stage": "dpo", "disable_gradient_checkpointing": False}),
    "b": ("LLaMA-Factory stage dpo, no checkpointing", "recipe", {"stage": "dpo"}),
    "c": ("TRL DPOTrainer, as it comes", "trl", {}),
    "d": ("TRL DPOTrainer, precompute_ref_log_probs", "trl", {"precompute_ref_log_probs": True}),
    "first": ("LEDPO head, first epoch", "recipe", {"stage": "ledpo", "beta_mode": "head"}),
    "fixed": ("LEDPO fixed beta, later epochs", "recipe", {"stage": "ledpo", "beta_mode": "fixed"}),
    "head": ("LEDPO head, later epochs", "recipe", {"stage": "ledpo", "beta_mode": "head"}),
}
FILLED = ("fixed", "head")
TARGETS = (
    ("samples per second against (a), later epochs", "a", "head", 3.0),
    ("samples per second against (b), later epochs", "b", "head", 2.5),
    ("samples per second against (c), later epochs", "c", "head", 2.5),
    ("samples per second against (d), later epochs", "d", "head", 1.7),
    ("samples per second against (a), first epoch", "a", "first", 2.0),
)


def common_recipe(data: Path, output: Path, steps: int) -> dict:
    """Return the keys that all contenders of LLaMA-Factory share."""
    return {
        "model_name_or_path": str(MODEL),
        "template": "chatml",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "pref_beta": 0.1,
        "dataset_dir": str(data),
        "dataset": "pairs",
        "cutoff_len": CUTOFF,
        "overwrite_cache": True,
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": 5.0e-6,
        "lr_scheduler_type": "constant",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "output_dir": str(output),
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "seed": 42,
    }


def write_pairs(folder: Path) -> None:
    """Write the first pairs of dpo_en_demo, in the order of the source, as a data set of their own."""
    selection = json.loads((WORK / "data" / "dataset_info.json").read_text())
    rows = json.loads((WORK / "data" / "dpo_en_demo_train.json").read_text())
    rows += json.loads((WORK / "data" / "dpo_en_demo_heldout.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(rows[:PAIRS]))
    entry = selection["dpo_en_demo_train"] | {"file_name": "pairs.json"}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))


# ---- a contender's process


def gate(measured: int):
    """Return a callback that makes one optimizer step per line on standard input, and reports each.

    The step after the measured ones runs under a profiler, and what it spent its time on is reported too.
    """
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        """Waits before each step, reports after it."""

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 1024**3
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            say("ready", weights=weights, memory=memory("VmRSS"))

        def on_step_begin(self, args, state, control, **kwargs):
            if not sys.stdin.readline():
                os._exit(0)
            self.profiler = profile(activities=[ProfilerActivity.CPU]) if state.global_step == measured else None
            if self.profiler:
                self.profiler.__enter__()
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            if self.profiler:
                self.profiler.__exit__(None, None, None)
                found = {e.key: e.self_cpu_time_total for e in self.profiler.key_averages()}
                whole = sum(found.values())
                top = sorted(found.items(), key=lambda item: -item[1])[:8]
                say("profile", operations=[(name, value / whole) for name, value in top])
            say("step", seconds=time.perf_counter() - self.start, memory=memory("VmHWM"))
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back: seven contenders share this machine's memory

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                say("loss", loss=logs["loss"])

    return Gate()


def be_contender(name: str, folder: Path, steps: int) -> None:
    """Run one contender until the driver closes standard input."""
    _, kind, keys = CONTENDERS[name]
    recipe = common_recipe(folder / "data", folder / name, steps + 1) | {"overwrite_output_dir": True} | keys
    if kind == "recipe":
        from llamafactory.train.tuner import run_exp

        run_exp(recipe, callbacks=[gate(steps)])
    else:
        be_trl(folder, recipe, keys, steps)


def be_trl(folder: Path, recipe: dict, keys: dict, steps: int) -> None:
    """Run TRL's DPOTrainer on the very token ids that LLaMA-Factory's data loading makes."""
    import llamafactory.train.dpo.trainer  # noqa: F401  (before trl, which else asks for a package that is not there)
    import torch
    from datasets import Dataset
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model, load_tokenizer
    from trl import DPOConfig, DPOTrainer

    recipe = {k: v for k, v in recipe.items() if k not in keys} | {
        "stage": "dpo",
        "disable_gradient_checkpointing": True,
    }
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]
    model = load_model(module["tokenizer"], model_args, finetuning_args, True)
    type(model.get_base_model()).warnings_issued = {}
    type(model).warnings_issued = {}
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
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=recipe["max_steps"],
        learning_rate=5e-6,
        lr_scheduler_type="constant",
        beta=0.1,
        bf16=False,
        max_length=None,
        max_prompt_length=None,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        **keys,
    )
    text = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * len(rows))
    trainer = DPOTrainer(
        model=model, args=config, train_dataset=text, processing_class=module["tokenizer"], callbacks=[gate(steps)]
    )
    trainer.train_dataset = Dataset.from_list(rows)
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    if keys:
        begin = time.perf_counter()
        trainer.get_train_dataloader()
        say("precompute", seconds=time.perf_counter() - begin)
    trainer.train()


# ---- the driver


def contender(name: str, folder: Path, steps: int) -> Contender:
    """Return a contender that is loaded and waits."""
    cache = folder / ("cache" if name in FILLED else f"cache_{name}")
    return Contender(name, CONTENDERS[name][0], folder, ["--steps", str(steps)], cache)


def matmul_rate() -> float:
    """Return this machine's fp32 matmul rate, GFLOP/s: the best of several, at a size of the model's own layers."""
    import torch

    a, b = torch.randn(1024, 576), torch.randn(576, 1536)
    best = 0.0
    for _ in range(30):
        begin = time.perf_counter()
        for _ in range(10):
            a @ b
        best = max(best, 10 * 2 * 1024 * 576 * 1536 / (time.perf_counter() - begin) / 1e9)
    return best


def unique_flops(folder: Path) -> float:
    """Return the FLOPs that a step of the policy needs at least: each unique token once, the logits of responses.

    Per weight 2 forward and 2 backward (LoRA: no gradient of the weights themselves), and LoRA's own layers. Attention,
    which grows with the square of the length, is counted forward and twice that backward.
    """
    from transformers import AutoConfig, AutoTokenizer

    config, tokenizer = AutoConfig.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    rows = json.loads((folder / "data" / "pairs.json").read_text())
    d, layers, hidden = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    kv = d * config.num_key_value_heads // config.num_attention_heads
    linear = layers * (2 * d * d + 2 * d * kv + 3 * d * hidden)
    total = 0.0
    for row in rows:
        prompt = sum(len(tokenizer(turn["value"])["input_ids"]) + 5 for turn in row["conversations"])
        answers = [len(tokenizer(row[side]["value"])["input_ids"]) + 1 for side in ("chosen", "rejected")]
        prompt, answers = _cut(prompt, answers)
        tokens = prompt + sum(answers)
        seen = prompt * prompt / 2 + sum(n * (prompt + n / 2) for n in answers)
        total += 4 * linear * tokens + 4 * config.vocab_size * d * sum(answers) + 3 * 4 * d * layers * seen
    return total * BATCH / len(rows)


def _cut(prompt: int, answers: list[int]) -> tuple[int, list[int]]:
    longest = max(answers)
    if longest * 2 < CUTOFF:
        room = CUTOFF
    elif prompt * 2 < CUTOFF:
        room = CUTOFF - prompt
    else:
        room = int(CUTOFF * longest / (prompt + longest))
    longest = min(room, longest)
    return min(prompt, CUTOFF - longest), [min(n, longest) for n in answers]


def cases() -> list[dict]:
    """Return the sweep's cases: what is varied, and prompt, answer, pairs, and the vocabulary's size."""
    usual = {"prompt": 128, "answer": 128, "pairs": 2, "vocabulary": None, "shared": 1}
    lengths = (256, 512, 1024, 2048)
    varied = [("tokens a side", n, {"prompt": n // 2, "answer": n // 2, "pairs": 1}) for n in lengths]
    varied += [("pairs a batch", n, {"pairs": n}) for n in (1, 2, 4)]
    varied += [
        ("share of answer tokens", share, {"prompt": int(256 * (1 - share)), "answer": int(256 * share)})
        for share in (0.1, 0.5, 0.9)
    ]
    varied += [("pairs a prompt", n, {"pairs": 4, "shared": n}) for n in (1, 2, 4)]
    varied += [
        ("vocabulary x prompt", f"{size} x {prompt}", {"vocabulary": size, "prompt": prompt, "answer": 64, "pairs": 1})
        for size in (49152, 196608)
        for prompt in (64, 448)
    ]
    return [{"kind": kind, "value": value, **usual, **changes} for kind, value, changes in varied]


def sweep() -> list[dict]:
    """Time the policy's pass, forward and backward, plain and as LEDPO does it; take the peak of memory, too."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from ledpo_plugin.modeling.forward import forward_rows
    from ledpo_plugin.modeling.fused_lora import fuse, unfuse
    from ledpo_plugin.modeling.pair_attention import NAME
    from ledpo_plugin.modeling.shared_prompt import Costs, attend_in_pieces, shared_batch

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    original = model.get_output_embeddings().weight

    def pairs(case: dict) -> list[dict]:
        found, prompt = [], []
        for number in range(case["pairs"]):
            if number % case["shared"] == 0:
                prompt = torch.randint(100, 40000, (case["prompt"],)).tolist()
            row = {}
            for side in ("chosen", "rejected"):
                tokens = torch.randint(100, 40000, (case["answer"],)).tolist()
                row[f"{side}_input_ids"], row[f"{side}_labels"] = prompt + tokens, [-100] * len(prompt) + tokens
            found.append(row)
        return found

    def plain(rows: list[dict]) -> dict:
        sides = [(row[f"{s}_input_ids"], row[f"{s}_labels"]) for s in ("chosen", "rejected") for row in rows]
        ids, labels = (torch.tensor(column) for column in zip(*sides, strict=True))
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}

    def once(batch: dict, fast: bool) -> tuple[float, float]:
        (fuse if fast else unfuse)(model)
        assert attend_in_pieces([model], fast) or not fast, NAME
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = memory("VmRSS"), time.perf_counter()
        forward_rows(model, batch).logps.sum().backward()
        seconds = time.perf_counter() - begin
        model.zero_grad()
        return seconds, memory("VmHWM") - before

    found = []
    for case in cases():
        size = case["vocabulary"] or original.shape[0]
        weight = original if size == original.shape[0] else torch.randn(size, original.shape[1]) * 0.02
        model.get_output_embeddings().weight = torch.nn.Parameter(weight, requires_grad=False)
        rows = pairs(case)
        layouts = {"plain": plain(rows), "fast": shared_batch(rows, 0, Costs())}
        seen: dict[str, list[tuple[float, float]]] = {"plain": [], "fast": []}
        for _ in range(2 if case["prompt"] + case["answer"] >= 1024 else 3):
            for name, layout in layouts.items():
                seen[name].append(once(layout, name == "fast"))
        result = {key: case[key] for key in ("kind", "value")}
        for name, runs in seen.items():
            result[name] = statistics.median(seconds for seconds, _ in runs[1:])
            result[f"{name}_memory"] = max(peak for _, peak in runs)
        result["ratio"] = result["plain"] / result["fast"]
        found.append(result)
        print(found[-1], file=sys.stderr, flush=True)
    return found


def markdown(result: dict) -> str:
    """Return the report; every number in it was measured by this run."""
    rows = {row["name"]: row for row in result["contenders"]}
    lines = [
        "# Performance",
        "",
        f"Made by `python benchmarks/speed.py` on {result['date']}; do not edit. SmolLM2-135M-Instruct, LoRA r8 on all "
        f"linear layers, fp32, AdamW, {PAIRS} real pairs (dpo_en_demo) in the same order, {BATCH} pairs a step, cutoff "
        f"{CUTOFF}; {result['steps']} steps of each, in turn, one at a time. {result['machine']}.",
        "",
        "| contender | seconds a step, median (min to max) | pairs a second | peak memory above the weights, GB |",
        "|---|---|---|---|",
    ]
    for row in result["contenders"]:
        seconds = row["seconds"]
        lines.append(
            f"| {row['label']} | {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | "
            f"{BATCH / statistics.median(seconds):.3f} | {row['above']:.2f} |"
        )
    pre = rows["d"]["precompute"]
    lines += [
        "",
        f"(d) spent {pre:.0f} s before its first step on the reference of {PAIRS} pairs; LEDPO's first epoch holds it.",
        "",
        "| target | wanted | measured | |",
        "|---|---|---|---|",
    ]
    for label, other, ours, wanted in TARGETS:
        ratio = statistics.median(a / b for a, b in zip(rows[other]["seconds"], rows[ours]["seconds"], strict=True))
        lines.append(
            f"| {label} | {wanted:.1f} x | {ratio:.2f} x | {'reached' if ratio >= wanted else 'NOT reached'} |"
        )
    share = rows["head"]["above"] / rows["b"]["above"]
    lines.append(f"| peak memory above the weights against (b) | 0.5 x | {share:.2f} x | {_reached(share <= 0.5)} |")
    cost = statistics.median(a / b for a, b in zip(rows["head"]["seconds"], rows["fixed"]["seconds"], strict=True)) - 1
    lines.append(f"| learned head against fixed beta | 1 % slower | {cost:+.1%} | {_reached(cost <= 0.01)} |")
    rate = result["flops"] / statistics.median(rows["head"]["seconds"]) / 1e9
    part = rate / result["matmul"]
    lines.append(
        f"| of the measured matmul rate ({result['matmul']:.0f} GFLOP/s), on unique tokens | 60 % | {part:.0%} | "
        f"{_reached(part >= 0.6)} |"
    )
    lines += [*_bounds(rows["head"]["profile"], part), *_sweep(result["sweep"])]
    lines += ["", "![seconds a step](performance.png)", "", f"Versions: {result['versions']}.", ""]
    return "\n".join(lines)


def _bounds(profile: list, part: float) -> list[str]:
    """Return the section on what bounds a step, from the shares of operations and of the measured matmul rate."""
    shares = dict(profile)
    products = sum(share for name, share in shares.items() if name in ("aten::mm", "aten::addmm_", "aten::bmm"))
    attention = sum(share for name, share in shares.items() if "scaled_dot_product" in name)
    return [
        "",
        "Ratios are medians over steps of the same pairs. Reading: (a) to (d) compute every prompt twice and logits at "
        "every position.",
        "",
        "## What bounds a step",
        "",
        "Share of a step's time by operation (LEDPO head, later epochs; torch profiler, one more step):",
        "",
        "| operation | share |",
        "|---|---|",
        *(f"| `{name}` | {share:.0%} |" for name, share in profile),
        "",
        "`aten::mm` and `aten::addmm_` are the model's own matrix products on unique tokens, and of the output layer "
        "on response tokens: what is left of the work. (b) does the same products on padded rows, every prompt twice, "
        "all positions of the output layer, and once more for the reference.",
        "",
        f"These products take {products:.0%} of the profiled step, attention {attention:.0%}. If nothing else took any "
        f"time, the rate would be {part / (products + attention):.0%} of that of one product alone, so this is what "
        "bounds the ratios above: torch's attention on a CPU runs far below the rate of a product, and norms, rotary "
        "positions, activations and residual sums are one pass over memory each.",
    ]


def _sweep(rows: list[dict]) -> list[str]:
    """Return the section on the policy's pass alone, over what is varied."""
    lines = [
        "",
        "## The policy's pass alone",
        "",
        "Forward and backward: rows of their own, logits everywhere, PEFT's own layers; against what LEDPO does. Where "
        "nothing else is said, 2 pairs of 128 prompt and 128 answer tokens a side:",
        "",
        "| varied | value | plain, s | LEDPO, s | ratio | plain, GB | LEDPO, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['kind']} | {row['value']} | {row['plain']:.2f} | {row['fast']:.2f} | {row['ratio']:.2f} x | "
        f"{row['plain_memory']:.2f} | {row['fast_memory']:.2f} |"
        for row in rows
    ]
    lines += [
        "",
        "GB is the highest resident memory during the pass, above what was there before it. A prompt is shared by the "
        "two answers of a pair, not by several pairs: their number per prompt changes nothing.",
    ]
    return lines


def _reached(yes: bool) -> str:
    return "reached" if yes else "NOT reached"


def plot(result: dict, path: Path) -> None:
    """Draw seconds per step of every contender."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = result["contenders"]
    figure, axis = plt.subplots(figsize=(9, 3.6))
    medians = [statistics.median(row["seconds"]) for row in rows]
    spread = [[m - min(r["seconds"]) for m, r in zip(medians, rows, strict=True)]]
    spread.append([max(r["seconds"]) - m for m, r in zip(medians, rows, strict=True)])
    axis.barh([row["label"] for row in rows], medians, xerr=spread, color="0.7", edgecolor="black", capsize=3)
    axis.invert_yaxis()
    axis.set_xlabel("seconds per step of 2 pairs (median; bars: fastest to slowest)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Drive the contenders, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="contenders to run; no report then")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--sweep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.sweep:
        print(json.dumps(sweep()))
        return
    if args.contender:
        be_contender(args.contender, args.work, args.steps)
        return
    if not MODEL.is_dir():
        sys.exit(f"{MODEL} is missing. Run: ledpo quickstart prepare")
    folder = args.work or Path(tempfile.mkdtemp(prefix="ledpo-speed-"))
    write_pairs(folder / "data")
    from ledpo_plugin.common.run_record import package_versions

    names = args.only or list(CONTENDERS)
    if any(name in FILLED for name in names):
        fill(folder)
    running = [contender(name, folder, args.steps) for name in names]
    for number in range(args.steps):
        times = {one.name: round(one.step(), 2) for one in running}
        print(f"step {number + 1}: {times}", flush=True)
    for one in running:
        if one.name == "head":
            one.step()  # one more, under the profiler
    rate = matmul_rate()
    for one in running:
        one.close()
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "steps": args.steps,
        "matmul": rate,
        "flops": unique_flops(folder),
        "contenders": [
            {
                "name": c.name,
                "label": f"({c.name}) {c.label}" if len(c.name) == 1 else c.label,
                "seconds": c.seconds[: args.steps],
                "losses": [said["loss"] for said in c.heard("loss")],
                "precompute": sum(said["seconds"] for said in c.heard("precompute")),
                "profile": [row for said in c.heard("profile") for row in said["operations"]],
                "weights": c.ready["weights"],
                "memory": c.memory,
                "above": c.memory - c.before,
            }
            for c in running
        ],
        "versions": ", ".join(f"{name} {found}" for name, found in package_versions().items()),
    }
    print(json.dumps({row["name"]: [round(row["above"], 2), row["losses"]] for row in result["contenders"]}))
    if args.only:
        return
    # In a process of its own: what the driver held before is not in its peaks.
    lines = subprocess.run([sys.executable, __file__, "--sweep"], check=True, stdout=subprocess.PIPE, text=True).stdout
    write_report(result | {"sweep": json.loads(lines.splitlines()[-1])}, args.out)


def write_report(result: dict, out: Path) -> None:
    """Write the figures, the tables and the plot of a run."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "performance.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "performance.md").write_text(markdown(result))
    plot(result, out / "performance.png")
    print(markdown(result))


def fill(folder: Path) -> None:
    """Fill the cache of the later epochs, as the first epoch would have done."""
    import yaml

    env = os.environ | {"LEDPO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    for name in FILLED:
        recipe = common_recipe(folder / "data", folder / f"fill_{name}", 1) | CONTENDERS[name][2]
        path = folder / f"fill_{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        ledpo = Path(sys.executable).parent / "ledpo"
        with open(folder / f"fill_{name}.log", "w", encoding="utf-8") as log:
            subprocess.run([str(ledpo), "cache", str(path)], check=True, env=env, stdout=log, stderr=log)


if __name__ == "__main__":
    main()
