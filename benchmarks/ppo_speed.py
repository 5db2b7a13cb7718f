"""An iteration of stage ledpo_ppo against one of TRL's PPOTrainer, side by side in one run.

    python benchmarks/ppo_speed.py    needs `ledpo quickstart prepare`

It takes about 15 minutes on 2 cores.

An iteration is a rollout and the optimizer steps on it. Every contender is a process of its own that loads the same
policy, the same reward model (LoRA and value head, from LLaMA-Factory's own stage rm) and the same tokenized prompts in
the same order, and waits; the driver lets one of them make one iteration at a time, in turn, so that all see the same
state of the machine. Writes docs/ppo_performance.md and docs/ppo_performance.json.
"""

import argparse
import ctypes
import functools
import gc
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

import yaml
from contender import Contender, memory, say
from speed import MODEL, ROOT, WORK, matmul_rate

PROMPTS, PROMPT_TOKENS = 64, 128
ROLLOUT, MINIBATCH, EPOCHS, RESPONSE = 16, 8, 4, 40
LORA_RANK, LEARNING_RATE, KL, TEMPERATURE = 8, 1e-5, 0.05, 1.0
STEPS = ROLLOUT // MINIBATCH * EPOCHS  # optimizer steps of an iteration

# name -> (label, whether TRL trains the value model's own trunk; None: ours)
CONTENDERS = {
    "trl": ("TRL PPOTrainer, as it comes (the value model is trained whole)", True),
    "trl_head": ("TRL PPOTrainer, the value model's trunk frozen", False),
    "ledpo": ("LEDPO stage ledpo_ppo", None),
}
SPEED, MEMORY = 1.0, 0.7  # what is wanted against TRL: times its throughput, times its memory


def common_recipe(folder: Path, output: str) -> dict:
    """Return the keys that every recipe here shares."""
    return {
        "model_name_or_path": str(MODEL),
        "template": "chatml",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": LORA_RANK,
        "lora_target": "all",
        "dataset_dir": str(folder / "data"),
        "dataset": "pairs",
        "overwrite_cache": True,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "disable_shuffling": True,
        "disable_gradient_checkpointing": True,
        "output_dir": str(folder / output),
        "overwrite_output_dir": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 42,
    }


def ppo_recipe(folder: Path, iterations: int) -> dict:
    """Return the recipe of stage ledpo_ppo."""
    return common_recipe(folder, "ledpo") | {
        "stage": "ledpo_ppo",
        "cutoff_len": PROMPT_TOKENS + 8,
        "reward_model": str(folder / "reward"),
        "reward_model_type": "lora",
        "advantage_estimator": "gae",
        "ppo_epochs": EPOCHS,
        "ppo_buffer_size": ROLLOUT // MINIBATCH,
        "per_device_train_batch_size": MINIBATCH,
        "kl_control": "fixed",
        "kl_coef": KL,
        "kl_estimator": "k1",
        "temperature": TEMPERATURE,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": RESPONSE,
        "max_steps": STEPS * iterations,
        "logging_steps": STEPS,
    }


