"""The regimes that are compared: each is trained with router replay and without it, all else equal."""

from dataclasses import dataclass
from typing import Final

OFF_POLICY: Final = ("run.max_staleness=4", "learner.updates_per_batch=4", "learner.correction=none")
"""Old rollouts, several updates on each, and nothing that corrects for it: what a mismatch can act on."""


@dataclass(frozen=True)
class Regime:
    """A name for the picture, what is set in the run, and how many experts the model has (top 2 of 8 is the demo's)."""

    name: str
    settings: tuple[str, ...]
    experts: int = 8
    top_k: int = 2


REGIMES: Final = (
    Regime("bf16", ("producer.kv_cache_dtype=auto",)),
    Regime("FP8 KV cache", ("producer.kv_cache_dtype=fp8",)),
    Regime(
        "FP8 weights and KV cache, off-policy", ("producer.kv_cache_dtype=fp8", "producer.precision=fp8", *OFF_POLICY)
    ),
    Regime(
        "32 experts, FP8 weights and KV cache, off-policy",
        ("producer.kv_cache_dtype=fp8", "producer.precision=fp8", *OFF_POLICY),
        experts=32,
        top_k=4,
    ),
)
