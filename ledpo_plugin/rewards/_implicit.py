"""The implicit reward of a trained LEDPO run: beta(x) * (log pi(y|x) - log pi_ref(y|x))."""

from typing import Any

import torch
from torch import Tensor

from ledpo_plugin.betas import BetaFeatures, BetaStrategy
from ledpo_plugin.modeling.adapters import below, is_peft, names_of
from ledpo_plugin.modeling.forward import RowOutput, forward_rows
from ledpo_plugin.modeling.head_file import HeadFileError, build_strategy, load_head, progress_of
from ledpo_plugin.modeling.logit_positions import plan_of_rows
from ledpo_plugin.modeling.logps import IGNORE

from ._adapters import Speaker, add_adapter, as_loaded
from ._models import in_parts, load_other, passes
from ._runs import Run, RunProblem, read_run, same_model, same_models
from ._types import NONE, RewardBatch, RewardError


class ImplicitReward:
    """Scores answers by how much likelier a trained run finds them than its reference does."""

    def __init__(
        self,
        run: Run,
        strategy: BetaStrategy,
        *,
        policy: Speaker,
        reference: Speaker,
        rows: int,
        passes: float,
    ):
        """Take what scores.

        Args:
            run: what its folder says.
            strategy: its beta.
            policy: the model that the run trained.
            reference: the model that it was compared with.
            rows: answers a pass.
            passes: see `Source`.
        """
        self.run, self.strategy, self.rows, self.passes = run, strategy, rows, passes
        self.policy, self.reference = policy, reference

    @torch.no_grad()
    def score(self, batch: RewardBatch, model: Any) -> Tensor:
        """Return the rewards `[R]`, those that the run itself logs for such answers; NaN for an empty answer.

        Where the run's loss is per token (ipo, sigmoid_norm), so are its rewards.
        """
        device = model.get_input_embeddings().weight.device
        scores = torch.full((batch.size,), NONE, device=device)
        for rows, inputs in in_parts(batch, self.rows, device):
            told = [row for row in range(len(rows)) if batch.response_lengths[rows[row]] > 0]
            if told:
                rows = [rows[row] for row in told]
                inputs = {key: value[told] for key, value in inputs.items()}
                scores[rows] = self._score([batch.prompt_lengths[row] for row in rows], inputs, model).to(device)
        return scores

    def _score(self, prompt_lengths: list[int], inputs: dict[str, Tensor], model: Any) -> Tensor:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        start = torch.tensor(prompt_lengths, device=ids.device).unsqueeze(1)
        inside = (torch.arange(ids.shape[1], device=ids.device) >= start) & mask.bool()
        labels = torch.where(inside, ids, IGNORE)
        plan = plan_of_rows(ids, labels, mask, prompts="prompt_nll" in self.strategy.needs)
        planned = inputs | plan.to_batch()
        source = self.run.head["arguments"]["beta_head_source"]
        wants = self.strategy.needs
        none = frozenset()
        policy = self._pass(self.policy, planned, wants if source == "policy" else none, model)
        reference = self._pass(self.reference, planned, none if source == "policy" else wants, model)
        ratio = policy.logps - reference.logps
        if self.run.loss.length_normalised:
            ratio = ratio / policy.lengths
        read = policy if source == "policy" else reference
        features = BetaFeatures(
            size=len(ids),
            hidden=read.hidden,
            prompt_nll=read.prompt_nll,
            training=False,
            progress=progress_of(self.run.folder),
        )
        return self.strategy.to(ratio.device)(features).beta * ratio

    @staticmethod
    def _pass(speaker: Speaker, planned: dict[str, Tensor], wants: frozenset[str], model: Any) -> RowOutput:
        with speaker.speaking(model) as speaking:
            return forward_rows(speaking, planned, wants=wants)


def build_implicit(one: Any, context: Any) -> ImplicitReward:
    """Return the implicit reward of a run; its adapter joins the policy's base where that is the base of both.

    Raises:
        RewardError: it is no run with an implicit reward, or does not fit the policy.
    """
    try:
        run = read_run(one.where)
    except RunProblem as problem:
        raise RewardError(f"{one.where}: {problem.why}. Fix: {problem.fix}.") from None
    shares = _base_is_shared(run, context)
    policy = _policy(run, shares, context)
    reference = _reference(run, policy, shares, context)
    own = policy.model if policy.model is not None else context.model
    if own.config.get_text_config().hidden_size != run.head["hidden_size"]:
        raise RewardError(f"{one.where}: its beta head was made for another model than {run.base}. Restore the folder.")
    strategy = build_strategy(run.head).eval().requires_grad_(False)
    try:
        load_head(run.folder, strategy, run.head)
    except HeadFileError as error:
        raise RewardError(f"{one.where}: {error}") from None
    more = {id(speaker.model) for speaker in (policy, reference) if speaker.model is not None}
    beside = f"{len(more)} more in memory" if more else "on the policy's own base model"
    context.log(f"Reward {one.name}: the implicit reward of {one.where}, {beside}.")
    return ImplicitReward(
        run,
        strategy,
        policy=policy,
        reference=reference,
        rows=context.rows,
        passes=passes([policy.model, reference.model], context.model),
    )


def _base_is_shared(run: Run, context: Any) -> bool:
    """Whether the run's base model, with the adapters merged into it, is what lies below the policy's adapter."""
    args, own = context.model_args, context.finetuning_args
    return (
        is_peft(context.model)
        and same_model(run.base, args.model_name_or_path)
        and same_models(run.below, below(args.adapter_name_or_path, own.create_new_adapter))
    )


def _policy(run: Run, shares: bool, context: Any) -> Speaker:
    if run.has_adapter and shares:
        adapter = add_adapter(context.model, run.folder, str(run.folder))
        return Speaker(None, adapter)
    if not run.has_adapter:
        return _beside(context, str(run.folder), [])
    from peft import PeftModel

    model = PeftModel.from_pretrained(_beside(context, run.base, run.below).model, run.folder, is_trainable=False)
    return Speaker(model.eval(), model.active_adapter)


def _reference(run: Run, policy: Speaker, shares: bool, context: Any) -> Speaker:
    """Return the model the run was compared with: its own ref_model, or the base below its adapter."""
    if run.ref_model is not None:
        return _beside(context, run.ref_model, names_of(run.ref_adapters))
    if run.frozen:
        return _beside(context, run.base, run.names)
    if run.has_adapter:
        return Speaker(policy.model, None)
    if shares and not run.names:
        return Speaker(None, None)
    return _beside(context, run.base, run.names)


def _beside(context: Any, where: str, adapters: list[str]) -> Speaker:
    return as_loaded(load_other(context, where, "of an implicit reward", ",".join(adapters) or None))
