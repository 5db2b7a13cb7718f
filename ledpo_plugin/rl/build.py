"""From the host's arguments to what a trainer of rollouts needs: prompts, rewards and how answers are drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledpo_plugin.host.distributed import whole_for_generation
from ledpo_plugin.hparams import PPO
from ledpo_plugin.rewards import RewardError, build_rewards
from ledpo_plugin.training.trainer import weights_are_elsewhere

from .experience import Generator, RolloutSetup
from .generate import Sampling, generate
from .prompts import load_prompts
from .sampler import Schedule, Sizes
from .value_head import ValueHead


@dataclass(frozen=True)
class Arguments:
    """The host's arguments of a run, with tokenizer and template."""

    model_args: Any
    data_args: Any
    training_args: Any
    finetuning_args: Any
    tokenizer_module: dict[str, Any]
    template: Any
    log: Callable[[str], None]

    @property
    def tokenizer(self) -> Any:
        """The policy's tokenizer."""
        return self.tokenizer_module["tokenizer"]


def sizes_of(training_args: Any, finetuning_args: Any) -> Sizes:
    """Return how many answers go into a step and a rollout."""
    return Sizes(
        batch=training_args.per_device_train_batch_size,
        accumulated=training_args.gradient_accumulation_steps,
        buffer=finetuning_args.ppo_buffer_size,
        epochs=finetuning_args.ppo_epochs,
        group=finetuning_args.num_generations,
    )


def schedule_of(finetuning_args: Any) -> Schedule:
    """Return which steps train on rollouts."""
    if finetuning_args.ledpo_stage == PPO:
        return Schedule(0, 1)
    return Schedule.read(finetuning_args.alternate_schedule)


def prompt_data(run: Arguments) -> dict[str, Any]:
    """Return the data of stage ledpo_ppo: prompts to answer in training, and held-out ones.

    Raises:
        NoUsableData: no prompt is left.
    """
    data_args = run.data_args
    train, held_out = _prompts(run, data_args.dataset, share=data_args.val_size)
    if data_args.eval_dataset and data_args.eval_on_each_dataset:
        held_out = {name: _prompts(run, [name], what=name)[0] for name in data_args.eval_dataset}
    elif data_args.eval_dataset:
        held_out, _ = _prompts(run, data_args.eval_dataset, what="held-out")
    return {"train_dataset": train} | ({} if held_out is None else {"eval_dataset": held_out})


def _prompts(run: Arguments, names: list[str], **options: Any) -> tuple[Any, Any]:
    return load_prompts(
        names,
        longest=run.data_args.cutoff_len,
        model_args=run.model_args,
        data_args=run.data_args,
        training_args=run.training_args,
        template=run.template,
        tokenizer_module=run.tokenizer_module,
        log=run.log,
        **options,
    )


def build_rollouts(run: Arguments, model: Any, train_prompts: Any | None) -> RolloutSetup:
    """Return the setup of rollouts of a run whose policy is loaded; reward models are loaded here.

    Args:
        run: its arguments.
        model: the policy; adapters of reward models are added to it.
        train_prompts: None to take those of `prompt_dataset`, or of the run's finetuning_args data sets.

    Raises:
        RewardError: a reward cannot be loaded.
        NoUsableData: no prompt is left.
    """
    finetuning_args, training_args = run.finetuning_args, run.training_args
    if train_prompts is None:
        names = finetuning_args.prompt_dataset.split(",") if finetuning_args.prompt_dataset else run.data_args.dataset
        train_prompts, _ = _prompts(run, [name.strip() for name in names], what="PPO phase")
    rewards = build_rewards(
        model=model,
        tokenizer=run.tokenizer,
        template=run.template,
        model_args=run.model_args,
        data_args=run.data_args,
        training_args=training_args,
        finetuning_args=finetuning_args,
        log=run.log,
    )
    stops = run.template.get_stop_token_ids(run.tokenizer)
    pad_id = run.tokenizer.pad_token_id if run.tokenizer.pad_token_id is not None else 0
    sampling = Sampling.of(finetuning_args.ledpo_generating, stops, pad_id)
    if rewards.passes > 0 and weights_are_elsewhere():
        raise RewardError(
            "DeepSpeed ZeRO-3 and FSDP split the weights, and a reward model in the same process as the policy needs "
            "them whole. Serve it (llamafactory-cli api with stage: rm) and set reward_model_type: api, or use ZeRO-2."
        )
    value_head = None
    if finetuning_args.advantage_estimator == "gae":
        value_head = ValueHead(hidden_size=model.config.get_text_config().hidden_size, seed=training_args.seed)
    return RolloutSetup(
        args=finetuning_args,
        sampling=sampling,
        generator=_generator(run, sampling),
        rewards=rewards,
        tokenizer=run.tokenizer,
        value_head=value_head,
        prompts=train_prompts,
        sizes=sizes_of(training_args, finetuning_args),
        schedule=schedule_of(finetuning_args),
        seed=training_args.seed,
        shuffled=not finetuning_args.disable_shuffling,
    )


def _generator(run: Arguments, sampling: Sampling) -> Generator:
    if run.finetuning_args.rollout_backend == "vllm":
        from .vllm_backend import VllmGenerator

        return VllmGenerator(run.model_args, run.data_args, run.finetuning_args, sampling)

    def by_the_policy(trainer: Any, prompts: Any, seeds: Any) -> list:
        with whole_for_generation(trainer) as model:
            return generate(model, prompts, seeds, sampling)

    return by_the_policy
