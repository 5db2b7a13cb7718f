"""A model ready to answer: a trained run with its adapter and beta head, or any model by name."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ledpo_plugin.betas import BETAS, BetaFeatures, BetaStrategy
from ledpo_plugin.common.run_record import RECORD, read_record
from ledpo_plugin.facts import either, has_head, known_before_answers
from ledpo_plugin.hparams import FROZEN
from ledpo_plugin.modeling.forward import forward_rows
from ledpo_plugin.modeling.head_file import CONFIG, HeadFileError, build_strategy, load_config, load_head, progress_of
from ledpo_plugin.modeling.inference import (
    encode_prompt,
    inference_arguments,
    load_for_inference,
    load_start,
    pad_prompts,
)
from ledpo_plugin.reference.cache import default_folder, files_hash

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass
class Loaded:
    """A model with what it takes to ask it."""

    name: str
    model: nn.Module  # in evaluation mode; with a run's adapter on top, which can be switched off
    tokenizer: Any
    template: Any
    identity: str  # 16 hex digits of what was loaded
    arguments: dict[str, Any]  # of the host
    head: dict[str, Any] | None = None  # configuration of the run's beta head
    strategy: BetaStrategy | None = None
    start: dict[str, Any] | None = None  # arguments of the model that training started from
    start_is_below: bool = True  # whether it is the model with its adapter switched off, where it has one
    reference: dict[str, Any] | None = None  # those of a reference model of the run's own
    recipe: dict[str, Any] = field(default_factory=dict)  # of the run
    folder: Path = Path()  # of the run
    _models: dict[str, nn.Module] = field(default_factory=dict)
    _betas: dict[tuple[int, ...], float] = field(default_factory=dict)  # of prompts that were asked for

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self.model.get_input_embeddings().weight.device

    @property
    def has_beta(self) -> bool:
        """Whether beta can be told from the prompt alone."""
        return self.head is not None and BETAS[self.head["beta_mode"]].before_answers

    @property
    def per_prompt(self) -> bool:
        """Whether beta differs from prompt to prompt."""
        return self.head is not None and has_head(self.head["beta_mode"])

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of prompts of one turn, as training writes them."""
        return [encode_prompt(prompt, self.tokenizer, self.template) for prompt in prompts]

    def stops(self) -> list[int]:
        """Return the ids that end an answer, by the template."""
        return sorted(self.template.get_stop_token_ids(self.tokenizer))

    @contextmanager
    def at_start(self) -> Iterator[nn.Module]:
        """Give the model that training started from.

        Raises:
            ValueError: this is no run, so that there is none.
        """
        if self.start is None:
            raise ValueError(f"{self.name} is no trained run, so that there is no model that it started from.")
        if self.start_is_below and hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield self.model
        else:
            yield self._other("start", self.start)

    def _other(self, what: str, arguments: dict[str, Any]) -> nn.Module:
        if what not in self._models:
            self._models[what] = load_start(arguments, self.recipe, self.folder)[0]
        return self._models[what]

    @contextmanager
    def _read_by_head(self) -> Iterator[nn.Module]:
        if self.head["arguments"]["beta_head_source"] == "policy":
            yield self.model
        elif self.reference is not None:
            yield self._other("reference", self.reference)
        else:
            with self.at_start() as model:
                yield model

    def betas(self, prompts: Sequence[str], batch_size: int = 8) -> list[float]:
        """Return beta(x) of prompts of one turn, as `betas_of`."""
        return self.betas_of(self.encode(prompts), batch_size)

    @torch.no_grad()
    def betas_of(self, ids: Sequence[Sequence[int]], batch_size: int = 8) -> list[float]:
        """Return beta(x) of prompts, given as tokens; a run's one beta where it has only one (see `has_beta`).

        Raises:
            ValueError: there is no head, or beta depends on answers and not on the prompt alone.
            HeadFileError: the head does not fit the model.
        """
        if self.head is None:
            raise ValueError(f"{self.name} has no beta head ({CONFIG}): name the folder of a LEDPO run.")
        mode = self.head["beta_mode"]
        if not self.has_beta:
            raise ValueError(
                f"{self.name} has beta_mode {mode}, which decides beta from the answers of a batch: it has no "
                f"beta(x). Name a run with beta_mode {either(known_before_answers())}."
            )
        if not self.per_prompt:
            features = BetaFeatures(size=1, training=False, progress=progress_of(self.folder))
            beta = self.strategy(features).beta.item()
            return [beta] * len(ids)
        asked = [prompt for prompt in dict.fromkeys(map(tuple, ids)) if prompt not in self._betas]
        if asked:
            self._betas |= zip(asked, self._betas_by_head(asked, batch_size), strict=True)
        return [self._betas[tuple(prompt)] for prompt in ids]

    def _betas_by_head(self, ids: Sequence[Sequence[int]], batch_size: int) -> list[float]:
        found: list[float] = []
        with self._read_by_head() as model:
            if model.config.get_text_config().hidden_size != self.head["hidden_size"]:
                raise HeadFileError(f"The head of {self.name} reads another width than the model's hidden state has.")
            self.strategy.to(self.device)
            for first in range(0, len(ids), batch_size):
                part = [list(prompt) for prompt in ids[first : first + batch_size]]
                batch = pad_prompts(part, self.tokenizer, self.device)
                output = forward_rows(model, batch, wants=self.strategy.needs)
                features = BetaFeatures(
                    size=len(part),
                    hidden=output.hidden,
                    prompt_nll=output.prompt_nll,
                    training=False,
                    progress=progress_of(self.folder),
                )
                found += self.strategy(features).beta.tolist()
        return found


