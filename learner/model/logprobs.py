"""Log-probability of the sampled tokens and entropy of the policy, without the `[tokens, vocabulary]` matrix.

For hidden states h_t and head weight W, with z = W·h_t / temperature:

    logp_t = z_{y_t} − log Σ_v e^{z_v}            ∂logp/∂z_v = 1[v = y_t] − p_v
    H_t    = log Σ_v e^{z_v} − Σ_v p_v z_v        ∂H/∂z_v    = −p_v (log p_v + H_t)

Both passes iterate over tiles of some tokens by a block of the vocabulary, small enough for the processor's cache,
where a dense computation streams `[T, V]` through memory several times. Forward combines the blocks j of a token by the
chain rule of entropy: with L_j = log Σ_{v∈j} e^{z_v}, H_j the entropy inside block j and w_j = e^{L_j − L},

    L = log Σ_j e^{L_j}            H = Σ_j w_j (H_j − log w_j)

in which no term is negative, so that nothing cancels where the policy is certain. Every L is kept as the largest logit
and the remainder, so that large logits cost no precision. Backward recomputes the logits of each tile: four matrix
products in place of the dense computation's three, which the saved passes over memory outweigh.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

_TILE: Final = {"cpu": (1024, 2048), "cuda": (4096, 16_384)}
"""Tokens and vocabulary entries of a tile: what fits a CPU's cache; what keeps CUDA's matrix units busy."""


def token_logprobs_and_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π(y_t) and the full-vocabulary entropy, both in nats; gradients of both reach `hidden` and `weight`.

    Args:
        hidden: `[T, H]`, any floating dtype, last hidden states, after the final norm; T may be 0.
        weight: `[V, H]`, the output head, same dtype and device. Under FSDP call this inside the forward of the module
            that owns the head, where the weight is whole (for a stock `lm_head`: replace its `forward`, not its call).
        targets: int64 `[T]`, the sampled tokens.
        chunk_tokens: most tokens of one tile. Working memory is two to three tiles, each of at most 2 million
            elements on a CPU and 64 million on CUDA; in 16 bits also a float32 copy of `hidden`'s gradient.
        temperature: the sampling temperature, so that logp is of the distribution that was sampled from.

    Returns:
        (logp `[T]`, entropy `[T]`), float32, or float64 for float64 input. Once differentiable; an output that the
        loss does not read costs nothing in backward.

    Raises:
        ValueError: shapes or dtypes do not match, a target is outside the vocabulary, `weight` is a DTensor shard, or
            `chunk_tokens` or `temperature` is not positive.
    """
    _check(hidden, weight, targets, chunk_tokens, temperature)
    logp, entropy = _TiledHead.apply(  # type: ignore[no-untyped-call]
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


class _TiledHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, temperature: float
    ) -> tuple[Tensor, Tensor]:
        tiles = _Tiles(hidden, weight, chunk_tokens, temperature)
        sampled, entropy, highest, partition = (hidden.new_zeros(len(hidden), dtype=tiles.dtype) for _ in range(4))
        for some in tiles.tokens():
            tops, partitions, means = hidden.new_empty(3, tiles.blocks, len(targets[some]), dtype=tiles.dtype)
            for index, block in enumerate(tiles.vocabulary()):
                logits = tiles.logits(some, block)
                token, inside = _inside(targets[some], block)
                sampled[some].index_put_((token,), logits[token, inside])
                _summarise(logits, tiles.beside(logits), tops[index], partitions[index], means[index])
            highest[some], partition[some], entropy[some] = _combine(tops, partitions.log_(), means)
        ctx.save_for_backward(hidden, weight, targets, highest, partition, entropy)
        ctx.chunk_tokens, ctx.temperature = chunk_tokens, temperature
        ctx.set_materialize_grads(False)
        return (sampled - highest) - partition, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_logp is None and grad_entropy is None:
            return None, None, None, None, None
        hidden, weight, targets, highest, partition, entropy = ctx.saved_tensors
        grad_logp = None if grad_logp is None else grad_logp / ctx.temperature
        grad_entropy = None if grad_entropy is None else grad_entropy / ctx.temperature
        tiles = _Tiles(hidden, weight, ctx.chunk_tokens, ctx.temperature)
        grad_hidden = torch.zeros_like(hidden, dtype=tiles.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for block in tiles.vocabulary():
            # Tiles are summed in working precision, whatever the weight's dtype: added to the likely tokens' large sum
            # in 16 bits, the many small contributions of unlikely tokens would be rounded away.
            grad_block = torch.zeros_like(weight[block], dtype=tiles.dtype) if grad_weight is not None else None
            for some in tiles.tokens():
                logp = tiles.logits(some, block).sub_(highest[some, None]).sub_(partition[some, None])
                slope = _slope(
                    logp, tiles.beside(logp), entropy[some], _part(grad_logp, some), _part(grad_entropy, some)
                )
                if grad_logp is not None:
                    token, inside = _inside(targets[some], block)
                    slope.index_put_((token, inside), grad_logp[some][token], accumulate=True)
                narrow = tiles.narrowed(slope)
                if grad_hidden is not None:
                    grad_hidden[some].add_(narrow @ weight[block])
                if grad_block is not None:
                    grad_block.add_(narrow.t() @ hidden[some])
            if grad_weight is not None and grad_block is not None:
                grad_weight[block] = grad_block
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype)), grad_weight, None, None, None


