"""Penalties, by which the rewards of a group vary where the verifier's do not. Pure."""

from collections.abc import Iterable, Sequence

from schemas import RewardComponent


def overlong(response_tokens: int, max_tokens: int, share: float) -> float:
    """DAPO's soft overlong penalty (arXiv 2503.14476, equation 13), −1..0, for L tokens of at most Lmax.

    0 if L ≤ Lmax − Lc; ((Lmax − Lc) − L) / Lc up to Lmax; −1 above. Lc = share · Lmax.
    """
    cache = share * max_tokens
    return min(0.0, max(-1.0, (max_tokens - cache - response_tokens) / cache))


def repetition(tokens: Sequence[int], ngram_tokens: int) -> float:
    """Minus the share of the n-grams that occurred before, −1 < value ≤ 0; 0 for a response shorter than one n-gram."""
    count = len(tokens) - ngram_tokens + 1
    if count <= 0:
        return 0.0
    distinct = len({tuple(tokens[at : at + ngram_tokens]) for at in range(count)})
    return (distinct - count) / count


def corrected(components: Iterable[RewardComponent]) -> float:
    """The reward that is trained on: Σ weight · value."""
    return sum(component.weight * component.value for component in components)
