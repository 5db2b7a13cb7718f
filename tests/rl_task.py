"""A task whose best policy is known exactly: a small model, answers of at most two tokens, a reward for capitals.

Every answer can be listed, so that reward, KL and the best that can be had for a given KL are sums, not estimates.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import Tiny
from torch import Tensor

TOKENS = 2  # of an answer, at most
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOODS = ("calm", "mild", "keen", "wild")  # prompts come in groups, told apart by their words
SENSE = 0.5  # how strongly the model's output layer marks capitals

# What is run on the task, by name: the keys that differ from `recipe`.
_GROUPS = {"gae": {}, "rloo": {"num_generations": 8}, "grpo": {"num_generations": 8}}
_ADAPTIVE = {"kl_control": "adaptive", "ppo_target": 1.0, "kl_horizon": 1000}
_START = {"gae": 0.3, "rloo": 0.3, "grpo": 0.9}  # GRPO divides rewards by their deviation, about a third here
RUNS: dict[str, dict[str, Any]] = {
    **{
        f"adaptive {name}": {"advantage_estimator": name, "kl_coef": _START[name], **_ADAPTIVE, **group}
        for name, group in _GROUPS.items()
    },
    **{
        f"fixed {name}": {"advantage_estimator": name, "kl_control": "fixed", "kl_coef": 0.2, **_GROUPS[name]}
        for name in ("gae", "rloo")
    },
    **{
        f"beta {name}": {
            "advantage_estimator": name,
            "kl_control": "beta",
            "beta_mode": "head",
            "pref_beta": 0.3,
            **({"kl_coef": 0.9} if name == "grpo" else {}),  # for the same reason
            **group,
        }
        for name, group in _GROUPS.items()
    },
}
BETAS = [0.5, 0.37, 0.27, 0.2] * 2  # of the prompts, by mood
STEPS, BATCH, EPOCHS = 120, 64, 2
SAMPLES = STEPS // EPOCHS * BATCH  # answers that a run draws
# What is stated of a run, see `judge`: how far KL is off its target; shares of the best that are reached at least.
STATED = {"kl": 0.2, "gain": 0.85, "efficiency": 0.95, "objective": 0.9}


def capitals(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Return the share of capitals in each answer, of the TOKENS it may have: 0, 0.5 or 1. A `function` reward."""
    return [sum(letter in CAPITALS for letter in response) / TOKENS for response in responses]


def write_task(tiny: Tiny, folder: Path, prompts: int = 8) -> Tiny:
    """Write the model and the data set `questions` of the task; return where they are.

    The model is the tiny one of the tests with an output layer of its own, in which a feature marks capitals, as one
    would in a pretrained model. Without it a small adapter could not come near the best policy, which tells capitals
    from everything else.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    model = AutoModelForCausalLM.from_pretrained(tiny.model, dtype=torch.float32)
    weight = model.get_output_embeddings().weight.detach().clone()
    weight[:, 0] = 0.0
    weight[tokenizer.convert_tokens_to_ids(list(CAPITALS)), 0] = SENSE
    model.get_output_embeddings().weight = torch.nn.Parameter(weight)
    model.config.tie_word_embeddings = False
    shutil.copytree(tiny.model, folder / "model")
    model.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = [{"instruction": text, "input": "", "output": "-"} for text in questions(prompts)]
    (folder / "data" / "questions.json").write_text(json.dumps(rows))
    info = {"questions": {"file_name": "questions.json"}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))
    return Tiny(folder / "model", folder / "data")


def questions(count: int) -> list[str]:
    """Return the prompts: each of one mood, in equal shares."""
    places = ("river", "stone", "garden", "bridge", "forest", "island", "market", "window")
    return [" ".join([MOODS[number % len(MOODS)]] * 3 + [places[number // len(MOODS)]]) for number in range(count)]


def recipe(task: Tiny, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a run of stage ledpo_ppo on the task; `changes` replace keys, a value of None drops one."""
    own = {
        "stage": "ledpo_ppo",
        "dataset": "questions",
        "reward_model": "rl_task:capitals",
        "reward_model_type": "function",
        "max_new_tokens": TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "per_device_train_batch_size": BATCH,
        "ppo_epochs": EPOCHS,
        "max_steps": STEPS,
        "learning_rate": 5.0e-3,
        "lr_scheduler_type": "linear",
        "logging_steps": EPOCHS,
    }
    return task.recipe(output, **(own | changes))


# ---- the exact sums


