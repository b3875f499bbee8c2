"""Flip statistics: how often the trainer's own routing would have differed from the replayed one."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FlipStatistics:
    """Counts by MoE layer, so that those of several micro-batches and ranks can be added.

    A decision is one token in one MoE layer; it is flipped if the *set* of experts that the live router would choose,
    given the replayed layers below, is another than the recorded one.

    Attributes, int64 `[moe_layers]`:
        decisions: replayed decisions.
        flipped: those that native routing would have made differently.
        native: decisions without a recorded route, routed natively (padding rows among them).
    """

    decisions: Tensor
    flipped: Tensor
    native: Tensor

    def __add__(self, other: "FlipStatistics") -> "FlipStatistics":
        return FlipStatistics(
            self.decisions + other.decisions, self.flipped + other.flipped, self.native + other.native
        )

    @property
    def share(self) -> float:
        """Flipped share of all replayed decisions; 0 if there are none."""
        return int(self.flipped.sum()) / max(int(self.decisions.sum()), 1)

    @property
    def share_by_layer(self) -> list[float]:
        """Flipped share of each MoE layer's replayed decisions."""
        return [f / max(d, 1) for f, d in zip(self.flipped.tolist(), self.decisions.tolist(), strict=True)]