def write_prompts(folder: Path) -> None:
    """Write the first pairs of dpo_en_demo's training part that have a short prompt as a data set of their own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    info = json.loads((WORK / "data" / "dataset_info.json").read_text())
    rows = json.loads((WORK / "data" / "dpo_en_demo_train.json").read_text())
    short = [
        row
        for row in rows
        if sum(len(tokenizer(turn["value"])["input_ids"]) + 5 for turn in row["conversations"]) <= PROMPT_TOKENS
    ]
    if len(short) < PROMPTS:
        sys.exit(f"Only {len(short)} of the prompts have {PROMPT_TOKENS} tokens or less; {PROMPTS} are wanted.")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "pairs.json").write_text(json.dumps(short[:PROMPTS]))
    entry = info["dpo_en_demo_train"] | {"file_name": "pairs.json"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps({"pairs": entry}))


def make_reward(folder: Path) -> None:
    """Train two steps of LLaMA-Factory's stage rm: what its scores are worth does not matter to their speed."""
    recipe = common_recipe(folder, "reward") | {
        "stage": "rm",
        "cutoff_len": 192,
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "learning_rate": 1e-4,
        "logging_steps": 1,
    }
    path = folder / "reward.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", str(path)]
    with open(folder / "reward.log", "w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})


# ---- a contender's process


def gate(steps: int, libraries: float):
    """Return a callback that makes `steps` optimizer steps per line on standard input, and reports each such block.

    `libraries` is the resident memory (GB) before any model was loaded.
    """
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        """Waits before each iteration, reports after it."""

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen = {p.data_ptr(): p for p in model.parameters()}
            trained = sum(p.numel() for p in seen.values() if p.requires_grad)
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            say("ready", memory=memory("VmRSS"), libraries=libraries, trained=trained)
            self._wait()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % steps:
                return
            seconds, cpu = now() - self.start, time.process_time() - self.cpu
            say("step", seconds=seconds, cpu=cpu, memory=memory("VmHWM"), device_memory=device_memory())
            ctypes.CDLL(None).malloc_trim(0)
            self._wait()

        def on_log(self, args, state, control, logs=None, **kwargs):
            say("log", values={k: v for k, v in (logs or {}).items() if isinstance(v, (int, float))})

        def _wait(self):
            if not sys.stdin.readline():
                os._exit(0)
            self.start, self.cpu = now(), time.process_time()

    return Gate()


def now() -> float:
    """Return the time, in seconds, once the device has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def device_memory() -> float | None:
    """Return the peak of memory on the device, in GB; None where there is none."""
    import torch

    return torch.cuda.max_memory_allocated() / 1024**3 if torch.cuda.is_available() else None


def time_calls(owner: object, name: str) -> None:
    """Have every call of a function report its seconds as an event `generation`."""
    stock = getattr(owner, name)

    @functools.wraps(stock)
    def timed(*args, **kwargs):
        begin = now()
        found = stock(*args, **kwargs)
        say("generation", seconds=now() - begin)
        return found

    setattr(owner, name, timed)


def be_contender(name: str, folder: Path, iterations: int) -> None:
    """Run one contender until the driver closes standard input."""
    train_trunk = CONTENDERS[name][1]
    if train_trunk is None:
        be_ledpo(folder, iterations)
    else:
        be_trl(folder, iterations, train_trunk)


def be_ledpo(folder: Path, iterations: int) -> None:
    """Run stage ledpo_ppo through LLaMA-Factory's own entry."""
    from llamafactory.train.tuner import run_exp

    from ledpo_plugin.rl import build

    time_calls(build, "generate")
    gc.collect()
    run_exp(ppo_recipe(folder, iterations), callbacks=[gate(STEPS, memory("VmRSS"))])


def be_trl(folder: Path, iterations: int, train_trunk: bool) -> None:
    """Run TRL's PPOTrainer on the very token ids that LLaMA-Factory's data loading makes."""
    import llamafactory.train.dpo.trainer  # noqa: F401  (before trl, which else asks for a package that is not there)
    import torch
    import trl.trainer.ppo_trainer
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DataCollatorWithPadding
    from trl import PPOConfig, PPOTrainer

    gc.collect()
    libraries = memory("VmRSS")
    prompts, tokenizer = tokenized_prompts(folder)
    tokenizer.padding_side = "left"
    # TRL takes every pad token for padding, and SmolLM2's is the end of a turn, of which its prompts are full.
    tokenizer.pad_token = "<|endoftext|>"
    data = Dataset.from_list([{"input_ids": ids} for ids in prompts])

    policy = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)
    torch.nn.init.zeros_(value.score.weight)
    value.model.requires_grad_(train_trunk)
    reward = reward_model(folder / "reward")
    config = PPOConfig(
        output_dir=str(folder / "trl_out"),
        per_device_train_batch_size=ROLLOUT,  # with num_mini_batches, TRL's way to optimizer steps of MINIBATCH answers
        gradient_accumulation_steps=1,
        num_mini_batches=ROLLOUT // MINIBATCH,
        num_ppo_epochs=EPOCHS,
        total_episodes=ROLLOUT * iterations,
        response_length=RESPONSE,
        stop_token="eos",
        temperature=TEMPERATURE,
        kl_coef=KL,
        kl_estimator="k1",
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
        gamma=1.0,
        lam=0.95,
        num_sample_generations=0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        seed=42,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,  # the policy without its adapter
        reward_model=reward,
        value_model=value,
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        peft_config=LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", lora_dropout=0.0),
        callbacks=[gate(1, libraries)],
    )
    loader = torch.utils.data.DataLoader(
        data, batch_size=ROLLOUT, collate_fn=DataCollatorWithPadding(tokenizer), drop_last=True
    )
    trainer.dataloader = trainer.accelerator.prepare(loader)  # in the order given, as ours
    cut = trl.trainer.ppo_trainer.truncate_response

    def cut_and_counted(stop: int, pad: int, responses: torch.Tensor) -> torch.Tensor:
        found = cut(stop, pad, responses)
        say("log", values={"responses/length": (found != pad).sum(1).float().mean().item()})
        return found

    trl.trainer.ppo_trainer.truncate_response = cut_and_counted
    time_calls(trl.trainer.ppo_trainer, "batch_generation")
    trainer.train()