class Outcomes(NamedTuple):
    """All answers there are: `ids`, and where to find their probabilities."""

    ids: list[tuple[int, ...]]
    alone: Tensor  # ids of the tokens that end an answer at once
    first: Tensor  # ids of the first tokens that a second one follows


class Point(NamedTuple):
    """What a policy gets, per prompt `[P]`: mean reward and KL to the reference (nats per answer)."""

    reward: Tensor
    kl: Tensor

    def objective(self, coefficient: Tensor | float) -> Tensor:
        """Return E[reward] - coefficient * KL per prompt."""
        return self.reward - coefficient * self.kl


def outcomes(vocabulary: int, stops: Sequence[int]) -> Outcomes:
    """List all answers of at most two tokens; one that begins with a stop token has no second."""
    others = [token for token in range(vocabulary) if token not in set(stops)]
    ids = [(token,) for token in stops] + [(token, second) for token in others for second in range(vocabulary)]
    return Outcomes(ids, torch.tensor(stops), torch.tensor(others))


@torch.no_grad()
def exact_logps(model: Any, prompts: Sequence[Sequence[int]], found: Outcomes) -> Tensor:
    """Return the log-probability of every answer to every prompt, `[P, N]`, float64 sums of the model's fp32 logits."""
    rows = []
    for prompt in prompts:
        asked = torch.tensor([prompt])
        first = torch.log_softmax(model(asked).logits[0, -1].double(), dim=-1)
        both = torch.cat([asked.expand(len(found.first), -1), found.first[:, None]], dim=1)
        second = torch.log_softmax(model(both).logits[:, -1].double(), dim=-1)
        rows.append(torch.cat([first[found.alone], (first[found.first][:, None] + second).flatten()]))
    return torch.stack(rows)


class Exact:
    """Reward, KL and the best policies of the task, summed over all answers.

    With the objective E[r] - c KL(pi || ref) the best policy is pi*(y) = ref(y) exp(r(y) / c) / Z, and what it gets is
    c ln Z (Ziegler et al. 2019, arXiv:1909.08593; Korbak et al. 2022, arXiv:2205.11275 eq. 3).
    """

    def __init__(self, reference: Tensor, rewards: Tensor):
        """Take log-probabilities and rewards of all answers, `[P, N]`, float64."""
        self.reference, self.rewards = reference, rewards

    def point(self, logps: Tensor) -> Point:
        """Return what a policy with these log-probabilities `[P, N]` gets."""
        chance = logps.exp()
        return Point((chance * self.rewards).sum(1), (chance * (logps - self.reference)).sum(1))

    def best(self, coefficient: Tensor | float) -> Tensor:
        """Return the log-probabilities of the best policy; `coefficient` is a number or one per prompt `[P]`."""
        weight = torch.as_tensor(coefficient, dtype=torch.float64).reshape(-1, 1)
        return torch.log_softmax(self.reference + self.rewards / weight, dim=1)

    def value(self, coefficient: Tensor | float) -> Tensor:
        """Return c ln Z per prompt: the objective of the best policy."""
        weight = torch.as_tensor(coefficient, dtype=torch.float64).reshape(-1, 1)
        return (weight * torch.logsumexp(self.reference + self.rewards / weight, dim=1, keepdim=True)).squeeze(1)

    def coefficient_for(self, target: float) -> float:
        """Return the coefficient whose best policy has a mean KL of `target` nats: bisection, KL falls with it."""
        low, high = 1e-2, 1e2
        for _ in range(40):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self.point(self.best(middle)).kl.mean() > target else (low, middle)
        return (low * high) ** 0.5

    def best_reward(self, kl: float) -> float:
        """Return the highest mean reward that a policy with this mean KL can have."""
        return float(self.point(self.best(self.coefficient_for(kl))).reward.mean())


@dataclass(frozen=True)
class Task:
    """The task with everything that is known of it."""

    files: Tiny
    prompts: list[str]
    ids: list[list[int]]
    outcomes: Outcomes
    exact: Exact

    @classmethod
    def make(cls, tiny: Tiny, folder: Path, prompts: int = 8, reward: Callable = capitals) -> "Task":
        """Write the task's files and sum everything up."""
        files = write_task(tiny, folder, prompts)
        texts = questions(prompts)
        model, tokenizer, template = load(files.model)
        ids = [prompt_ids(tokenizer, template, text) for text in texts]
        found = outcomes(model.config.vocab_size, sorted(template.get_stop_token_ids(tokenizer)))
        answers = tokenizer.batch_decode(found.ids, skip_special_tokens=True)
        rewards = torch.tensor([reward([text] * len(answers), answers) for text in texts], dtype=torch.float64)
        return cls(files, texts, ids, found, Exact(exact_logps(model, ids, found), rewards))

    def trained(self, run: Path) -> Point:
        """Return what the policy of a finished run gets, exactly."""
        model, _, _ = load(self.files.model, adapter_name_or_path=str(run), finetuning_type="lora")
        return self.exact.point(exact_logps(model, self.ids, self.outcomes))


