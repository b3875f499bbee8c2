"""Log-probability of the sampled tokens and entropy of the policy, without the whole `[tokens, vocabulary]` matrix.

For hidden states h_t and head weight W, with z = W·h_t / temperature:

    logp_t = z_{y_t} − log Σ_v e^{z_v}            ∂logp/∂z_v = 1[v = y_t] − p_v
    H_t    = log Σ_v e^{z_v} − Σ_v p_v z_v        ∂H/∂z_v    = −p_v (log p_v + H_t)

Forward walks over chunks of tokens. Backward computes the logits again (one matrix product more than the dense way: 4
in place of 3) and walks over chunks of the *vocabulary*, which log Σ e^z from the forward pass makes possible: each
row of the weight's gradient is then one exact product over all tokens rather than a running sum over chunks. Both hold
a few matrices of `chunk_tokens × V` elements at a time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor


def token_logprobs_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π(y_t) and the full-vocabulary entropy, both in nats; gradients of both reach `hidden` and `weight`.

    Args:
        hidden: `[T, H]`, last hidden states, after the final norm; T may be 0.
        weight: `[V, H]`, the output head, same dtype and device. Under FSDP call this inside the forward of the module
            that owns the head, where the weight is whole (for a stock `lm_head`: replace its `forward`, not its call).
        targets: int64 `[T]`, the sampled tokens.
        chunk_tokens: working memory is about `3 × chunk_tokens × V` elements of float32.
        temperature: the sampling temperature, so that logp is of the distribution that was sampled from.

    Returns:
        (logp `[T]`, entropy `[T]`), float32, or float64 for float64 input. Once differentiable.

    Raises:
        ValueError: shapes or dtypes do not fit, a target is no token of the vocabulary, `weight` is a DTensor shard, or
            `chunk_tokens` or `temperature` is not positive.
    """
    _check(hidden, weight, targets, chunk_tokens, temperature)
    logp, entropy = _ChunkedHead.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, chunk_tokens, float(temperature)
    )
    return logp, entropy


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, temperature: float) -> None:
    if isinstance(weight, DTensor):
        raise ValueError(
            "weight is a sharded DTensor, allowed is a whole tensor: call inside its FSDP module's forward."
        )
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {list(hidden.shape)} and weight {list(weight.shape)} must be [T, H] and [V, H].")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight is {weight.dtype}, allowed is one dtype for both.")
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype} {list(targets.shape)}, allowed is int64 [{hidden.shape[0]}].")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}, allowed is 1 or more.")
    if not temperature > 0.0:
        raise ValueError(f"temperature is {temperature}, allowed is above 0.")
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < weight.shape[0]:
        low, high = int(targets.min()), int(targets.max())
        raise ValueError(f"targets run from {low} to {high}, allowed is 0 to {weight.shape[0] - 1} (the vocabulary).")


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logp, entropy, log_total = (hidden.new_empty(hidden.shape[0], dtype=dtype) for _ in range(3))
        for start in range(0, hidden.shape[0], chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            logits = _logits(hidden[rows], weight, temperature, dtype)
            sampled = logits.gather(1, targets[rows, None]).squeeze(1)
            highest = logits.amax(dim=-1)
            weights = logits.sub_(highest[:, None]).exp()
            partition = weights.sum(dim=-1)
            # A token of probability 0 has z = −∞, and 0·(−∞) would be NaN.
            mean = torch.linalg.vecdot(weights, logits.clamp_(min=torch.finfo(dtype).min)) / partition
            # From logits below their maximum, both terms are small where the policy is certain: nothing cancels.
            entropy[rows] = partition.log() - mean
            log_total[rows] = highest + partition.log()
            logp[rows] = (sampled - highest) - partition.log()
        ctx.save_for_backward(hidden, weight, targets, log_total, entropy)
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        hidden, weight, targets, log_total, entropy = ctx.saved_tensors
        grad_logp = None if grad_logp is None else grad_logp / ctx.temperature
        grad_entropy = None if grad_entropy is None else grad_entropy / ctx.temperature
        tokens, vocabulary = hidden.shape[0], weight.shape[0]
        grad_hidden = torch.zeros_like(hidden, dtype=log_total.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        width = max(1, ctx.chunk_tokens * vocabulary // max(tokens, 1))
        for start in range(0, vocabulary if tokens else 0, width):
            block = weight[start : start + width]
            logp = _logits(hidden, block, ctx.temperature, log_total.dtype).sub_(log_total[:, None])
            slope = _slope(logp, targets - start, entropy, grad_logp, grad_entropy)
            grad_logits = slope.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += grad_logits @ block
            if grad_weight is not None:
                grad_weight[start : start + width] = grad_logits.t() @ hidden
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype)), grad_weight, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Logits in working precision, in a tensor of their own; the product itself is in the model's precision."""
    logits = (hidden @ weight.t()).to(dtype)
    return logits if temperature == 1.0 else logits.div_(temperature)


def _slope(
    logp: Tensor, targets: Tensor, entropy: Tensor, grad_logp: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    """Gradient with respect to z of a block of the vocabulary, `[T, width]`; overwrites `logp` of the block.

    g_logp·(1[v = y_t] − p_v) − g_H·p_v·(log p_v + H); `targets` count from the block's first token.
    """
    slope = logp.exp()
    if grad_entropy is not None:
        factor = logp.clamp_(min=torch.finfo(logp.dtype).min).add_(entropy[:, None]).mul_(-grad_entropy[:, None])
        slope.mul_(factor if grad_logp is None else factor.sub_(grad_logp[:, None]))
    elif grad_logp is not None:
        slope.mul_(-grad_logp[:, None])
    if grad_logp is not None:
        inside = ((targets >= 0) & (targets < logp.shape[1])).nonzero().squeeze(1)
        slope.index_put_((inside, targets[inside]), grad_logp[inside], accumulate=True)
    return slope