def tokenized_prompts(folder: Path) -> tuple[list[list[int]], object]:
    """Return the token ids of the prompts, as LLaMA-Factory makes them, and the tokenizer."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    recipe = common_recipe(folder, "unused") | {"stage": "rm", "cutoff_len": 4096, "max_steps": 1}
    model_args, data_args, training_args, _, _ = get_train_args(recipe)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="rm", **module)["train_dataset"]
    prompts = []
    for row in data:
        length = next(i for i, label in enumerate(row["chosen_labels"]) if label != -100)
        prompts.append(row["chosen_input_ids"][:length])
    return prompts, module["tokenizer"]


def reward_model(adapter: Path):
    """Return the reward model of stage rm as TRL wants it: a sequence classifier with one label."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=1, dtype=torch.float32)
    model.model.load_state_dict(merged.model.state_dict())
    head = load_file(adapter / "value_head.safetensors")
    model.score = torch.nn.Linear(model.config.hidden_size, 1)
    model.score.load_state_dict({"weight": head["v_head.summary.weight"], "bias": head["v_head.summary.bias"]})
    return model.requires_grad_(False).eval()


# ---- the driver


def contender(name: str, folder: Path, iterations: int) -> Contender:
    """Return a contender that is loaded and waits; a step of it is an iteration."""
    label, arguments = CONTENDERS[name][0], ["--iterations", str(iterations)]
    return Contender(name, label, folder, arguments, folder / f"cache_{name}")


def measured(one: Contender) -> dict:
    """Return what was measured; memory in GB, resident; seconds of each iteration, by the clock and of the CPU."""
    logs = [said["values"] for said in one.heard("log")]
    lengths = [log["responses/length"] for log in logs if "responses/length" in log]
    return {
        "name": one.name,
        "label": one.label,
        "seconds": one.seconds,
        "cpu": [step["cpu"] for step in one.steps],
        "generation": [said["seconds"] for said in one.heard("generation")],
        "device_memory": one.steps[-1]["device_memory"],
        "length": f"{statistics.fmean(lengths):.1f}" if lengths else "not logged",  # mean tokens of an answer
        "trained": one.ready["trained"],
        "libraries": one.ready["libraries"],
        "before": one.before,
        "peak": one.memory,
        "logs": logs,
    }