def load(model: Path, **more: Any) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and template by the host's loaders."""
    from ledpo_plugin.modeling.inference import load_for_inference

    return load_for_inference({"model_name_or_path": str(model), "template": "chatml", "infer_dtype": "float32"} | more)


def prompt_ids(tokenizer: Any, template: Any, text: str) -> list[int]:
    """Return the token ids of a prompt, as LLaMA-Factory's template makes them."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]
    return template.encode_oneturn(tokenizer, turns)[0]


# ---- a head that says how much a prompt's KL costs


def write_head(task: Task, folder: Path, betas: Sequence[float], beta0: float) -> None:
    """Write a beta head with beta(x) = `betas` on the task's prompts, fitted to the reference's hidden states."""
    from ledpo_plugin.betas import BetaFeatures
    from ledpo_plugin.hparams import LedpoArguments
    from ledpo_plugin.modeling.head_file import build_strategy, head_config, save_head

    model, _, _ = load(task.files.model)
    with torch.no_grad():
        hidden = torch.cat([model.model(torch.tensor([ids])).last_hidden_state[:, -1] for ids in task.ids])
    arguments = LedpoArguments(beta_mode="head")
    config = head_config(
        arguments, beta0=beta0, loss="sigmoid", hidden_size=hidden.shape[1], model=str(task.files.model), seed=0
    )
    strategy = build_strategy(config)
    features = BetaFeatures(size=len(hidden), hidden=hidden, training=False)
    wanted = torch.tensor(betas).log()
    optimizer = torch.optim.Adam(strategy.parameters(), lr=3e-3)
    for _ in range(400):
        optimizer.zero_grad()
        (strategy(features).beta.log() - wanted).square().mean().backward()
        optimizer.step()
    folder.mkdir(parents=True, exist_ok=True)
    save_head(folder, strategy, config)


# ---- what a run is worth


def judge(task: Task, run: Path, changes: dict[str, Any]) -> dict[str, float]:
    """Return what the policy of a run gets, exactly, and its share of what is known to be best.

    answers: drawn in training. reward, kl: means over the prompts. With kl_control adaptive, gain: reward above the
    reference's, as a share of that of the best policy whose KL is the target; efficiency: the same against the best
    policy of the KL that the run has. With fixed, objective: E[r] - c KL above that of the reference, as a share of the
    best policy's.
    """
    exact, point = task.exact, task.trained(run)
    start = float(exact.point(exact.reference).reward.mean())
    found = {"answers": answers_of(run), "reward": float(point.reward.mean()), "kl": float(point.kl.mean())}
    if "ppo_target" in changes:
        for name, kl in (("gain", changes["ppo_target"]), ("efficiency", found["kl"])):
            found[name] = (found["reward"] - start) / (exact.best_reward(kl) - start)
    else:
        coefficient = changes["kl_coef"]
        reached, best = point.objective(coefficient).mean(), exact.value(coefficient).mean()
        found["objective"] = float((reached - start) / (best - start))
    return found


def answers_of(run: Path) -> int:
    """Return how many answers a run drew, by its own count."""
    return int(json.loads((run / "ledpo_usage.json").read_text())["answers"])


def per_prompt(task: Task, run: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return beta, reached KL and the best policy's KL of every prompt, and how they go together.

    rank_correlation: Spearman's, of beta and reached KL. log_error: mean distance of ln KL from the best
    policy's.
    """
    from scipy.stats import spearmanr

    from ledpo_plugin.modeling.inference import beta_of_prompts

    beta = torch.tensor([row["beta"] for row in beta_of_prompts(run, task.prompts)], dtype=torch.float64)
    kl = task.trained(run).kl
    best = task.exact.point(task.exact.best(beta)).kl
    return {
        "answers": answers_of(run),
        "beta": [round(value, 4) for value in beta.tolist()],
        "kl": kl.tolist(),
        "best_kl": best.tolist(),
        "rank_correlation": float(spearmanr(beta, kl).statistic),
        "log_error": float((kl.log() - best.log()).abs().mean()),
    }