class _Tiles:
    """The tiles of a `[T, V]` matrix of logits, and the memory in which one at a time is computed.

    One allocation serves all tiles: repeated large allocations between small long-lived ones fragment a CPU's heap.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, chunk_tokens: int, temperature: float) -> None:
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self._hidden, self._weight, self._temperature = hidden, weight, temperature
        rows, width = _TILE["cpu" if hidden.device.type == "cpu" else "cuda"]
        self._rows = max(1, min(hidden.shape[0], chunk_tokens, rows))
        self._width = max(1, min(weight.shape[0], width))
        self._wide = hidden.new_empty(2, self._rows * self._width, dtype=self.dtype)
        self._narrow = None if hidden.dtype == self.dtype else hidden.new_empty(self._rows * self._width)

    @property
    def blocks(self) -> int:
        """Blocks of the vocabulary."""
        return -(-self._weight.shape[0] // self._width)

    def tokens(self) -> Iterator[slice]:
        """Each tile's tokens."""
        total = self._hidden.shape[0]
        return (slice(first, min(first + self._rows, total)) for first in range(0, total, self._rows))

    def vocabulary(self) -> Iterator[slice]:
        """Each tile's block of the vocabulary."""
        total = self._weight.shape[0]
        return (slice(first, min(first + self._width, total)) for first in range(0, total, self._width))

    def logits(self, tokens: slice, block: slice) -> Tensor:
        """A tile's logits in working precision, in this object's memory; the product is in the model's precision."""
        shape = tokens.stop - tokens.start, block.stop - block.start
        logits = _view(self._wide[0], shape)
        product = logits if self._narrow is None else _view(self._narrow, shape)
        torch.mm(self._hidden[tokens], self._weight[block].t(), out=product)
        if product is not logits:
            logits.copy_(product)
        return logits if self._temperature == 1.0 else logits.div_(self._temperature)

    def beside(self, tile: Tensor) -> Tensor:
        """A second tile of the same shape."""
        return _view(self._wide[1], tile.shape)

    def narrowed(self, tile: Tensor) -> Tensor:
        """The tile in the model's precision."""
        return tile if self._narrow is None else _view(self._narrow, tile.shape).copy_(tile)


def _view(memory: Tensor, shape: Sequence[int]) -> Tensor:
    return memory[: shape[0] * shape[1]].view(shape[0], shape[1])


def _inside(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """The tokens whose target lies in the block of the vocabulary, and the target's index within the block."""
    token = ((targets >= block.start) & (targets < block.stop)).nonzero().squeeze(1)
    return token, targets[token] - block.start


def _summarise(logits: Tensor, beside: Tensor, top: Tensor, partition: Tensor, mean: Tensor) -> None:
    """Into `top`, `partition`, `mean`, `[tokens]` each: m = max_v z_v of the block, Σ_v e^{z_v − m}, mean of z_v − m.

    Overwrites the block's logits.
    """
    least = torch.finfo(logits.dtype).min
    torch.amax(logits, dim=-1, out=top).clamp_(min=least)
    # A token of probability 0 has z = −∞, and 0·(−∞) would be NaN.
    logits.sub_(top[:, None]).clamp_(min=least)
    torch.exp(logits, out=beside)
    # The largest logit alone contributes 1; a block of impossible tokens (all −∞) gets 1 too, and weight 0.
    torch.sum(beside, dim=-1, out=partition).clamp_(min=1.0)
    torch.linalg.vecdot(beside, logits, out=mean).div_(partition)


def _combine(tops: Tensor, log_partitions: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(max_v z_v, log Σ_v e^{z_v − max}, entropy), `[tokens]` each, from the blocks' own, `[blocks, tokens]` each."""
    highest = tops.amax(dim=0)
    relative = (tops - highest) + log_partitions
    log_partition = torch.logsumexp(relative, dim=0)
    log_share = (relative - log_partition).clamp_(min=torch.finfo(highest.dtype).min)
    return highest, log_partition, (log_share.exp() * (log_partitions - means - log_share)).sum(dim=0)


def _part(values: Tensor | None, some: slice) -> Tensor | None:
    return None if values is None else values[some]


def _slope(
    logp: Tensor, beside: Tensor, entropy: Tensor, grad_logp: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    """Gradient with respect to z of a tile, `[tokens, width]`, but for the sampled tokens' own g_logp.

    −g_logp·p_v − g_H·p_v·(log p_v + H); overwrites `logp` and `beside`.
    """
    if grad_entropy is None:
        assert grad_logp is not None
        return logp.exp_().mul_(-grad_logp[:, None])
    slope = torch.exp(logp, out=beside)
    factor = logp.clamp_(min=torch.finfo(logp.dtype).min).add_(entropy[:, None]).mul_(-grad_entropy[:, None])
    return slope.mul_(factor if grad_logp is None else factor.sub_(grad_logp[:, None]))
