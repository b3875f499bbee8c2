"""Attention within each sequence of a packed row, at the cost of the sequences and not of the row.

A block-diagonal mask makes SDPA on a CPU compute all T² scores of a row of T tokens. Here sequences of like length are
laid side by side, `[sequences, heads, longest, head_dim]`, and attend causally: Σ n² scores, at most four times that
through the rounding of lengths to powers of two. Equal to attention sequence by sequence, whatever the packing.
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
    """Sequences of like length: where the row's tokens go in the padded layout `[sequences · longest]`, and back."""

    tokens: Tensor
    places: Tensor
    sequences: int
    longest: int


@dataclass(frozen=True)
class Borders:
    """The sequences of one packed row, sorted into buckets; `longest` in tokens."""

    buckets: tuple[Bucket, ...]
    longest: int


def borders(lengths: Sequence[int], device: torch.device) -> Borders:
    """The borders of a row that holds sequences of `lengths` (each at least 1) one after the other."""
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
    return Borders(tuple(buckets), max(lengths))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Borders | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `query` `[1, heads, T, d]`, `key`, `value` alike → `[1, T, heads, d_v]`.

    ModelError: a sliding window shorter than a sequence, which this implementation has not.
    """
    assert packing is not None and attention_mask is None, "the policy hands the borders down and no mask is made"
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
        # Padding stands behind its sequence, so that the causal order alone keeps it out of every real token's sight.
        attended = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        flat = attended.transpose(1, 2).flatten(0, 1)
        out = out.index_copy(0, bucket.tokens, flat.index_select(0, bucket.places))
    return out.unsqueeze(0), None


def _lay_out(states: Tensor, bucket: Bucket) -> Tensor:
    """`[T, heads, d]` → `[sequences, heads, longest, d]`, zeros behind the shorter ones."""
    padded = states.new_zeros(bucket.sequences * bucket.longest, *states.shape[1:])
    padded = padded.index_copy(0, bucket.places, states.index_select(0, bucket.tokens))
    return padded.view(bucket.sequences, bucket.longest, *states.shape[1:]).transpose(1, 2)


def flash_borders(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """The borders of a row as flash attention's varlen kernel takes them (`FlashAttentionKwargs` of transformers).

    Told rather than left to be read off `position_ids`, which waits for the device in every layer. `deterministic`: its
    backward otherwise adds in any order, which no setting of torch's notices.
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
    """Make `attn_implementation="packed"` known to transformers; it gets no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
