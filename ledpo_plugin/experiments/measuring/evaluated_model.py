"""The model that is measured: built as training builds it, once; each checkpoint's weights are put into it in turn.

Every run is measured by the same yardstick, whatever its loss: the policy against the model that it started from. The
start is what is loaded first, so what is needed of it is computed before any other weights are taken.
"""

import copy
import hashlib
import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import set_seed

from ledpo_plugin.betas import BetaFeatures
from ledpo_plugin.data.loading import load_data
from ledpo_plugin.data.unusable import drop_unusable
from ledpo_plugin.host.arguments import DRAWN
from ledpo_plugin.host.contract import TUNER, host_api
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.evaluation_mode import in_evaluation_mode
from ledpo_plugin.modeling.forward import RowOutput, forward_rows, output_layer
from ledpo_plugin.modeling.generate import drawn, greedy, readable_prompt, rows_with_labels
from ledpo_plugin.modeling.head_file import build_strategy, head_config, load_config, load_head, progress_of
from ledpo_plugin.modeling.inference import pad_prompts
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.logps import IGNORE
from ledpo_plugin.modeling.shared_prompt import Costs
from ledpo_plugin.reference.adapter import add_frozen_copy
from ledpo_plugin.reference.cache import LOGPS
from ledpo_plugin.reference.caching import cache_key, open_caches
from ledpo_plugin.rewards import RewardBatch, build_rewards
from ledpo_plugin.training.collator import PreferenceCollator
from ledpo_plugin.training.trainer import PairTrainer
from ledpo_plugin.training.usage import Cost
from ledpo_plugin.workflow import padded_collator

BATCH = 8  # examples at a time; fixed, as the last bits depend on it

