"""Flip statistics of router replay: how often native routing would have chosen other experts than the recorded ones."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FlipStatistics:
    """Counts by MoE layer, which can be added over micro-batches and ranks.

    A decision is one token in one MoE layer. It is flipped if the *set* of experts that the router would choose, given
    router replay in the layers below, differs from the recorded one.

    Attributes, int64 `[moe_layers]`:
        decisions: those with a recorded route.
        flipped: those of them that native routing would have made differently.
        native: decisions without a recorded route, which are routed natively; padding is among them.
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
        """Flipped share of all decisions with a recorded route; 0 if there are none."""
        return int(self.flipped.sum()) / max(int(self.decisions.sum()), 1)

    @property
    def share_by_layer(self) -> list[float]:
        """The same share for each MoE layer."""
        return [f / max(d, 1) for f, d in zip(self.flipped.tolist(), self.decisions.tolist(), strict=True)]
