"""Packed rows: several sequences in one row without padding, and the training targets of their sampled tokens.

tokens        p0 p1 r0 r1 | q0 s0 g1 s2        [T], prompt and response of each sequence; g1 was given, by a tool say
position_ids   0  1  2  3 |  0  1  2  3        restart, so that attention stays within a sequence
predictors        1  2    |  4     6           the row whose hidden state predicts a sampled token
targets          r0 r1    | s0    s2           [R], sampled tokens only

What was given is context, as the prompt is: it is left out here, once, so that log-probs, entropies, ratios, lengths,
losses and metrics are of the sampled tokens alone, whatever computes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from learner.router_replay.routes import NATIVE
from schemas import Unanimous

_UNANIMOUS: Final[dict[Unanimous | None, int]] = {None: 0, "correct": 1, "wrong": -1}


@dataclass(frozen=True)
class Rollout:
    """One sequence to train on, of P prompt and N response tokens.

    Attributes:
        tokens: int64 `[P + N]`.
        prompt_tokens: P.
        logp_rollout: float32 `[N]`, the log-probs that the engine sampled with, 0 where a token was given.
        routes: int16 `[P + N, moe_layers, top_k]`, -1 for native routing; None where none were recorded.
        advantage, reward: of the whole sequence; the reward is only reported.
        staleness: batches since the oldest weights that it was sampled with; only reported.
        temperature: the sampling temperature, at which it is trained too.
        unanimous: set where the group's rewards have no variance; advantages are then shaped by the tokens' entropies.
        sampled: bool `[N]`, which response tokens the policy sampled; None: all. Only these are trained on.
        digest: of what is trained, `schemas.digests.sequence_digest`.
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
    sampled: Tensor | None = None
    digest: bytes = b""

    @property
    def sampled_tokens(self) -> int:
        """How many tokens are trained on."""
        return len(self.tokens) - self.prompt_tokens if self.sampled is None else int(self.sampled.sum())


@dataclass(frozen=True)
class PackedRow:
    """One micro-batch of S sequences with T tokens, of which R were sampled.

    Attributes:
        tokens, position_ids: int64 `[T]`; positions restart with each sequence.
        predictors: int64 `[R]`, the index in the row of the hidden state that predicts each sampled token.
        targets: int64 `[R]`, the sampled tokens.
        seq: int64 `[R]`, the index of each sampled token's sequence in the row.
        advantage, logp_rollout: float32 `[R]`.
        routes: int16 `[T, moe_layers, top_k]`, -1 for native routing; None where no sequence has any.
        num_seqs: S.
        lengths: tokens of each sequence, in the row's order.
        unanimous: int64 `[S]`, 1 where the sequence's group was all correct, -1 all wrong, else 0; None for all 0.
        temperature: float32 `[R]`; None where it is 1 throughout.
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


def pack_rollouts(rollouts: Sequence[Rollout]) -> PackedRow:
    """Pack the rollouts into one row, in the given order. Where only some have routes, the others route natively.

    ValueError: no rollout, or one without a prompt token. RuntimeError: routes of different shapes.
    """
    if not rollouts:
        raise ValueError("a micro-batch holds at least one sequence")
    for rollout in rollouts:
        if rollout.prompt_tokens < 1:
            raise ValueError(f"rollout {rollout.rollout_id} has no prompt token to predict its first token from")
    starts = [0]
    for rollout in rollouts[:-1]:
        starts.append(starts[-1] + len(rollout.tokens))
    lengths = torch.tensor([rollout.sampled_tokens for rollout in rollouts])
    return PackedRow(
        tokens=torch.cat([rollout.tokens for rollout in rollouts]),
        position_ids=torch.cat([torch.arange(len(rollout.tokens)) for rollout in rollouts]),
        predictors=torch.cat(
            [
                _sampled(rollout, torch.arange(start + rollout.prompt_tokens - 1, start + len(rollout.tokens) - 1))
                for start, rollout in zip(starts, rollouts, strict=True)
            ]
        ),
        targets=torch.cat([_sampled(rollout, rollout.tokens[rollout.prompt_tokens :]) for rollout in rollouts]),
        seq=torch.repeat_interleave(torch.arange(len(rollouts)), lengths),
        advantage=torch.repeat_interleave(torch.tensor([rollout.advantage for rollout in rollouts]), lengths),
        logp_rollout=torch.cat([_sampled(rollout, rollout.logp_rollout) for rollout in rollouts]),
        routes=_pack_routes(rollouts),
        num_seqs=len(rollouts),
        lengths=tuple(len(rollout.tokens) for rollout in rollouts),
        unanimous=_pack_unanimous(rollouts),
        temperature=_pack_temperature(rollouts, lengths),
    )


def filler_row() -> PackedRow:
    """A row of one token and no response: a rank without further micro-batches takes part in collectives with it."""
    empty = torch.zeros(0)
    nothing = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    return PackedRow(zero, zero, nothing, nothing, nothing, empty, empty, None, 0, (1,))


def assign_micro_batches(ranks: Sequence[Sequence[Sequence[int]]], world: int) -> list[list[tuple[int, ...]]]:
    """Each of `world` ranks' micro-batches, as tuples of indices into the plan's sequences.

    As `ranks` assigns them, or round robin where the plan was made for another number of ranks.
    """
    if len(ranks) == world:
        return [[tuple(micro) for micro in rank] for rank in ranks]
    micros = [tuple(micro) for rank in ranks for micro in rank]
    return [micros[rank::world] for rank in range(world)]


def _sampled(rollout: Rollout, by_token: Tensor) -> Tensor:
    """Of a figure of each response token, `[N]`, those of the sampled ones."""
    return by_token if rollout.sampled is None else by_token[rollout.sampled]


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
