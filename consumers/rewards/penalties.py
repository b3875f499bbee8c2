"""Penalties, by which the rewards of a group vary where the verifier's do not. Pure."""

from collections.abc import Iterable, Sequence

from schemas import RewardComponent


def overlong(sampled_tokens: int, max_tokens: int, share: float) -> float:
    """DAPO's soft overlong penalty (arXiv 2503.14476, equation 13), −1..0, for L sampled tokens of at most Lmax.

    0 if L ≤ Lmax − Lc; ((Lmax − Lc) − L) / Lc up to Lmax; −1 above. Lc = share · Lmax.
    """
    cache = share * max_tokens
    return min(0.0, max(-1.0, (max_tokens - cache - sampled_tokens) / cache))


def repetition(runs: Sequence[Sequence[int]], ngram_tokens: int) -> float:
    """Minus the share of the n-grams that occurred before, −1 < value ≤ 0; 0 for a response shorter than one n-gram.

    `runs` are the response's sampled tokens; no n-gram reaches over what was given between two runs.
    """
    ngrams = [tuple(run[at : at + ngram_tokens]) for run in runs for at in range(len(run) - ngram_tokens + 1)]
    return (len(set(ngrams)) - len(ngrams)) / len(ngrams) if ngrams else 0.0


def corrected(components: Iterable[RewardComponent]) -> float:
    """The reward that is trained on: Σ weight · value."""
    return sum(component.weight * component.value for component in components)
