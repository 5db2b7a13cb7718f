"""LoRA layers with fewer passes over memory: the same sums in one autograd step each, with less kept for the backward.

PEFT writes a layer as base(x) + scaling * B(A(x)): four operations, two of them products so thin that they cost what
reading and writing their operands costs, and as many tensors kept. Here the thin product is added in place to the wide
one, and a gated MLP keeps its input and its two projections only; activation and product are made again in the
backward pass, which is cheap. Layers are changed one by one, on the instance, where they are seen to be what is meant.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from .adapters import OF_REFERENCE
from .evaluation_mode import in_evaluation_mode

Weights = tuple[Tensor, Tensor | None, Tensor, Tensor, float]  # W [o, i], bias [o], A [r, i], B [o, r], scaling


def _project(x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return W x + c + s B A x `[n, o]` and A x `[n, r]` of `[n, i]`."""
    weight, bias, a, b, scaling = weights
    thin = x @ a.T
    return F.linear(x, weight, bias).addmm_(thin, b.T, alpha=scaling), thin


def _gradients(
    grad: Tensor, x: Tensor, thin: Tensor, weights: Weights, wants_x: bool, onto: Tensor | None = None
) -> tuple:
    """Return the gradients of x, A and B, given that of the output `[n, o]`; that of x is added to `onto`."""
    weight, _, a, b, scaling = weights
    back = grad @ b
    back *= scaling
    grad_x = None
    if wants_x:
        grad_x = grad @ weight if onto is None else onto.addmm_(grad, weight)
        grad_x.addmm_(back, a)
    return grad_x, back.T @ x, (thin.T @ grad).mul_(scaling).T


class _Projection(torch.autograd.Function):
    """A LoRA layer over a frozen linear one."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out, thin = _project(flat, (weight, bias, a, b, scaling))
        ctx.save_for_backward(flat, thin, weight, a, b)
        ctx.scaling = scaling
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, thin, weight, a, b = ctx.saved_tensors
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x, grad_a, grad_b = _gradients(flat, x, thin, (weight, None, a, b, ctx.scaling), ctx.needs_input_grad[0])
        return None if grad_x is None else grad_x.view(*grad.shape[:-1], -1), None, None, grad_a, grad_b, None


class _GatedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)), all three LoRA layers."""

    @staticmethod
    def forward(ctx, x: Tensor, scalings: tuple[float, float, float], *tensors: Tensor | None) -> Tensor:
        gate_w, up_w, down_w = ((*tensors[4 * i : 4 * i + 4], scalings[i]) for i in range(3))
        flat = x.reshape(-1, x.shape[-1])
        gate, gate_thin = _project(flat, gate_w)
        up, up_thin = _project(flat, up_w)
        out, down_thin = _project(F.silu(gate).mul_(up), down_w)
        ctx.save_for_backward(flat, gate, up, gate_thin, up_thin, down_thin, *tensors)
        ctx.scalings = scalings
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, gate, up, gate_thin, up_thin, down_thin, *tensors = ctx.saved_tensors
        gate_w, up_w, down_w = ((*tensors[4 * i : 4 * i + 4], ctx.scalings[i]) for i in range(3))
        active = F.silu(gate)
        flat = grad.reshape(-1, grad.shape[-1])
        grad_inner, down_a, down_b = _gradients(flat, active * up, down_thin, down_w, True)
        grad_up = active.mul_(grad_inner)
        grad_gate = torch.ops.aten.silu_backward(grad_inner.mul_(up), gate)
        wants = ctx.needs_input_grad[0]
        grad_x, gate_a, gate_b = _gradients(grad_gate, x, gate_thin, gate_w, wants)
        grad_x, up_a, up_b = _gradients(grad_up, x, up_thin, up_w, wants, grad_x)
        if wants:
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        none = (None, None)
        return grad_x, None, *none, gate_a, gate_b, *none, up_a, up_b, *none, down_a, down_b


# ---- which layers


def _fits(layer: nn.Module) -> bool:
    """Say whether a module is a LoRA layer whose every part is plain."""
    if type(layer) is not LoraLinear or len(layer.active_adapters) != 1:
        return False
    base = layer.get_base_layer()
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and _plain(layer, layer.active_adapters[0])
        and not any(_hooked(module) for module in layer.modules())
    )


