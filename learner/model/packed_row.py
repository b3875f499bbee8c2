"""Packing: several sequences in one row without padding, and what each of their tokens is trained on.

tokens        p0 p1 r0 r1 | q0 s0 s1 s2        [T], prompt and response of each sequence
position_ids   0  1  2  3 |  0  1  2  3        restart, so that attention stays within a sequence
predictors        1  2    |  4  5  6           the row whose hidden state predicts a response token
targets          r0 r1    | s0 s1 s2           [R], response tokens only
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from schemas import Unanimous

_UNANIMOUS: Final[dict[Unanimous | None, int]] = {None: 0, "correct": 1, "wrong": -1}
NATIVE = -1
"""In routes: the layer's own decision, where the engine recorded none."""


@dataclass(frozen=True)
class Rollout:
    """One sequence to train on.

    `tokens` int64 `[P + R]`; `logp_rollout` float32 `[R]`, as the engine sampled; `routes` int16 `[P + R, moe_layers,
    top_k]` with -1 for native, or None. `temperature`: at which it was sampled, and is trained. `reward` and
    `staleness` (batches since its oldest weights) are only reported. `unanimous` where the group's rewards have no
    variance: the advantage is then made of the tokens' entropies.
    """

    rollout_id: str
    tokens: Tensor
    prompt_tokens: int
    logp_rollout: Tensor
    routes: Tensor | None
    advantage: float
    reward: float
    staleness: int = 0
    temperature: float = 1.0
    unanimous: Unanimous | None = None

    @property
    def response_tokens(self) -> int:
        """R."""
        return len(self.tokens) - self.prompt_tokens


@dataclass(frozen=True)
class PackedRow:
    """One micro-batch: `tokens` and `position_ids` int64 `[T]`, the others `[R]`, `routes` `[T, moe_layers, top_k]`.

    `lengths` are the tokens of each sequence in the row, in its order. `unanimous` `[S]`: 1 for a sequence of a group
    that was all correct, -1 all wrong, 0 neither; None where that is all of them. `temperature` `[R]`; None where it is
    1 for all.
    """

    tokens: Tensor
    position_ids: Tensor
    predictors: Tensor
    targets: Tensor
    seq: Tensor
    advantage: Tensor
    logp_rollout: Tensor
    routes: Tensor | None
    num_seqs: int
    lengths: tuple[int, ...]
    unanimous: Tensor | None = None
    temperature: Tensor | None = None

    def to(self, device: torch.device) -> "PackedRow":
        """The same row on `device`."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return PackedRow(**{**vars(self), **moved})


def pack(rollouts: Sequence[Rollout]) -> PackedRow:
    """The rollouts one after the other. ValueError: none, one without a prompt token, or routes of different shapes.

    Where only some have routes the others' are native throughout.
    """
    if not rollouts:
        raise ValueError("a micro-batch holds at least one sequence")
    for rollout in rollouts:
        if rollout.prompt_tokens < 1:
            raise ValueError(f"rollout {rollout.rollout_id} has no prompt token to predict its first token from")
    starts = [0]
    for rollout in rollouts[:-1]:
        starts.append(starts[-1] + len(rollout.tokens))
    lengths = torch.tensor([rollout.response_tokens for rollout in rollouts])
    return PackedRow(
        tokens=torch.cat([rollout.tokens for rollout in rollouts]),
        position_ids=torch.cat([torch.arange(len(rollout.tokens)) for rollout in rollouts]),
        predictors=torch.cat(
            [
                torch.arange(start + rollout.prompt_tokens - 1, start + len(rollout.tokens) - 1)
                for start, rollout in zip(starts, rollouts, strict=True)
            ]
        ),
        targets=torch.cat([rollout.tokens[rollout.prompt_tokens :] for rollout in rollouts]),
        seq=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        advantage=torch.repeat_interleave(torch.tensor([rollout.advantage for rollout in rollouts]), lengths),
        logp_rollout=torch.cat([rollout.logp_rollout for rollout in rollouts]),
        routes=_pack_routes(rollouts),
        num_seqs=len(rollouts),
        lengths=tuple(len(rollout.tokens) for rollout in rollouts),
        unanimous=_pack_unanimous(rollouts),
        temperature=_pack_temperature(rollouts, lengths),
    )


def filler() -> PackedRow:
    """A row without response tokens: a rank that has run out of micro-batches takes part in collectives with it."""
    empty = torch.zeros(0)
    nothing = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    return PackedRow(zero, zero, nothing, nothing, nothing, empty, empty, None, 0, (1,))


def assign(ranks: Sequence[Sequence[Sequence[int]]], world: int) -> list[list[tuple[int, ...]]]:
    """Micro-batches of each of `world` ranks: the plan's own, or dealt out in turn if it is for another number."""
    if len(ranks) == world:
        return [[tuple(micro) for micro in rank] for rank in ranks]
    micros = [tuple(micro) for rank in ranks for micro in rank]
    return [micros[rank::world] for rank in range(world)]


def _pack_unanimous(rollouts: Sequence[Rollout]) -> Tensor | None:
    if all(rollout.unanimous is None for rollout in rollouts):
        return None
    return torch.tensor([_UNANIMOUS[rollout.unanimous] for rollout in rollouts])


def _pack_temperature(rollouts: Sequence[Rollout], lengths: Tensor) -> Tensor | None:
    if all(rollout.temperature == 1.0 for rollout in rollouts):
        return None
    return torch.repeat_interleave(torch.tensor([rollout.temperature for rollout in rollouts]), lengths)


def _pack_routes(rollouts: Sequence[Rollout]) -> Tensor | None:
    shape = next((rollout.routes.shape[1:] for rollout in rollouts if rollout.routes is not None), None)
    if shape is None:
        return None
    return torch.cat(
        [
            torch.full((len(rollout.tokens), *shape), NATIVE, dtype=torch.int16)
            if rollout.routes is None
            else rollout.routes
            for rollout in rollouts
        ]
    )
