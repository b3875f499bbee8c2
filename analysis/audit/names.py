"""Which rollout a record is about, where only its bytes tell: rollouts, and the records that dead letters hold."""

from typing import Final

import msgspec

from schemas import (
    BatchPlanned,
    DeadLetter,
    DeadLetterPurged,
    DeadLetterReplayed,
    GroupReady,
    Ref,
    RolloutScored,
    UndecodableError,
    decode,
)


class _RolloutName(msgspec.Struct, frozen=True, tag_field="type", tag="RolloutCompleted"):
    """The one field of a RolloutCompleted that is needed here; msgspec skips the others undecoded."""

    rollout_id: str


_name_decoder: Final = msgspec.msgpack.Decoder(_RolloutName)


def rollout_name(value: bytes | memoryview) -> str | None:
    """The rollout id in a record of `rollouts`; None where the record does not decode."""
    try:
        return _name_decoder.decode(value).rollout_id
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def dead_rollouts(dead: DeadLetter | DeadLetterReplayed | DeadLetterPurged) -> list[Ref]:
    """The rollouts that a dead letter disposes of: the refused rollout, or those in the refused score, group or batch.

    The learner's dead letters dispose of none: what it refuses is in its step's `rejected`. The note of a purge lists
    them.
    """
    if dead.stage == "learner":
        return []
    if isinstance(dead, DeadLetterPurged):
        return list(dead.ends)
    if dead.source.topic == "rollouts":
        return [dead.source]
    if isinstance(dead, DeadLetterReplayed):
        return []
    try:
        refused = decode(dead.data)
    except UndecodableError:
        return []
    match refused:
        case RolloutScored() if dead.source.topic == "scores":
            return [refused.rollout]
        case GroupReady() if dead.source.topic == "groups":
            return [member.rollout for member in refused.members if member.disposition is None]
        case BatchPlanned() if dead.source.topic == "batches":
            return [sequence.rollout for sequence in refused.sequences]
        case _:
            return []
