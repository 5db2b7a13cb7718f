"""Fused LoRA layers: PEFT's own results and gradients, less kept for the backward, and only where they fit."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ledpo_plugin.modeling.fused_lora import fuse, fuse_if_same, unfuse

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),  # biases on query, key and value
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)),  # another activation
}


def _model(family: str = "llama", dtype: torch.dtype = torch.float64, **lora) -> torch.nn.Module:
    torch.manual_seed(3)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora)
    model = get_peft_model(FAMILIES[family](), config).to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.train()


def _results(model: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids = torch.arange(40).view(2, 20) % 63 + 1
    logits = model(input_ids=ids).logits
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    (logits * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return logits.detach(), gradients


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_peft_s(family, checkpointing):
    model = _model(family)
    if checkpointing:
        model.enable_input_require_grads()  # so that the first layer's input takes a gradient, too
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected, gradients = _results(model)
    assert fuse(model) == (14 if family == "gemma2" else 16)
    got, fused = _results(model)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert fused.keys() == gradients.keys()
    assert len(gradients) == 28
    for name, value in gradients.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-9, atol=1e-11, msg=name)
    unfuse(model)
    assert not any("forward" in vars(module) for module in model.modules() if "lora" in type(module).__module__)


def test_less_is_kept_for_the_backward_pass():
    def kept(model) -> int:
        seen = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(input_ids=torch.arange(40).view(2, 20) % 63 + 1)
        del out
        return sum(size for place, size in seen.items() if place not in weights)

    model = _model(dtype=torch.float32)
    before = kept(model)
    fuse(model)
    assert kept(model) < 0.8 * before, kept(model) / before


def test_under_autocast_the_products_run_in_its_type():
    """bf16 keeps three digits: the fused gradients are as near to the fp32 ones as PEFT's are."""
    model = _model(dtype=torch.float32)
    exact, truth = _results(model)
    runs = []
    for change in (lambda _: None, fuse):
        change(model)
        with torch.autocast("cpu", torch.bfloat16):
            runs.append(_results(model))
    (plain, gradients), (got, fused) = runs
    assert (got - exact).norm() < 1.5 * (plain - exact).norm()
    assert {value.dtype for value in fused.values()} == {torch.float32}

    def error(found) -> float:
        return sum((found[name] - value).square().sum().item() for name, value in truth.items()) ** 0.5

    size = sum(value.square().sum().item() for value in truth.values()) ** 0.5
    assert 0 < error(fused) < 1.5 * error(gradients) < 0.1 * size


def test_an_adapter_switched_off_or_merged_goes_through_peft():
    model = _model()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        adapted = model(input_ids=ids).logits
        fuse(model)
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids).logits, base, rtol=0, atol=0)
        torch.testing.assert_close(model(input_ids=ids).logits, adapted)
        model.merge_adapter()
        torch.testing.assert_close(model(input_ids=ids).logits, adapted)


@pytest.mark.parametrize("lora", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_layers_that_do_more_are_left_alone(lora):
    assert fuse(_model(**lora)) == 0


def test_hooked_layers_are_left_alone():
    model = _model()
    inner = model.base_model.model.model.layers[0].mlp.up_proj
    inner.register_forward_hook(lambda *_: None)
    assert fuse(model) == 14  # neither this layer nor its MLP


def test_a_model_that_answers_otherwise_is_left_alone(monkeypatch):
    """As if the family's MLP did more than its parts say."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    original = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: 2 * original(self, x))
    model = _model()
    note = fuse_if_same(model)
    assert "not used, because the model gives other logits then" in note
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.undo()
    assert fuse_if_same(model) is None
    assert fuse(model) == 0
