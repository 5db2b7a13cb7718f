"""PPO on a real model with a real reward model: does the reward rise on held-out prompts, and how far does KL go?

    python benchmarks/ppo_real.py    needs `ledpo quickstart prepare`

It takes about half an hour on 2 cores.

The reward model is trained by LLaMA-Factory's own stage rm on real preference pairs, the policy by stage ledpo_ppo on
their prompts, both through the stock `llamafactory-cli train`; finished runs are kept and not run again. The policy is
judged before and after on prompts that neither has seen, by sampled answers with fixed seeds, and by a pass of the
reward model that is written here, not the plugin's. Writes docs/ppo.md, docs/ppo.png and docs/ppo.json.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import yaml
from beta_collapse import choose_pairs

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".ledpo"
MODEL = WORK / "models" / "SmolLM2-135M-Instruct"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT_TOKENS, ANSWER_TOKENS = 128, 32
DRAWS = 4  # answers to each held-out prompt
TARGET = 4.0  # nats of KL per answer
POLICIES = ("before", "after")


def common_recipe(data: Path, output: Path, seed: int) -> dict:
    """Return the keys that both trainings share."""
    return {
        "model_name_or_path": str(MODEL),
        "template": "smollm2",
        "default_system": SYSTEM,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_target": "all",
        "dataset_dir": str(data),
        "dataset": "train",
        "overwrite_cache": True,
        "disable_gradient_checkpointing": True,
        "output_dir": str(output),
        "overwrite_output_dir": True,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
    }


def reward_recipe(data: Path, output: Path, seed: int) -> dict:
    """Return the recipe of the reward model: LLaMA-Factory's own stage."""
    return common_recipe(data, output, seed) | {
        "stage": "rm",
        "eval_dataset": "heldout",
        "do_eval": True,
        "cutoff_len": 256,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2.0,
        "learning_rate": 1.0e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "logging_steps": 1,
    }


def policy_recipe(data: Path, output: Path, seed: int, reward: Path, rollouts: int) -> dict:
    """Return the recipe of the policy: PPO with a value head, KL held to its target."""
    return common_recipe(data, output, seed) | {
        "stage": "ledpo_ppo",
        "cutoff_len": 256,
        "reward_model": str(reward),
        "reward_model_type": "lora",
        "advantage_estimator": "gae",
        "ppo_score_norm": True,
        "kl_control": "adaptive",
        "ppo_target": TARGET,
        "kl_coef": 0.3,
        "kl_horizon": 200,
        "max_new_tokens": ANSWER_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "per_device_train_batch_size": 8,
        "ppo_buffer_size": 2,
        "ppo_epochs": 2,
        "max_steps": 4 * rollouts,
        "learning_rate": 5.0e-4,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 4,
        "logging_steps": 4,
    }


def run(name: str, folder: Path, wanted: dict) -> tuple[Path, float | None]:
    """Run a recipe by the stock command line, unless its finished run is there; return its folder and the seconds."""
    output, path = Path(wanted["output_dir"]), folder / f"{name}.yaml"
    timed = folder / f"{name}.seconds"
    if (output / "trainer_state.json").exists() and path.exists() and yaml.safe_load(path.read_text()) == wanted:
        return output, float(timed.read_text()) if timed.exists() else None
    path.write_text(yaml.safe_dump(wanted, sort_keys=False))
    print(f"{name} ...", flush=True)
    begin = time.perf_counter()
    command = [str(Path(sys.executable).parent / "llamafactory-cli"), "train", str(path)]
    with open(folder / f"{name}.log", "w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"}, cwd=ROOT)
    timed.write_text(str(time.perf_counter() - begin))
    return output, time.perf_counter() - begin


# ---- before and after


def held_out_prompts(data: Path) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of the held-out prompts, each once, and the ids that end an answer."""
    from ledpo_plugin.modeling.inference import load_for_inference

    _, tokenizer, template = load_for_inference(
        {"model_name_or_path": str(MODEL), "template": "smollm2", "default_system": SYSTEM, "infer_dtype": "float32"}
    )
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    found: dict[tuple[int, ...], None] = {}
    for row in json.loads((data / "heldout.json").read_text()):
        turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
        system = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
        ids, _ = template.encode_oneturn(tokenizer, [*turns, {"role": "assistant", "content": ""}], system)
        found[tuple(ids)] = None
    return [list(ids) for ids in found], sorted(template.get_stop_token_ids(tokenizer))


def load(adapter: Path | None):
    """Return the model, with an adapter or without."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, str(adapter))).eval()