def load(
    run_or_model: str | Path,
    *,
    template: str | None = None,
    adapter: str | None = None,
    default_system: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a run's folder or checkpoint, or a model by folder or hub name.

    Args:
        run_or_model: the output folder of a training (it holds ledpo_run.json), one of its checkpoints, or a model.
        template: of LLaMA-Factory; a run has its own, and any other model needs one.
        adapter: a PEFT folder on top of a model that is no run.
        default_system: the system prompt in place of the template's own; a run has its own.
        trust_remote_code: let the model's own code run.

    Raises:
        ValueError: the template is missing, or given for a run; or the run's weights do not fit its base any more.
        FileNotFoundError: a path does not exist.
    """
    path = Path(run_or_model)
    if (path / RECORD).is_file() or (path.parent / RECORD).is_file():
        given = {"template": template, "adapter": adapter, "default_system": default_system}
        wrong = [key for key, value in given.items() if value is not None]
        if wrong:
            raise ValueError(f"{path} is a trained run, which has its own {', '.join(wrong)}. Leave that out.")
        return _load_run(path, trust_remote_code)
    if template is None:
        raise ValueError(
            f"{path} is no trained run (there is no {RECORD} in it), and a template was not given. Name the template "
            "of LLaMA-Factory that the model was trained with, such as --template qwen."
        )
    if adapter and not (Path(adapter) / ADAPTER[1]).is_file():
        raise FileNotFoundError(f"{adapter} holds no {ADAPTER[1]}. Name the folder of an adapter.")
    recipe = {"default_system": default_system}
    arguments = inference_arguments(recipe, trust_remote_code, model_name_or_path=str(path), template=template)
    model, tokenizer, made = load_for_inference(arguments)
    if adapter:
        model = _with_adapter(model, Path(adapter))
    known = {key: value for key, value in arguments.items() if key != "trust_remote_code"}
    identity = _identity(known, Path(adapter) if adapter else path)
    return Loaded(path.name, model, tokenizer, made, identity, arguments, start=arguments if adapter else None)


def _load_run(run: Path, trust_remote_code: bool) -> Loaded:
    record = read_record(run)
    recipe = record["recipe"]
    if recipe.get("pissa_init"):
        raise ValueError(
            f"{run} was trained with pissa_init: true, which rewrote the base weights, so that its adapter does not "
            "fit a base that is loaded anew. Export the run with llamafactory-cli export, and name the exported model."
        )
    below = {"model_name_or_path": record["model_name_or_path"], "template": record["template"]}
    before = recipe.get("adapter_name_or_path")
    # Adapters of the recipe are part of the start, but for the last one where training went on with it.
    names = [name.strip() for name in before.split(",")] if before else []
    under = names if recipe.get("create_new_adapter") else names[:-1]
    start = inference_arguments(
        recipe, trust_remote_code, **below, **({"adapter_name_or_path": ",".join(names)} if names else {})
    )
    if all((run / name).is_file() for name in ADAPTER):
        arguments = inference_arguments(
            recipe, trust_remote_code, **below, **({"adapter_name_or_path": ",".join(under)} if under else {})
        )
        model, tokenizer, template = load_for_inference(arguments)
        model = _with_adapter(model, run)
        frozen = under != names and recipe.get("reference_adapter") == FROZEN
        if under != names and not frozen:
            raise ValueError(
                f"{run} went on with the adapter {names[-1]} (create_new_adapter: false), so that its start cannot be "
                "told from it here. Train with reference_adapter: frozen or create_new_adapter: true, or merge the "
                "adapter first."
            )
    else:
        frozen = False
        arguments = inference_arguments(recipe, trust_remote_code, **below | {"model_name_or_path": str(run)})
        model, tokenizer, template = load_for_inference(arguments)
    loaded = Loaded(run.name, model, tokenizer, template, _identity(recipe, run), arguments, start=start)
    loaded.recipe, loaded.folder = recipe, run
    loaded.start_is_below = not frozen  # of a frozen adapter the start is the reference, too, and loaded when asked
    if record.get("ref_model"):
        loaded.reference = inference_arguments(
            recipe, trust_remote_code, **below | {"model_name_or_path": record["ref_model"]}
        )
    if (run / CONFIG).is_file():
        loaded.head = load_config(run)
        loaded.strategy = build_strategy(loaded.head).eval()
        load_head(run, loaded.strategy, loaded.head)
    return loaded


def _with_adapter(model: nn.Module, folder: Path) -> nn.Module:
    """Return the model with an adapter on top, not merged: without it, it is the model that it started from."""
    from peft import PeftModel

    if not (folder / ADAPTER[1]).is_file():
        raise FileNotFoundError(f"{folder} holds no {ADAPTER[1]}: adapters are read from safetensors only.")
    model = PeftModel.from_pretrained(model, folder, is_trainable=False).eval()
    model.ledpo_adapter = str(folder)  # where vLLM finds it
    return model


def _identity(known: Any, folder: Path) -> str:
    """Return 16 hex digits of what was loaded: the settings, and every weight file of the folder or the hub name."""
    text = json.dumps([known, files_hash(str(folder), default_folder())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