def markdown(result: dict) -> str:
    """Return the report; every number in it was measured by this run."""
    rows = {row["name"]: row for row in result["contenders"]}
    ours = rows["ledpo"]
    lines = [
        "# Performance of PPO",
        "",
        f"Made by `python benchmarks/ppo_speed.py` on {result['date']}; do not edit. SmolLM2-135M-Instruct, LoRA "
        f"r{LORA_RANK} on all linear layers, fp32, AdamW; {PROMPTS} real prompts (dpo_en_demo) of at most "
        f"{PROMPT_TOKENS} tokens in the same order; answers of at most {RESPONSE} tokens at temperature 1 that end at "
        f"the end token; the same reward model (LLaMA-Factory's stage rm). An iteration is a rollout of {ROLLOUT} "
        f"answers and {STEPS} optimizer steps on {MINIBATCH} answers each ({EPOCHS} epochs); "
        f"{result['iterations']} iterations of each contender, in turn, one at a time. {result['machine']}; "
        f"{result['threads']} threads; load average {result['load'][0]:.1f} before and {result['load'][1]:.1f} after.",
        "",
        "| contender | seconds an iteration, median (min to max) | CPU seconds, median | answers a second | "
        "tokens an answer | trained parameters |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows.values():
        seconds = row["seconds"]
        lines.append(
            f"| {row['label']} | {statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | "
            f"{statistics.median(row['cpu']):.2f} | {ROLLOUT / statistics.median(seconds):.3f} | {row['length']} | "
            f"{row['trained']:,} |"
        )
    lines += [
        "",
        "| contender | peak memory, GB | above the libraries | above the loaded models |",
        "|---|---|---|---|",
    ]
    for row in rows.values():
        lines.append(
            f"| {row['label']} | {row['peak']:.2f} | {row['peak'] - row['libraries']:.2f} | "
            f"{row['peak'] - row['before']:.2f} |"
        )
    lines += ["", "| target | wanted | measured | |", "|---|---|---|---|"]
    for name in ("trl", "trl_head"):
        other, against = rows[name], f"against: {rows[name]['label']}"
        for key, what in (("seconds", "answers a second"), ("cpu", "the same by CPU time")):
            ratio = statistics.median(a / b for a, b in zip(other[key], ours[key], strict=True))
            lines.append(
                f"| {what}, against: {other['label']} | {SPEED:.1f} x | {ratio:.2f} x | {_ok(ratio >= SPEED)} |"
            )
        for base, what in (("libraries", "above the libraries"), (None, "of the process")):
            share = (ours["peak"] - ours.get(base, 0)) / (other["peak"] - other.get(base, 0))
            lines.append(f"| peak memory {what}, {against} | {MEMORY} x | {share:.2f} x | {_ok(share <= MEMORY)} |")
    lines += [
        "",
        "Ratios of times are medians over iterations on the same prompts. Memory is resident memory: the highest while "
        "training; what it was after the libraries were imported and before any model; and what it was when all models "
        "were loaded. TRL's policy has no second copy as reference (its adapter is switched off), but its reward and "
        "its value model are models of their own; ours are an adapter and a head on the policy's layers. TRL's value "
        "model is trained whole unless its trunk is frozen by hand; both are measured.",
        "",
        f"Versions: {result['versions']}.",
        "",
    ]
    return "\n".join(lines)


def _ok(yes: bool) -> str:
    return "reached" if yes else "NOT reached"


def write_report(result: dict, out: Path) -> None:
    """Write the figures and the tables of a run."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "ppo_performance.json").write_text(json.dumps(result, indent=1) + "\n")
    (out / "ppo_performance.md").write_text(markdown(result))
    print(markdown(result))


def main() -> None:
    """Drive the contenders, or be one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=list(CONTENDERS), help="contenders to run; no report then")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--json", type=Path, help="write the figures there, and no report")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        be_contender(args.contender, args.work, args.iterations + 1)
        return
    if not MODEL.is_dir():
        sys.exit(f"{MODEL} is missing. Run: ledpo quickstart prepare")
    folder = args.work or Path(tempfile.mkdtemp(prefix="ledpo-ppo-speed-"))
    write_prompts(folder)
    if not (folder / "reward" / "value_head.safetensors").exists():
        make_reward(folder)
    import torch

    from ledpo_plugin.common.run_record import package_versions

    load = [os.getloadavg()[0]]
    running = [contender(name, folder, args.iterations) for name in args.only or CONTENDERS]
    for number in range(args.iterations):
        times = {one.name: round(one.step(), 2) for one in running}
        print(f"iteration {number + 1}: {times}", flush=True)
    load.append(os.getloadavg()[0])
    for one in running:
        one.close()
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "iterations": args.iterations,
        "load": load,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "matmul": matmul_rate(),
        "contenders": [measured(one) for one in running],
        "versions": ", ".join(f"{name} {found}" for name, found in package_versions().items()),
    }
    brief = ("seconds", "cpu", "length", "trained", "libraries", "before", "peak")
    print(json.dumps({row["name"]: {key: row[key] for key in brief} for row in result["contenders"]}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    elif not args.only:
        write_report(result, args.out)


if __name__ == "__main__":
    main()