def padded(rows: list[list[int]]):
    """Return ids and mask `[R, S]`, padded on the right."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def draw(adapter: Path | None, prompts: list[list[int]], stops: list[int], seed: int, size: int = 16) -> list[dict]:
    """Return DRAWS answers to each prompt; an answer's random stream depends on seed, prompt and draw alone."""
    from ledpo_plugin.rl.generate import Sampling, generate
    from ledpo_plugin.rl.sampler import seed_of

    model = load(adapter)
    wanted = [(number, again) for number in range(len(prompts)) for again in range(DRAWS)]
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, stops=tuple(stops), pad_id=0)
    answers = []
    for start in range(0, len(wanted), size):
        part = wanted[start : start + size]
        seeds = [seed_of("ppo_real", seed, number, again) for number, again in part]
        found = generate(model, [prompts[number] for number, _ in part], seeds, sampling)
        answers += [
            {"prompt": number, "ids": one.ids, "ended": one.ended} for (number, _), one in zip(part, found, strict=True)
        ]
    return answers


def add_scores(answers: list[dict], prompts: list[list[int]], reward: Path, size: int = 16) -> None:
    """Add the reward model's score of each answer: its value head on the hidden state of the last token."""
    import torch
    from safetensors.torch import load_file

    model, head = load(reward), load_file(reward / "value_head.safetensors")
    weight, bias = head["v_head.summary.weight"][0], head["v_head.summary.bias"][0]
    trunk = model.get_base_model().model
    for start in range(0, len(answers), size):
        part = answers[start : start + size]
        ids, mask = padded([prompts[one["prompt"]] + one["ids"] for one in part])
        with torch.no_grad():
            last = trunk(input_ids=ids, attention_mask=mask).last_hidden_state[range(len(part)), mask.sum(1) - 1]
        for one, score in zip(part, (last @ weight + bias).tolist(), strict=True):
            one["score"] = score


def add_kl(answers: list[dict], prompts: list[list[int]], adapter: Path | None, size: int = 8) -> None:
    """Add each answer's KL to the start and how likely the start finds it.

    kl: over the answer's tokens, the sum of the KL between the two whole next-token distributions (its mean over
    sampled answers is the KL of the policies, with less variance than a difference of log-probabilities). likelihood:
    the start's mean log-probability per token. entropy: the policy's, mean per token.
    """
    import torch

    start_model, policy = load(None), None if adapter is None else load(adapter)
    for start in range(0, len(answers), size):
        part = answers[start : start + size]
        ids, mask = padded([prompts[one["prompt"]] + one["ids"] for one in part])
        with torch.no_grad():
            expected = start_model(input_ids=ids, attention_mask=mask).logits
            found = expected if policy is None else policy(input_ids=ids, attention_mask=mask).logits
        for row, one in enumerate(part):
            first = len(prompts[one["prompt"]]) - 1
            span = slice(first, first + len(one["ids"]))
            p, q = (logits[row, span].double().log_softmax(-1) for logits in (found, expected))
            one["kl"] = float((p.exp() * (p - q)).sum())
            one["likelihood"] = float(q.gather(1, torch.tensor(one["ids"])[:, None]).mean())
            one["entropy"] = float(-(p.exp() * p).sum(-1).mean())


def judge(adapter: Path | None, prompts: list[list[int]], stops: list[int], reward: Path, seed: int) -> list[dict]:
    """Return the answers of a policy with everything that is measured of them, without their text."""
    answers = draw(adapter, prompts, stops, seed)
    add_scores(answers, prompts, reward)
    add_kl(answers, prompts, adapter)
    for one in answers:
        one["length"] = len(one.pop("ids"))
    return answers


def by_prompt(answers: list[dict], key: str) -> list[float]:
    """Return the mean of each prompt's draws."""
    groups: dict[int, list[float]] = {}
    for one in answers:
        groups.setdefault(one["prompt"], []).append(float(one[key]))
    return [statistics.fmean(values) for _, values in sorted(groups.items())]


def compare(judged: dict[str, list[dict]]) -> dict:
    """Return means with standard errors over prompts, and the paired tests of the difference of the scores."""
    from scipy.stats import ttest_rel, wilcoxon

    found: dict = {}
    for key in ("score", "kl", "length", "ended", "likelihood", "entropy"):
        columns = {name: by_prompt(judged[name], key) for name in POLICIES}
        change = [b - a for a, b in zip(columns["before"], columns["after"], strict=True)]
        columns["change"] = change
        found[key] = {
            name: {"mean": statistics.fmean(values), "se": statistics.stdev(values) / math.sqrt(len(values))}
            for name, values in columns.items()
        }
    before, after = (by_prompt(judged[name], "score") for name in POLICIES)
    test = ttest_rel(after, before)
    low, high = test.confidence_interval(0.95)
    spread = statistics.stdev(one["score"] for one in judged["before"])
    found["test"] = {
        "prompts": len(before),
        "draws": DRAWS,
        "t": float(test.statistic),
        "p_t": float(test.pvalue),
        "interval": [float(low), float(high)],
        "p_wilcoxon": float(wilcoxon(after, before).pvalue),
        "better": sum(b > a for a, b in zip(before, after, strict=True)),
        "deviation_before": spread,
    }
    return found


