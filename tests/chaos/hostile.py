"""Hostile records: what broken, old, foreign or malicious writers could put on any topic, from a seed.

Each starts as an honest event of its topic, with identities of its own, and is then mutated. `CERTAIN` are the kinds of
which no result is ever an event of the topic; of the others some come out valid (a flipped bit in a reward).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from schemas import (
    TOPICS,
    BlobRef,
    GroupRequested,
    UndecodableError,
    decode,
    encode,
    partition_of,
)
from tests.chaos.honest import PAST_S, TOPICS_OF_GROUPS, honest
from tests.chaos.mutations import EVERYWHERE, SPECIAL


@dataclass(frozen=True)
class Hostile:
    """One record to write: its topic's short name, partition, key, bytes, headers; `kind` is how it was mutated."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    kind: str
    group: str
    index: int


SHARES: Final = {
    "prompts": 2, "rollouts": 5, "scores": 5, "groups": 2, "batches": 2, "steps": 1, "weights": 1, "applied": 1,
    "dead-letters": 1,
}  # fmt: skip
_KEYS: Final = (b"", b"", b"", b"none", b"\xff\x00")
_HEADERS: Final = (
    (),
    (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("run", b"r")),
    (("traceparent", b"\xff\xfe"), ("schema", b"")),
    (("traceparent", b"00-" + b"z" * 500), ("dlq-attempts", b"x"), ("dlq-history", b"[[[")),
)


def hostile(seed: int, count: int, partitions: int, blob: BlobRef) -> Iterator[Hostile]:
    """`count` records over all topics; two of a group's four members are hostile on `rollouts` and on `scores`."""
    rng = random.Random(seed)
    names, shares = list(SHARES), list(SHARES.values())
    for number in range(count):
        topic = rng.choices(names, shares)[0]
        group = f"h{number // 2 if topic in TOPICS_OF_GROUPS else number}.{names.index(topic)}"
        index = number % 2 if topic in TOPICS_OF_GROUPS else rng.randrange(2)
        mutation = rng.choice([*EVERYWHERE.values(), *SPECIAL.get(topic, ()) * 3])
        value = mutation(rng, encode(honest(topic, group, index, blob)), topic)
        if _would_generate(topic, value):
            continue
        partition = partition_of(group, partitions) if TOPICS[topic].sharded else 0
        # A compacted topic takes no record without key, and forgets those of one key but the last.
        key = group.encode() if TOPICS[topic].cleanup == "compact" else rng.choice(_KEYS) or group.encode()
        headers = rng.choice(_HEADERS)
        yield Hostile(
            topic, partition, None if key == b"none" else key, value, headers, mutation.__name__, group, index
        )


def _would_generate(topic: str, value: bytes) -> bool:
    """A request whose deadline was moved into the future is a good one, and would be a prompt for the engine."""
    try:
        event = decode(value)
    except UndecodableError:
        return False
    return topic == "prompts" and isinstance(event, GroupRequested) and event.deadline_s > PAST_S + 1
