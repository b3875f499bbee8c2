"""The papers' objectives once more: float64 NumPy, one response and one token at a time, from the printed formulas.

Nothing here is shared with the code under test. What a paper puts under a stop-gradient is computed from `held`, the
log-probabilities at the point where the gradient is taken, so that finite differences of these functions in `logp`
alone are the gradient that the paper means.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from learner.losses import TokenBatch

Array = npt.NDArray[np.float64]
Paper = Callable[["Data", Array, Array], float]
"""`(data, logp, held) -> loss`."""


@dataclass(frozen=True)
class Data:
    """The constants of a batch."""

    old: Array
    advantage: Array
    seq: npt.NDArray[np.int64]
    responses: int
    entropy: Array
    rollout: Array
    reference: Array
    vocabulary: int

    @classmethod
    def of(cls, batch: TokenBatch) -> "Data":
        assert batch.entropy_old is not None and batch.logp_rollout is not None
        assert batch.logp_ref is not None and batch.vocab_size is not None
        return cls(
            batch.logp_old.double().numpy(),
            batch.advantage.double().numpy(),
            batch.seq.numpy(),
            batch.num_seqs,
            batch.entropy_old.double().numpy(),
            batch.logp_rollout.double().numpy(),
            batch.logp_ref.double().numpy(),
            batch.vocab_size,
        )

    def each(self) -> Iterator[list[int]]:
        """The tokens of each response that has any."""
        for response in range(self.responses):
            tokens = [t for t in range(len(self.seq)) if self.seq[t] == response]
            if tokens:
                yield tokens


def ppo(ratio: float, advantage: float, low: float, high: float) -> float:
    """arXiv 1707.06347, Eq. 7."""
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def grpo(low: float = 0.2, high: float = 0.28) -> Paper:
    """arXiv 2402.03300, Eq. 3 without its KL term; two-sided clip range of arXiv 2503.14476."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = [
            sum(ppo(math.exp(logp[t] - d.old[t]), d.advantage[t], low, high) for t in tokens) / len(tokens)
            for tokens in d.each()
        ]
        return -sum(each) / len(each)

    return loss


def dr_grpo(max_tokens: int, low: float = 0.2, high: float = 0.28) -> Paper:
    """arXiv 2503.20783: a constant in place of the response's length."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = [
            sum(ppo(math.exp(logp[t] - d.old[t]), d.advantage[t], low, high) for t in tokens) / max_tokens
            for tokens in d.each()
        ]
        return -sum(each) / len(each)

    return loss


def dapo(low: float = 0.2, high: float = 0.28) -> Paper:
    """arXiv 2503.14476, Eq. 8."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        tokens = [t for some in d.each() for t in some]
        return -sum(ppo(math.exp(logp[t] - d.old[t]), d.advantage[t], low, high) for t in tokens) / len(tokens)

    return loss


def gspo(low: float = 3e-4, high: float = 4e-4) -> Paper:
    """arXiv 2507.18071, Eq. 5 and 7: the sequence form, in which nothing is held."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = []
        for tokens in d.each():
            likelihood_ratio = math.exp(sum(logp[t] for t in tokens) - sum(d.old[t] for t in tokens))
            each.append(ppo(likelihood_ratio ** (1 / len(tokens)), d.advantage[tokens[0]], low, high))
        return -sum(each) / len(each)

    return loss


def gspo_token(low: float = 3e-4, high: float = 4e-4) -> Paper:
    """arXiv 2507.18071, Eq. 13 and 14: an advantage for each token."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = []
        for tokens in d.each():
            likelihood_ratio = math.exp(sum(held[t] for t in tokens) - sum(d.old[t] for t in tokens))
            s = likelihood_ratio ** (1 / len(tokens))
            terms = [ppo(s * math.exp(logp[t]) / math.exp(held[t]), d.advantage[t], low, high) for t in tokens]
            each.append(sum(terms) / len(tokens))
        return -sum(each) / len(each)

    return loss


def cispo(low: float = 1.0, high: float = 4.0) -> Paper:
    """arXiv 2506.13585, Eq. 4 and 5."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        total, count = 0.0, 0
        for tokens in d.each():
            for t in tokens:
                weight = min(max(math.exp(held[t] - d.old[t]), 1 - low), 1 + high)
                total += weight * d.advantage[t] * logp[t]
                count += 1
        return -total / count

    return loss


def gmpo(low: float = 0.4, high: float = 0.4) -> Paper:
    """arXiv 2507.20673, Eq. 4."""

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = []
        for tokens in d.each():
            advantage = d.advantage[tokens[0]]
            sign = 1.0 if advantage > 0 else -1.0
            product = 1.0
            for t in tokens:
                powered = math.exp(logp[t] - d.old[t]) ** sign
                product *= min(powered, min(max(powered, math.exp(-low)), math.exp(high))) ** sign
            each.append(product ** (1 / len(tokens)) * advantage)
        return float(-sum(each) / len(each))

    return loss


def espo(
    *,
    alpha: float = 0.02,
    shares: Sequence[float] = (0.2,),
    times_token: bool = False,
    epsilon: float | None = None,
    floor: float = 0.0,
    clip: tuple[float, float] | None = None,
) -> Paper:
    """arXiv 2512.00499; `shares` are the cumulative shares, from the highest entropy down, of all groups but the last.

    `times_token` is Eq. 9 as printed.
    """

    def loss(d: Data, logp: Array, held: Array) -> float:
        each = []
        for tokens in d.each():
            groups = []
            for group in entropy_groups(tokens, d.entropy, shares):
                s = math.exp(sum(held[t] - d.old[t] for t in group) / len(group))
                adaptive = alpha * sum(d.entropy[t] for t in group) / len(group) / math.log(d.vocabulary)
                eps = max(adaptive, floor) if epsilon is None else epsilon
                low, high = clip or (eps, eps)
                below = d.old if times_token else held
                terms = [ppo(s * math.exp(logp[t]) / math.exp(below[t]), d.advantage[t], low, high) for t in group]
                groups.append(sum(terms) / len(group))
            each.append(sum(groups) / len(groups))
        return -sum(each) / len(each)

    return loss


def entropy_groups(tokens: Sequence[int], entropy: Array, shares: Sequence[float]) -> list[list[int]]:
    """The tokens of a response by descending entropy, cut after ⌈share·n⌉ of them; empty groups left out."""
    order = sorted(tokens, key=lambda t: (-entropy[t], t))
    cuts = [0, *(math.ceil(round(share * len(order), 9)) for share in shares), len(order)]
    return [order[cuts[i] : cuts[i + 1]] for i in range(len(cuts) - 1) if cuts[i + 1] > cuts[i]]


def k3(d: Data, logp: Array) -> Array:
    """J. Schulman's estimate of KL(π_θ‖π_ref) of each token."""
    return np.array([math.exp(d.reference[t] - logp[t]) - (d.reference[t] - logp[t]) - 1 for t in range(len(logp))])


def slopes(paper: Paper, data: Data, logp: Array, step: float = 1e-6) -> Array:
    """The gradient with respect to `logp` by central differences."""
    grad = np.zeros_like(logp)
    for t in range(len(logp)):
        nudge = np.zeros_like(logp)
        nudge[t] = step
        grad[t] = (paper(data, logp + nudge, logp) - paper(data, logp - nudge, logp)) / (2 * step)
    return grad