# ---- the report


def plot(curve: list[dict], judged: dict[str, list[dict]], path: Path) -> None:
    """Draw reward, KL and length over training, and the held-out scores before and after."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7))
    answers = [row["rollouts"] for row in curve]

    def line(axis, key: str, label: str, style: str = "k-") -> None:
        axis.plot(answers, [row[key] for row in curve], style, linewidth=0.8, alpha=0.6)
        values = [row[key] for row in curve]
        smooth = [statistics.fmean(values[max(0, i - 4) : i + 1]) for i in range(len(values))]
        axis.plot(answers, smooth, style, linewidth=2, label=f"{label}, mean of 5")
        axis.set_xlabel("answers drawn in training")

    line(axes[0, 0], "rewards/mean", "reward of the rollout")
    axes[0, 0].set_ylabel("score of the reward model")
    line(axes[0, 1], "kl/sequence", "KL per answer")
    axes[0, 1].axhline(TARGET, color="0.5", linestyle="--", label=f"ppo_target: {TARGET:g}")
    axes[0, 1].set_ylabel("nats")
    line(axes[1, 0], "responses/length", "tokens per answer")
    axes[1, 0].set_ylabel(f"tokens (of {ANSWER_TOKENS})")
    before, after = (by_prompt(judged[name], "score") for name in POLICIES)
    axes[1, 1].scatter(before, after, s=14, color="black", alpha=0.6, label="a held-out prompt")
    ends = [min(before + after), max(before + after)]
    axes[1, 1].plot(ends, ends, color="0.5", linestyle="--", label="no change")
    axes[1, 1].set_xlabel("score before")
    axes[1, 1].set_ylabel("score after")
    for axis in axes.flat:
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def markdown(result: dict) -> str:
    """Return the report; every number in it comes from the runs."""
    found, test, recipe = result["found"], result["found"]["test"], result["recipes"]["policy"]
    accuracy, (low, high) = result["reward"]["accuracy"], result["reward"]["interval"]
    significant = test["p_t"] < 0.01 and test["interval"][0] > 0
    kl = found["kl"]["after"]

    def cells(key: str, digits: int) -> str:
        return " | ".join(
            f"{found[key][name]['mean']:.{digits}f} ({found[key][name]['se']:.{digits}f})"
            for name in (*POLICIES, "change")
        )

    lines = [
        "# PPO with a reward model, on a real model",
        "",
        f"Made by `python benchmarks/ppo_real.py` on {result['date']}; do not edit. SmolLM2-135M-Instruct, LoRA r8, "
        f"fp32. {result['machine']}. Seed {result['seed']}. The pairs are those of dpo_en_demo with a prompt of "
        f"{PROMPT_TOKENS} tokens or less: {result['pairs']['train']} to train on, {result['pairs']['heldout']} held "
        "out, no prompt in both.",
        "",
        f"**Reward model.** LLaMA-Factory's own `stage: rm`, 2 epochs. Accuracy on the held-out pairs: {accuracy:.3f} "
        f"(n = {result['pairs']['heldout']}, 95 % interval {low:.3f} to {high:.3f}). It is small and so is its data: "
        "what is shown here is that PPO raises what it is told to raise, not that answers get better.",
        "",
        f"**Policy.** `stage: ledpo_ppo`, {result['answers']} answers of at most {ANSWER_TOKENS} tokens in "
        f"{recipe['max_steps'] // 4} rollouts, {recipe['max_steps']} optimizer steps, learning rate "
        f"{recipe['learning_rate']:g}, GAE with a value head, KL held to {TARGET:g} nats an answer "
        "(`kl_control: adaptive`). Two attempts before it were stopped: with learning rate 1e-4, KL was still "
        "near 0.01 nats after 8 rollouts; with `kl_coef: 0.1` and `kl_horizon: 400`, reward rose, too, but KL was "
        "between 5 and 9 from the 16th rollout to the 28th, for the coefficient came up too slowly.",
        "",
        f"**Before and after**, on {test['prompts']} held-out prompts with {test['draws']} sampled answers each, "
        "temperature 1, the same seeds for both policies. Means over prompts, in brackets their standard errors:",
        "",
        "| | before | after | change |",
        "|---|---|---|---|",
        f"| score of the reward model | {cells('score', 3)} |",
        f"| KL from the start, nats per answer | {cells('kl', 2)} |",
        f"| tokens per answer | {cells('length', 1)} |",
        f"| share that ended by themselves | {cells('ended', 3)} |",
        f"| log-likelihood per token, by the start | {cells('likelihood', 2)} |",
        f"| entropy per token, nats | {cells('entropy', 2)} |",
        "",
        f"Paired over prompts, the score rose by {found['score']['change']['mean']:.3f} (95 % interval "
        f"{test['interval'][0]:.3f} to {test['interval'][1]:.3f}), which is "
        f"{found['score']['change']['mean'] / test['deviation_before']:.2f} standard deviations of the scores before: "
        f"t = {test['t']:.2f}, p = {test['p_t']:.2g}; Wilcoxon's signed ranks p = {test['p_wilcoxon']:.2g}; "
        f"{test['better']} of {test['prompts']} prompts got better answers by the reward model's measure. The rise is "
        f"{'significant' if significant else 'NOT significant'} at 1 %. KL after training is {kl['mean']:.2f} (SE "
        f"{kl['se']:.2f}) nats per answer, target {TARGET:g}.",
        "",
        f"**During training**, means of the last {len(result['last'])} rollouts: reward "
        f"{_mean(result['last'], 'rewards/mean'):.3f} (first {len(result['first'])}: "
        f"{_mean(result['first'], 'rewards/mean'):.3f}), KL {_mean(result['last'], 'kl/sequence'):.2f} nats, length "
        f"{_mean(result['last'], 'responses/length'):.1f} tokens, explained variance of the value head "
        f"{_mean(result['last'], 'value/explained_variance'):.2f}.",
        "",
        "![training, and held-out prompts before and after](ppo.png)",
        "",
        f"Training the reward model took {result['seconds']['reward']:.0f} s, the policy "
        f"{result['seconds']['policy']:.0f} s, the rest {result['seconds']['judging']:.0f} s, with a load average of "
        f"{result['load'][0]:.1f} at the start and {result['load'][1]:.1f} at the end of the last part (other work "
        "was going on on the same cores where that is above 2). Scores are those of a pass written in the script, "
        "which loads LLaMA-Factory's files itself.",
        "",
        f"Versions: {result['versions']}.",
        "",
    ]
    return "\n".join(lines)


def _mean(rows: list[dict], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def main() -> None:
    """Train both, judge the policy before and after, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=40, help="of 16 answers, each used for 4 optimizer steps")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "ppo_real")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    if not MODEL.is_dir():
        sys.exit(f"{MODEL} is missing. Run: ledpo quickstart prepare")
    from ledpo_plugin.common.run_record import package_versions
    from ledpo_plugin.quickstart.intervals import wilson

    os.environ["HF_HUB_OFFLINE"] = "1"
    folder, data = args.work, args.work / "data"
    counts = choose_pairs(data, PROMPT_TOKENS)
    wanted = {"reward": reward_recipe(data, folder / "reward", args.seed)}
    reward, reward_seconds = run("reward", folder, wanted["reward"])
    accuracy = json.loads((reward / "eval_results.json").read_text())["eval_accuracy"]
    wanted["policy"] = policy_recipe(data, folder / "policy", args.seed, reward, args.rollouts)
    policy, policy_seconds = run("policy", folder, wanted["policy"])
    print("judging ...", flush=True)
    load_before, begin = os.getloadavg()[0], time.perf_counter()
    prompts, stops = held_out_prompts(data)
    judged = {
        name: judge(adapter, prompts, stops, reward, args.seed)
        for name, adapter in zip(POLICIES, (None, policy), strict=True)
    }
    history = json.loads((policy / "trainer_state.json").read_text())["log_history"]
    curve = [row for row in history if "rewards/mean" in row]
    for number, row in enumerate(curve):
        row["rollouts"] = 16 * (number + 1)
    few = max(1, min(5, len(curve) // 2))
    result = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "seed": args.seed,
        "pairs": counts,
        "reward": {"accuracy": accuracy, "interval": wilson(accuracy, counts["heldout"])},
        "answers": int(json.loads((policy / "ledpo_usage.json").read_text())["answers"]),
        "found": compare(judged),
        "first": curve[:few],
        "last": curve[-few:],
        "curve": curve,
        "seconds": {
            "reward": reward_seconds or 0.0,
            "policy": policy_seconds or 0.0,
            "judging": time.perf_counter() - begin,
        },
        "load": [load_before, os.getloadavg()[0]],
        "recipes": {
            name: {key: str(value) if isinstance(value, Path) else value for key, value in recipe.items()}
            for name, recipe in wanted.items()
        },
        "judged": judged,
        "versions": ", ".join(f"{name} {found}" for name, found in package_versions().items()),
    }
    for recipe in result["recipes"].values():  # where things lie on this machine is nobody's business
        for key in ("model_name_or_path", "dataset_dir", "output_dir", "reward_model"):
            if key in recipe:
                recipe[key] = Path(recipe[key]).name
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ppo.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "ppo.md").write_text(markdown(result))
    plot(curve, judged, args.out / "ppo.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
