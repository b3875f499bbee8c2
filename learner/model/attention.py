"""Attention within each sequence of a packed row, whose cost is the sequences' and not the row's.

With a block-diagonal mask SDPA on a CPU computes all T² scores of a row of T tokens. Here sequences of similar length
are batched, `[sequences, heads, longest, head_dim]`, and attend causally: Σ n² scores, and at most four times that,
since lengths are rounded up to powers of two. The result equals attention one sequence at a time, however packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from learner.errors import ModelError

PACKED: Final = "packed"
"""The name under which transformers knows this implementation."""


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length. With n tokens in total:

    Attributes:
        tokens: int64 `[n]`, the tokens' indices in the packed row.
        places: int64 `[n]`, their indices in the padded layout `[sequences · longest]`.
        sequences: number of sequences.
        longest: tokens of the longest one.
    """

    tokens: Tensor
    places: Tensor
    sequences: int
    longest: int


@dataclass(frozen=True)
class SequenceBoundaries:
    """The sequences of one packed row, sorted into buckets; `longest`: tokens of the longest sequence."""

    buckets: tuple[Bucket, ...]
    longest: int


def sequence_boundaries(lengths: Sequence[int], device: torch.device) -> SequenceBoundaries:
    """The boundaries in a packed row of consecutive sequences with `lengths` tokens (each at least 1)."""
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    classes: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        classes.setdefault((length - 1).bit_length(), []).append(index)
    buckets = []
    for _, members in sorted(classes.items()):
        longest = max(lengths[index] for index in members)
        tokens = [torch.arange(starts[index], starts[index] + lengths[index]) for index in members]
        places = [torch.arange(lengths[index]) + place * longest for place, index in enumerate(members)]
        buckets.append(Bucket(torch.cat(tokens).to(device), torch.cat(places).to(device), len(members), longest))
    return SequenceBoundaries(tuple(buckets), max(lengths))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: SequenceBoundaries | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface, in one dtype: `query` `[1, heads, T, d]`, `key` `[1, kv_heads, T, d]`, `value`
    `[1, kv_heads, T, d_v]` → `[1, T, heads, d_v]`.

    ModelError: the model has a sliding window shorter than a sequence, which is not implemented here.
    """
    assert packing is not None and attention_mask is None, (
        "the policy passes the sequence boundaries, and transformers makes no mask"
    )
    if sliding_window is not None and packing.longest > sliding_window:
        raise ModelError(
            f"attention 'packed' has no sliding window, and a sequence of {packing.longest} tokens is longer than the "
            f"model's {sliding_window}; use attention sdpa"
        )
    repeats = query.shape[1] // key.shape[1]
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    out = query.new_zeros(query.shape[2], query.shape[1], value.shape[-1])
    for bucket in packing.buckets:
        q, k, v = (_lay_out(states, bucket) for states in rows)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        # Padding follows its sequence, so causal attention alone keeps every real token from attending to it.
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        flat = attended.transpose(1, 2).flatten(0, 1)
        out = out.index_copy(0, bucket.tokens, flat.index_select(0, bucket.places))
    return out.unsqueeze(0), None


def _lay_out(states: Tensor, bucket: Bucket) -> Tensor:
    """`[T, heads, d]` → `[sequences, heads, longest, d]`, shorter sequences padded with zeros."""
    padded = states.new_zeros(bucket.sequences * bucket.longest, *states.shape[1:])
    padded = padded.index_copy(0, bucket.places, states.index_select(0, bucket.tokens))
    return padded.view(bucket.sequences, bucket.longest, *states.shape[1:]).transpose(1, 2)


def flash_boundaries(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """The sequence boundaries as flash attention's varlen kernel takes them (transformers' `FlashAttentionKwargs`).

    Without them transformers derives them from `position_ids`, which synchronises with the device in every layer.
    `deterministic`: otherwise the kernel's backward sums in any order, which torch's debug mode does not detect.
    """
    ends = torch.tensor((0, *lengths)).cumsum(0).to(device, torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "deterministic": True,
    }


def register() -> None:
    """Register `attn_implementation="packed"` with transformers, which then makes no mask for it."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
