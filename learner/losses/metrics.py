"""Metrics that add up: the mean over micro-batches and ranks is exact whatever the packing.

Convention of `LossTerms.metrics`, a dict of float64 tensors with the same keys for every batch of the same kind:

- `name`: tensor `[2]` = (sum, count). Parts are added; the value shown is sum / count.
- `name_max`: tensor `[]`. Parts are combined with `max`; −inf says that nothing was seen.

Across ranks: all-reduce the first kind with SUM and the second with MAX.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

MAX_SUFFIX = "_max"


def total(values: Tensor, where: Tensor | None = None) -> Tensor:
    """(sum, count) of `values` `[T]`, of those at `where` if given."""
    chosen = values.detach() if where is None else values.detach()[where]
    total_sum = chosen.to(torch.float64).sum()
    return torch.stack((total_sum, torch.full_like(total_sum, chosen.numel())))


def peak(values: Tensor) -> Tensor:
    """Maximum of `values`, −inf if there are none."""
    if values.numel() == 0:
        return torch.tensor(-math.inf, dtype=torch.float64, device=values.device)
    return values.detach().to(torch.float64).max()


def merge_metrics(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The metrics of several batches as those of one."""
    merged: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            if name not in merged:
                merged[name] = value.clone()
            elif name.endswith(MAX_SUFFIX):
                merged[name] = torch.maximum(merged[name], value)
            else:
                merged[name] = merged[name] + value
    return merged


def metric_values(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """What to show: means and maxima as floats; names of which nothing was seen are left out."""
    shown: dict[str, float] = {}
    for name, value in metrics.items():
        if name.endswith(MAX_SUFFIX):
            if value.item() > -math.inf:
                shown[name] = value.item()
        elif value[1].item() > 0:
            shown[name] = (value[0] / value[1]).item()
    return shown
