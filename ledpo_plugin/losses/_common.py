"""What every loss does first and last: check shapes, form log-ratios, pack the result."""

from torch import Tensor
from torch.nn import functional as F

from ledpo_plugin.losses._types import LossOutput, PairLogps, UnpairedLogps


def check_shapes(logps: PairLogps | UnpairedLogps, beta: Tensor) -> None:
    """Refuse every tensor that is not `[B]` like the first one of `logps` (`kl`: a scalar).

    Broadcasting would turn a `[B, 1]` beta into a plausible `[B, B]` loss.

    Raises:
        ValueError: "beta has shape (8, 1), expected (8,)".
    """
    size = tuple(logps[0].shape[:1])
    for name, tensor in (*logps._asdict().items(), ("beta", beta)):
        expected = () if name == "kl" else size
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def log_ratios(loss: str, logps: PairLogps, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Check shapes and return the log-ratios of policy to reference, chosen and rejected, each `[B]` in nats.

    Raises:
        ValueError: a shape is wrong, or the reference log-probabilities are missing.
    """
    check_shapes(logps, beta)
    if logps.reference_chosen is None or logps.reference_rejected is None:
        raise ValueError(f"the loss {loss!r} needs the reference model's log-probabilities, which are missing")
    return logps.policy_chosen - logps.reference_chosen, logps.policy_rejected - logps.reference_rejected


def average_logps(logps: PairLogps, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Check shapes and return the policy's log-probabilities per token, chosen and rejected, each `[B]`."""
    check_shapes(logps, beta)
    return logps.policy_chosen / logps.chosen_length, logps.policy_rejected / logps.rejected_length


def nll(logps: PairLogps) -> Tensor:
    """Return the chosen answer's negative log-likelihood per token, `[B]`: the SFT term of several losses."""
    return -logps.policy_chosen / logps.chosen_length


def smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """Return -(1 - e) LS(z) - e LS(-z), the logistic loss under a share e of flipped labels."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def with_rewards(losses: Tensor, beta: Tensor, chosen: Tensor, rejected: Tensor | None) -> LossOutput:
    """Pack the losses with the implicit rewards beta * score, of the same beta tensor, without gradient."""
    rejected_rewards = None if rejected is None else (beta * rejected).detach()
    return LossOutput(losses, (beta * chosen).detach(), rejected_rewards)
