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
    highest = constant.new_full((num_seqs,), -torch.inf).scatter_reduce(0, seq, constant, "amax")
    return alpha * torch.where(correct.to(torch.bool)[seq], constant, constant - highest[seq])
