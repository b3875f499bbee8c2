"""The recorded stream: a finished run's batches with their rollouts, as one file that every training reads."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from deploy.config.run import load
from deploy.local.open_log import run_log
from learner.batch.decode import to_rollout
from learner.model.packed_row import Rollout
from learner.model.policy import ModelShape
from schemas import BatchPlanned, PlannedSequence, Ref, decode
from streams.blobs.store import BlobStore
from streams.record import Record

WINDOW: Final = 4
"""Batches among which a seed deals the groups anew: their order changes, hardly how far off-policy they are."""


class Stream(msgspec.Struct, frozen=True):
    """`batches`: `BatchPlanned` events as encoded; `rollouts`: the records that they name; `blobs`: where the routes of
    large ones are."""

    model: str
    blobs: str
    batches: tuple[bytes, ...]
    rollouts: dict[str, bytes]


def read_stream(directory: Path) -> Stream:
    """What the run in `directory` trained on, from its log."""
    config = load(directory / "run.toml", directory=directory, overrides=[])
    with run_log(config) as log:
        plans: dict[int, BatchPlanned] = {}
        for event, _ in log.events("batches"):
            if isinstance(event, BatchPlanned):
                plans.setdefault(event.batch, event)
        wanted = {_name(Ref(*sequence.rollout)) for plan in plans.values() for sequence in plan.sequences}
        rollouts = {_name(record.ref): bytes(record.value) for record in log.read("rollouts")}
    return Stream(
        model=str(config.model.path),
        blobs=(directory / "blobs").resolve().as_uri(),
        batches=tuple(msgspec.msgpack.encode(plans[number]) for number in sorted(plans)),
        rollouts={name: value for name, value in rollouts.items() if name in wanted},
    )


def batches_of(stream: Stream, shape: ModelShape, seed: int, micro_batch: int) -> list[list[list[Rollout]]]:
    """Batches of micro-batches of at most `micro_batch` sequences. Seed 0: as recorded; another: groups dealt anew."""
    blobs = BlobStore(stream.blobs)
    plans = [decode(batch) for batch in stream.batches]
    groups: list[list[list[Rollout]]] = []
    for plan in plans:
        assert isinstance(plan, BatchPlanned)
        of_group: dict[str, list[Rollout]] = {}
        for sequence in plan.sequences:
            of_group.setdefault(sequence.rollout_id.rpartition(".")[0], []).append(
                to_rollout(sequence, _record(stream, sequence), shape, blobs, plan.batch)
            )
        groups.append(list(of_group.values()))
    if seed:
        rng = random.Random(seed)
        groups = [
            batch for start in range(0, len(groups), WINDOW) for batch in _dealt(groups[start : start + WINDOW], rng)
        ]
    return [
        [_flat(batch)[at : at + micro_batch] for at in range(0, len(_flat(batch)), micro_batch)] for batch in groups
    ]


def _dealt(window: Sequence[list[list[Rollout]]], rng: random.Random) -> list[list[list[Rollout]]]:
    every = [group for batch in window for group in batch]
    rng.shuffle(every)
    taken = iter(every)
    return [[next(taken) for _ in batch] for batch in window]


def _flat(groups: Sequence[Sequence[Rollout]]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


def _record(stream: Stream, sequence: PlannedSequence) -> Record:
    ref = Ref(*sequence.rollout)
    return Record("rollouts", ref.partition, ref.offset, None, stream.rollouts[_name(ref)], {}, 0.0)


def _name(ref: Ref) -> str:
    return f"{ref.partition}@{ref.offset}"
