"""The regimes that are compared: each is trained with router replay and without it, all else equal."""

from dataclasses import dataclass
from typing import Final

OFF_POLICY: Final = ("run.max_staleness=4", "learner.updates_per_batch=4", "learner.correction=none")
"""Old rollouts, several updates on each, and nothing that corrects for it: what a mismatch can act on."""

TOP_1: Final = (
    "producer.kv_cache_dtype=fp8",
    "learner.objective=grpo",
    "learner.old_policy=rollout",
    "learner.correction=none",
    "dispatcher.evaluate_every=20",
)
"""Nearly on-policy, ratios taken against the engine itself: what is left to act is the mismatch of the two programs."""


@dataclass(frozen=True)
class Regime:
    """What is set in the run, and what model it starts from; by default the demo's (8 experts, top 2).

    Attributes:
        name: for the picture and the table.
        warm_start_steps: supervised steps of a model that is not the demo's.
        router_offset: what is added to all router logits alike, as a router trained without z-loss has it.
    """

    name: str
    settings: tuple[str, ...]
    experts: int = 8
    top_k: int = 2
    warm_start_steps: int = 600
    router_offset: float = 0.0
    steps: int = 30


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
    Regime(
        "32 experts, top 1, router logits near 16",
        TOP_1,
        experts=32,
        top_k=1,
        warm_start_steps=450,
        router_offset=16.0,
        steps=20,
    ),
    Regime(
        "8 experts, top 1, router logits near 64", TOP_1, top_k=1, warm_start_steps=400, router_offset=64.0, steps=20
    ),
)