# The recipe keys that decide how a model is built and how data is read; those of ModelArguments all count.
DATA_KEYS = (
    *("template", "default_system", "tool_format", "enable_thinking", "preserve_thinking", "cutoff_len"),
    *("dataset_dir", "media_dir", "overwrite_cache", "preprocessing_batch_size", "preprocessing_num_workers"),
    *("ignore_pad_token_for_loss", "data_shared_file_system"),
)
TUNING_KEYS = (
    *("finetuning_type", "create_new_adapter", "additional_target", "use_llama_pro", "pure_bf16"),
    *("lora_rank", "lora_alpha", "lora_target", "use_rslora", "use_dora"),
    *("oft_rank", "oft_block_size", "oft_target", "module_dropout"),
    *("freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"),
    *("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
)
PRECISION_KEYS = ("bf16", "fp16", "tf32", "use_cpu")
LAYOUT_KEYS = ("disable_shared_prompt", "disable_response_logits", "disable_fused_lora", "disable_reference_cache")
REFERENCE_KEYS = ("ref_model", "ref_model_adapters", "ref_model_quantization_bit", "reference_adapter")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be measured; the message says which and what to do."""


def building_keys() -> tuple[str, ...]:
    """Return the recipe keys that decide what the model says of a text before training."""
    return (*_model_keys(), *DATA_KEYS, *TUNING_KEYS, *PRECISION_KEYS)


def _model_keys() -> tuple[str, ...]:
    return tuple(item.name for item in fields(host_api().ModelArguments) if item.init)


def measuring_recipe(recipe: Mapping[str, Any], folder: Path, reference_model: bool) -> dict[str, Any]:
    """Return a recipe that builds the run's model, and compares pairs by their log-ratios alone.

    Args:
        recipe: of the run, whatever its stage.
        folder: an output folder that nothing is kept in.
        reference_model: whether a reference model that the recipe names is needed (by a learned beta).

    Raises:
        ValueError: the start cannot be told from the trained model.
    """
    if recipe.get("pissa_init"):
        raise ValueError(
            "pissa_init: true rewrites the base weights at random, so a checkpoint's adapter does not fit a model "
            "that is loaded anew, and the run cannot be measured. Remove pissa_init."
        )
    drawn = [key for key in DRAWN if recipe.get(key)]
    if drawn:
        raise ValueError(
            f"{drawn[0]} has weights drawn at random while a model loads, so that the start of a run cannot be loaded "
            f"anew, and the run cannot be measured. Save the model with its new weights first, and remove {drawn[0]}."
        )
    kept = {*building_keys(), *LAYOUT_KEYS, *(REFERENCE_KEYS if reference_model else ())}
    return {key: value for key, value in recipe.items() if key in kept and value is not None} | {
        "stage": "ledpo",
        "pref_loss": "sigmoid",
        "beta_mode": "fixed",
        "pref_beta": 0.1,
        "output_dir": str(folder),
        "per_device_eval_batch_size": BATCH,
        "disable_gradient_checkpointing": True,
        "report_to": "none",
        "seed": 0,
    }


class _Trainer(PairTrainer):
    """The trainer of pairs, with the model that training started from as the reference."""

    adapter_is_new = True

    @contextmanager
    def _reference(self, model: nn.Module) -> Iterator[nn.Module]:
        inner = self.accelerator.unwrap_model(model)
        with inner.disable_adapter() if self.adapter_is_new else nullcontext(), in_evaluation_mode(model):
            yield model

    @contextmanager
    def trained_against(self) -> Iterator[nn.Module]:
        """Give the reference that training had, which a beta head may read."""
        if self.ref_model is None and not hasattr(self.model, "disable_adapter"):
            yield self.model
            return
        with super()._reference(self.model) as reference:
            yield reference


class EvaluatedModel:
    """A run's model with the data it is measured on."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        evaluation: Mapping[str, Any],
        folder: Path,
        log: Callable[[str], None],
        head: str | None = None,
    ):
        """Load tokenizer, data and model; compute what the start says of all pairs.

        Args:
            recipe: of the run.
            evaluation: pairs, instructions, generations.
            folder: for temporary files.
            log: called with sentences.
            head: whose hidden state the run's beta reads ("reference", "policy", or None).

        Raises:
            ValueError: a data set is unknown, of the wrong kind, or has no row that can be used; or several GPUs are
                visible.
        """
        if torch.cuda.device_count() > 1:
            raise ValueError(
                f"Measuring uses one device, and {torch.cuda.device_count()} are visible to this process. Set "
                "CUDA_VISIBLE_DEVICES to one of them."
            )
        host = host_api()
        self.log = log
        own = measuring_recipe(recipe, folder, reference_model=head == "reference")
        arguments = importlib.import_module(TUNER).get_train_args(own)
        self.model_args, self.data_args, self.training_args, self.finetuning_args, _ = arguments
        set_seed(0)
        self.tokenizer_module = host.load_tokenizer(self.model_args)
        self.tokenizer = self.tokenizer_module["tokenizer"]
        self.template = host.get_template(self.tokenizer, self.data_args)
        self.dropped: dict[str, int] = {}
        generations = evaluation.get("generations")
        measured = list(dict.fromkeys(evaluation.get("pairs") or ()))
        also = [generations["prompts"]] if generations else []
        self.data = {name: self._load(name, "pairs") for name in dict.fromkeys([*measured, *also])}
        self.data |= {name: self._load(name, "instructions") for name in evaluation.get("instructions") or ()}
        model = host.load_model(self.tokenizer, self.model_args, self.finetuning_args, is_trainable=True)
        self.trainer = self._build(model, {name: self.data[name] for name in measured}, folder)
        self.model.eval()
        self._at_start = True
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        keep = bool(evaluation.get("answers")) and not self.trainer.adapter_is_new
        self._started_from = self._weights(trained) if keep else None
        self._rewards: dict[str, Any] = {}
        self._start_logps = self._of_start(measured)
        self._features = self._of_reference(measured) if head == "reference" else {}

    @property
    def model(self) -> nn.Module:
        """The model, with the weights that were put in last."""
        return self.trainer.model

    @property
    def cost(self) -> Cost:
        """What a pass of the model costs in operations."""
        return self.trainer.usage.cost

    # ---- building

    def _load(self, name: str, kind: str) -> Any:
        own = copy.deepcopy(self.data_args)
        own.dataset, own.eval_dataset, own.eval_on_each_dataset = None, [name], True
        stage = "rm" if kind == "pairs" else "sft"
        try:
            found = load_data(
                kind,
                self.log,
                stage=stage,
                template=self.template,
                model_args=self.model_args,
                data_args=own,
                training_args=self.training_args,
                tokenizer_module=self.tokenizer_module,
            )["eval_dataset"][name]
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise ValueError(
                f"The evaluation's {kind} {name!r} cannot be loaded from {own.dataset_dir} ({error}). Name a data set "
                f"of {kind} that dataset_info.json there defines, and see that its file is there."
            ) from error
        usable = drop_unusable(found, name, kind, self.log)
        self.dropped[name] = len(found) - len(usable)
        return usable

    def _build(self, model: nn.Module, pairs: dict[str, Any], folder: Path) -> _Trainer:
        config = head_config(
            self.finetuning_args,
            beta0=self.finetuning_args.pref_beta,
            loss="sigmoid",
            hidden_size=model.config.get_text_config().hidden_size,
            model=self.model_args.model_name_or_path,
            seed=0,
        )
        strategy = build_strategy(config)
        collate = padded_collator(host_api().PairCollator, self.data_args, model, self.template, self.tokenizer_module)
        batches = PreferenceCollator(
            collate, data="pairs", pad_id=self.tokenizer.pad_token_id or 0, costs=Costs.of(model.config)
        )
        # What is not to be kept, or has a key that does not tell all, is kept for this measurement only.
        private = self.finetuning_args.disable_reference_cache or any(_has_media(data) for data in pairs.values())
        marked, caches = open_caches(pairs, strategy, None, 0, self._key, folder / "cache" if private else None)
        batches.caches = caches
        ref_model = None
        if self.finetuning_args.reference_adapter == FROZEN:
            add_frozen_copy(model, self.model_args)
        if self.finetuning_args.ref_model is not None:
            ref_model = host_api().create_ref_model(self.model_args, self.finetuning_args)
        trainer = _Trainer(
            model=model,
            ref_model=ref_model,
            args=self.training_args,
            finetuning_args=self.finetuning_args,
            strategy=strategy,
            head_config=config,
            caches=caches,
            data_collator=batches,
            eval_dataset=marked or None,
            **self.tokenizer_module,
        )
        goes_on = self.model_args.adapter_name_or_path and not self.finetuning_args.create_new_adapter
        trainer.adapter_is_new = hasattr(model, "disable_adapter") and not goes_on
        return trainer

    def _key(self, data: Any) -> dict[str, Any]:
        """Return the key of what the start says: all adapters of the recipe are part of it."""
        tuning, training = copy.copy(self.finetuning_args), copy.copy(self.training_args)
        tuning.ref_model, tuning.create_new_adapter, tuning.fill_reference_cache = None, True, True
        tuning.reference_adapter = None
        training.do_train = True  # it is built as for training
        key = cache_key(self.model_args, self.data_args, training, tuning, data)
        return key | {"measured": self.finetuning_args.finetuning_type}

    # ---- the start

    def _of_start(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return log-probabilities `[n, 2]` of every data set's chosen and rejected answers."""
        for note in self.trainer.fill_caches():
            self.log(f"start: {note}")
        caches = dict(zip(names, self.trainer.caches, strict=True))
        unfinished = [name for name, cache in caches.items() if not cache.complete]
        if unfinished:
            raise ValueError(
                f"The model that training starts from gives no finite log-probabilities for {', '.join(unfinished)}. "
                "Check its weights and precision (bf16 instead of fp16)."
            )
        return {name: cache.values[LOGPS].clone() for name, cache in caches.items()}

    def _of_reference(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        with self.trainer.trained_against() as reference:
            found = {name: self._prompts(reference, name) for name in names}
        self.trainer.ref_model = None  # nothing else asks for it
        return found

    @contextmanager
    def start(self) -> Iterator[None]:
        """Have the model be what training started from.

        Raises:
            RuntimeError: other weights were taken already.
        """
        if not self._at_start:
            raise RuntimeError("The start's weights are gone: measure it before the checkpoints.")
        with self.trainer._reference(self.model):
            yield

    @contextmanager
    def _as_started(self) -> Iterator[nn.Module]:
        """Give the model as training started from it; afterwards it has the weights that were taken last."""
        if self._started_from is None:  # the adapter began as nothing, and is switched off
            with self.trainer._reference(self.model) as reference:
                yield reference
            return
        taken = self._weights(self._started_from)
        try:
            _put(self.model, self._started_from)
            yield self.model
        finally:
            _put(self.model, taken)

    def _weights(self, names: Iterable[str]) -> dict[str, Tensor]:
        own = dict(self.model.named_parameters())
        return {name: own[name].detach().clone() for name in names}

    # ---- weights

    def take(self, checkpoint: Path) -> None:
        """Put a checkpoint's weights into the model.

        Raises:
            CheckpointError: they are missing, damaged, or do not fit the recipe.
        """
        self._at_start = False
        try:
            if hasattr(self.model, "disable_adapter"):
                problem = _take_adapter(self.model, checkpoint)
            else:
                problem = _take_whole(self.model, checkpoint)
        except Exception as error:  # safetensors, transformers and torch each have their own
            problem = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        if problem:
            raise CheckpointError(
                f"The weights in {checkpoint} are missing, damaged or of another recipe ({problem}). Delete the "
                "folder of this run and run it again."
            )

    # ---- measuring

    def items(self, name: str) -> list[str]:
        """Return what each row of a data set is called in results: 16 hex digits of its token ids, never its text."""
        data = self.data[name]
        columns = [column for column in ("chosen_input_ids", "rejected_input_ids", "input_ids") if column in data[0]]
        return [item_id([row[column] for column in columns]) for row in data]

    def pairs(self, name: str) -> dict[str, list[float]]:
        """Return the columns of the data set under the weights taken last; under the start if none were."""
        start = self._start_logps[name]
        policy = start if self._at_start else self._logps(name)
        data = self.data[name]
        lengths = {side: [_length(labels) for labels in data[f"{side}_labels"]] for side in ("chosen", "rejected")}
        margin = (policy - start).double()
        return {
            "margin": (margin[:, 0] - margin[:, 1]).tolist(),
            "chosen_logps": policy[:, 0].tolist(),
            "rejected_logps": policy[:, 1].tolist(),
            "reference_chosen_logps": start[:, 0].tolist(),
            "reference_rejected_logps": start[:, 1].tolist(),
            "chosen_length": lengths["chosen"],
            "rejected_length": lengths["rejected"],
        }

    def betas(self, name: str, checkpoint: Path) -> list[float]:
        """Return beta(x) of every pair's prompt, by the head of a checkpoint whose weights were taken.

        Raises:
            HeadFileError: it is missing, damaged or does not fit.
        """
        config = load_config(checkpoint)
        strategy = build_strategy(config).eval()
        load_head(checkpoint, strategy, config)
        hidden = prompt_nll = None
        if strategy.needs:
            reads_reference = config["arguments"]["beta_head_source"] == "reference"
            hidden, prompt_nll = self._features[name] if reads_reference else self._prompts(self.model, name)
        count = len(self.data[name])
        features = BetaFeatures(
            size=count, hidden=hidden, prompt_nll=prompt_nll, training=False, progress=progress_of(checkpoint)
        )
        with torch.no_grad():
            return strategy(features).beta.expand(count).tolist()

    def instructions(self, name: str) -> dict[str, list[float]]:
        """Return the NLL (nats) and the length (tokens) of every instruction's answer."""
        collate = padded_collator(
            host_api().InstructionCollator, self.data_args, self.model, self.template, self.tokenizer_module
        )
        batches = PreferenceCollator(collate, data="instructions", planned=self.trainer.data_collator.planned)
        outputs = list(self._passes(batches, self.data[name]))
        nll = -torch.cat([output.logps.float().cpu() for output in outputs])
        self._require_finite(nll, name)
        return {"nll": nll.tolist(), "length": torch.cat([output.lengths.cpu() for output in outputs]).tolist()}

    def generations(self, name: str, count: int, max_new_tokens: int) -> list[dict[str, Any]]:
        """Return what the model answers to the first `count` prompts of a data set of pairs."""
        prompts = self._prompt_ids(name)[:count]
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        with self.trainer.compute_loss_context_manager():
            answers = greedy(
                inner,
                prompts,
                stops=sorted(self.template.get_stop_token_ids(self.tokenizer)),
                pad_id=self.tokenizer.pad_token_id or 0,
                max_new_tokens=max_new_tokens,
                batch_size=BATCH,
            )
        return [
            {
                "prompt": readable_prompt(prompt, self.tokenizer, self.template),
                "output": self.tokenizer.decode(answer["ids"], skip_special_tokens=True),
                "tokens": len(answer["ids"]),
                **answer,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def answers(self, name: str, count: int, max_new_tokens: int, seed: int) -> list[dict[str, Any]]:
        """Return answers that the model draws to the first `count` prompts of a data set of pairs.

        Returns:
            Rows as of `generations`, with `logps` and `start_logps`, what the model and the start say of the answer
            (nats, summed, with what ended it), and `entropy` of the model's next token (nats, mean over the answer).
        """
        prompts = self._prompt_ids(name)[:count]
        inner = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        with self.trainer.compute_loss_context_manager():
            rows = drawn(
                inner,
                prompts,
                seed=seed,
                stops=sorted(self.template.get_stop_token_ids(self.tokenizer)),
                pad_id=self.tokenizer.pad_token_id or 0,
                max_new_tokens=max_new_tokens,
                batch_size=BATCH,
            )
        whole = [_whole(row) for row in rows]
        logps, entropy = self._of_answers(self.model, prompts, whole)
        start = logps
        if not self._at_start:  # else the model is the start, with its adapter off already
            with self._as_started() as started:
                start, _ = self._of_answers(started, prompts, whole)
        return [
            {
                "prompt": readable_prompt(prompt, self.tokenizer, self.template),
                "output": self.tokenizer.decode(row["ids"], skip_special_tokens=True),
                "tokens": len(row["ids"]),
                **row,
                "logps": logps[place],
                "start_logps": start[place],
                "entropy": entropy[place],
            }
            for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    @torch.no_grad()
    def _of_answers(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> tuple[list[float], list[float]]:
        logps, entropy = [], []
        for first in range(0, len(prompts), BATCH):
            part = slice(first, first + BATCH)
            batch = rows_with_labels(prompts[part], answers[part], self.tokenizer.pad_token_id or 0)
            planned = plan_of_rows(batch["input_ids"], batch["labels"], batch["attention_mask"]).to_batch()
            batch = self.trainer._prepare_inputs(batch | planned)
            with self.trainer.compute_loss_context_manager():
                output = forward_rows(model, batch, wants=frozenset({"entropy"}))
            logps.append(output.logps.float().cpu())
            # The pass gives entropies as shares of the largest possible one.
            entropy.append(output.entropy.float().cpu() * math.log(output_layer(model).weight.shape[0]))
        found = torch.cat(logps)
        self._require_finite(found, "answers of its own")
        return found.tolist(), torch.cat(entropy).tolist()

    def scores(self, name: str, rows: Sequence[Mapping[str, Any]], folder: str) -> list[float]:
        """Return what a reward model says of answers (rows of `answers`) to a data set's prompts, one number each.

        Args:
            name: of the data set.
            rows: answers to its first prompts.
            folder: the output of LLaMA-Factory's stage rm, an adapter or a whole model.

        Raises:
            RewardError: it does not fit the model.
        """
        if folder not in self._rewards:
            self._rewards[folder] = self._reward(folder)
        prompts = self._prompt_ids(name)[: len(rows)]
        batch = RewardBatch.from_ids(prompts, [_whole(row) for row in rows], self.tokenizer, self.training_args.device)
        with self.trainer.compute_loss_context_manager():
            found = self._rewards[folder].score(batch, self.trainer.accelerator.unwrap_model(self.model)).total
        self._require_finite(found, f"answers by the reward model {folder}")
        return found.tolist()

    def _reward(self, folder: str) -> Any:
        own = copy.copy(self.finetuning_args)
        own.reward_model, own.reward_weights, own.reward_clip = folder, None, None
        own.reward_model_type = "lora" if (Path(folder) / "adapter_config.json").is_file() else "full"
        return build_rewards(
            model=self.model,
            tokenizer=self.tokenizer,
            template=self.template,
            model_args=self.model_args,
            data_args=self.data_args,
            training_args=self.training_args,
            finetuning_args=own,
            log=self.log,
        )

    @torch.no_grad()
    def _passes(self, batches: Callable, data: Any) -> Iterator[RowOutput]:
        for first in range(0, len(data), BATCH):
            rows = [data[row] for row in range(first, min(first + BATCH, len(data)))]
            batch = self.trainer._prepare_inputs(batches(rows))
            with self.trainer.compute_loss_context_manager():
                yield forward_rows(self.model, batch)

    def _logps(self, name: str) -> Tensor:
        outputs = self._passes(self.trainer.data_collator, self.data[name])
        found = torch.cat([torch.stack(output.logps.float().cpu().chunk(2), dim=1) for output in outputs])
        self._require_finite(found, name)
        return found

    def _require_finite(self, values: Tensor, name: str) -> None:
        if not bool(values.isfinite().all()):
            raise CheckpointError(
                f"The trained model gives log-probabilities that are not finite for {name}: training diverged. Lower "
                "learning_rate of this variant and run it again."
            )

    def _prompt_ids(self, name: str) -> list[list[int]]:
        rows = self.data[name]
        return [
            ids[: next(i for i, label in enumerate(labels) if label != IGNORE)]
            for ids, labels in zip(rows["chosen_input_ids"], rows["chosen_labels"], strict=True)
        ]

    @torch.no_grad()
    def _prompts(self, model: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        """Return what a beta head may read of every prompt: the hidden states `[n, d]` and the prompts' NLL `[n]`."""
        prompts, parts = self._prompt_ids(name), []
        for first in range(0, len(prompts), BATCH):
            batch = pad_prompts(prompts[first : first + BATCH], self.tokenizer, self.training_args.device)
            if self.trainer.data_collator.planned:
                keys = ("input_ids", "labels", "attention_mask")
                batch |= plan_of_rows(*(batch[key] for key in keys), prompts=True).to_batch()
            with self.trainer.compute_loss_context_manager():
                parts.append(forward_rows(model, batch, wants=frozenset({"hidden", "prompt_nll"})))
        hidden = torch.cat([part.hidden.float().cpu() for part in parts])
        return hidden, torch.cat([part.prompt_nll.float().cpu() for part in parts])


@torch.no_grad()
def _put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters())
    for name, values in weights.items():
        own[name].copy_(values)


def item_id(value: Any) -> str:
    """Return 16 hex digits that tell one item of a data set from another."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _whole(row: Mapping[str, Any]) -> list[int]:
    """Return the tokens of an answer with what ended it."""
    return [*row["ids"], *([] if row["end"] is None else [row["end"]])]


def _length(labels: Sequence[int]) -> int:
    return sum(label != IGNORE for label in labels)


def _has_media(data: Any) -> bool:
    return any(data[0].get(kind) for kind in ("images", "videos", "audios"))


def _take_adapter(model: nn.Module, checkpoint: Path) -> str | None:
    """Put an adapter's weights in; return what does not fit, or None."""
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    result = set_peft_model_state_dict(model, tensors)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return _differing(trained.intersection(result.missing_keys), result.unexpected_keys)


def _take_whole(model: nn.Module, checkpoint: Path) -> str | None:
    """Put a whole model's weights in; return what does not fit, or None."""
    fresh, found = type(model).from_pretrained(
        checkpoint,
        dtype=next(model.parameters()).dtype,
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
    )
    problem = _differing(found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    if problem is None:
        model.load_state_dict(fresh.state_dict())
    return problem


def _differing(*kinds: Any) -> str | None:
    names = ("not there", "not known", "of another shape")
    found = [f"{name}: {', '.join(map(str, sorted(keys)[:3]))}" for name, keys in zip(names, kinds) if keys]  # noqa: B905
    return "; ".join(found) or None
