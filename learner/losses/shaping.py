"""RL-ZVP: an advantage for groups whose rewards are all the same (arXiv 2509.21880)."""

import torch
from torch import Tensor


def zero_variance_advantage(
    entropy: Tensor, seq: Tensor, num_seqs: int, correct: Tensor, *, alpha: float = 0.1
) -> Tensor:
    """Â_t = α·H_t in an all-correct group and −α·(max_k H_k − H_t) in an all-wrong one.

    Uncertain tokens are rewarded most for being right and punished least for being wrong. The maximum is over the
    tokens of the response.

    Args:
        entropy: H, `[T]`, full-vocabulary entropy in nats; taken as a constant.
        seq: int64 `[T]`, sequence of each token.
        num_seqs: S.
        correct: bool `[S]`, whether the sequence's group was all correct (else: all wrong).
        alpha: scale.

    Returns:
        `[T]`, detached.

    Raises:
        ValueError: `correct` is not `[S]`, or shapes of `entropy` and `seq` differ.
    """
    if correct.shape != (num_seqs,):
        raise ValueError(f"correct has shape {list(correct.shape)}, allowed is [{num_seqs}], one flag a sequence.")
    if entropy.shape != seq.shape:
        raise ValueError(f"entropy has shape {list(entropy.shape)}, allowed is that of seq, {list(seq.shape)}.")
    constant = entropy.detach()
    # One entropy that is not finite spoils its own token alone.
    comparable = torch.where(constant.isfinite(), constant, -torch.inf)
    highest = constant.new_full((num_seqs,), -torch.inf).scatter_reduce(0, seq, comparable, "amax")
    return alpha * torch.where(correct.to(torch.bool)[seq], constant, constant - highest[seq])


def shaped_advantage(
    advantage: Tensor, unanimous: Tensor, entropy: Tensor, seq: Tensor, *, alpha: float = 0.1
) -> Tensor:
    """`advantage` `[T]`, in place of which the sequences of unanimous groups have their entropy-shaped one.

    `unanimous` `[S]`: 1 for a sequence of a group that was all correct, -1 all wrong, 0 neither; the others as for
    `zero_variance_advantage`.
    """
    shaped = zero_variance_advantage(entropy, seq, len(unanimous), unanimous > 0, alpha=alpha)
    return torch.where(unanimous[seq] == 0, advantage, shaped.to(advantage.dtype))