def _plain(layer: LoraLinear, name: str) -> bool:
    return (
        name in layer.lora_A
        and type(layer.lora_A[name]) is nn.Linear
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
        and type(layer.lora_dropout[name]) is nn.Identity
        and name not in getattr(layer, "lora_variant", {})
    )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _names(layer: LoraLinear) -> tuple[str, ...]:
    """Return the adapter that is trained, and its frozen copy, whose results are to be the same to the bit."""
    return (layer.active_adapters[0], *((OF_REFERENCE,) if _plain(layer, OF_REFERENCE) else ()))


def _active(layer: LoraLinear, names: tuple[str, ...]) -> str | None:
    """Return the adapter that is at work, if it is one that the layer was checked for, and no other."""
    active = layer.active_adapters
    usable = len(active) == 1 and active[0] in names and not layer.disable_adapters and not layer.merged
    return active[0] if usable else None


def _weights(layer: LoraLinear, name: str, x: Tensor) -> Weights:
    """Return a layer's weights in the type that its products run in."""
    base = layer.get_base_layer()
    kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    tensors = (base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight)
    return *(tensor if tensor is None else tensor.to(kind) for tensor in tensors), layer.scaling[name]


def _linear_forward(
    layer: LoraLinear, original: Callable, names: tuple[str, ...], x: Tensor, *args, **kwargs
) -> Tensor:
    name = _active(layer, names)
    if args or kwargs or name is None:
        return original(x, *args, **kwargs)
    weights = _weights(layer, name, x)
    return _Projection.apply(x.to(weights[0].dtype), *weights)


def _mlp_forward(mlp: nn.Module, original: Callable, names: tuple[tuple[str, ...], ...], x: Tensor) -> Tensor:
    parts = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    layers = tuple((layer, _active(layer, known)) for layer, known in zip(parts, names, strict=True))
    if any(name is None for _, name in layers):
        return original(x)
    weights = [_weights(layer, name, x) for layer, name in layers]
    tensors = [tensor for item in weights for tensor in item[:4]]
    return _GatedMlp.apply(x.to(weights[0][0].dtype), tuple(item[4] for item in weights), *tensors)


def _is_gated_mlp(module: nn.Module) -> bool:
    parts = dict(module.named_children())
    return (
        set(parts) == {"gate_proj", "up_proj", "down_proj", "act_fn"}
        and type(module).__module__.startswith("transformers.models.")
        and type(parts["act_fn"]).__name__ in ("SiLU", "SiLUActivation")
        and not _hooked(module)
        and all(_fits(parts[name]) for name in ("gate_proj", "up_proj", "down_proj"))
    )


def fuse(model: nn.Module) -> int:
    """Change the LoRA layers of `model` that are plain enough, in place; return how many modules were changed.

    A layer whose adapter is switched off or merged, at which another adapter is at work, or that is given arguments of
    its own goes through PEFT as ever.
    """
    changed = 0
    for module in model.modules():
        if "forward" in vars(module):
            continue
        if _is_gated_mlp(module):
            names = tuple(_names(part) for part in (module.gate_proj, module.up_proj, module.down_proj))
            module.forward = partial(_mlp_forward, module, module.forward, names)
        elif _fits(module):
            module.forward = partial(_linear_forward, module, module.forward, _names(module))
        else:
            continue
        changed += 1
    return changed


def fuse_if_same(model: nn.Module) -> str | None:
    """Call `fuse`, and undo it if `model` then says anything else; return why in that case."""
    device = next(model.parameters()).device
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    exact = exact and not torch.is_autocast_enabled(device.type)
    ids = torch.arange(32, device=device).view(2, 16) + 1
    try:
        with torch.no_grad(), in_evaluation_mode(model):
            plain = model(input_ids=ids).logits
            if not fuse(model):
                return None
            same = torch.allclose(
                model(input_ids=ids).logits, plain, rtol=1e-4 if exact else 2e-2, atol=1e-3 if exact else 0.2
            )
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        same = False
        reason = f"the model stops with {type(error).__name__}: {str(error).splitlines()[0][:200]}"
    else:
        reason = "the model gives other logits then"
    if same:
        return None
    unfuse(model)
    return f"Fused LoRA layers: not used, because {reason}. Training goes on with PEFT's own."


def unfuse(model: nn.Module) -> None:
    """Undo `fuse`."""
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func in (_mlp_forward, _linear_forward):
            del module.forward
