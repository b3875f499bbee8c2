"""Sums, means and ranks over the tokens of a segment (a sequence, or an entropy group of one)."""

import torch
from torch import Tensor


def segment_sum(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Σ of `values` `[T]` over each segment; `[segments]`, 0 where a segment is empty."""
    return values.new_zeros(segments).index_add(0, segment, values)


def segment_count(segment: Tensor, segments: int) -> Tensor:
    """Tokens of each segment, int64 `[segments]`."""
    return torch.bincount(segment, minlength=segments)


def segment_mean(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Mean of `values` `[T]` over each segment; `[segments]`, 0 where a segment is empty."""
    return segment_sum(values, segment, segments) / segment_count(segment, segments).clamp(min=1)


def rank_from_top(values: Tensor, segment: Tensor, segments: int) -> Tensor:
    """Place of each token in its segment by descending value, int64 `[T]`, 0 the highest; ties by position."""
    by_value = torch.argsort(values, descending=True, stable=True)
    order = by_value[torch.argsort(segment[by_value], stable=True)]
    count = segment_count(segment, segments)
    first = count.cumsum(0) - count
    place = torch.arange(values.numel(), device=values.device) - first[segment[order]]
    return torch.empty_like(place).scatter_(0, order, place)
