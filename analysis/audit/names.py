"""Which rollout a record is about, where only its bytes tell: rollouts, and the records that dead letters hold."""

from typing import Final

import msgspec

from schemas import BatchPlanned, DeadLetter, GroupReady, Ref, RolloutScored, UndecodableError, decode


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


def dead_rollouts(letter: DeadLetter) -> list[Ref]:
    """The rollouts that end with a dead letter: the record itself, or those of a score, group or batch that it was.

    The learner's letters end nothing: what it refuses is in its step's `rejected`. A purged letter says what it ended.
    """
    if letter.stage == "learner":
        return []
    if letter.purged:
        return list(letter.ends)
    if letter.source.topic == "rollouts":
        return [letter.source]
    try:
        event = decode(letter.data)
    except UndecodableError:
        return []
    match event:
        case RolloutScored() if letter.source.topic == "scores":
            return [event.rollout]
        case GroupReady() if letter.source.topic == "groups":
            return [member.rollout for member in event.members if member.disposition is None]
        case BatchPlanned() if letter.source.topic == "batches":
            return [sequence.rollout for sequence in event.sequences]
        case _:
            return []
