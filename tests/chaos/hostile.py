"""Hostile records: what broken, old, foreign or malicious writers could put on any topic, from a seed.

Each starts as an honest event of its topic, with identities of its own, and is then mutated. `CERTAIN` are the kinds of
which no result is ever an event of the topic; of the others some come out valid (a flipped bit in a reward).
"""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from schemas import (
    TOPICS,
    BatchPlanned,
    BlobRef,
    DeadLetter,
    EngineInfo,
    Event,
    GroupDropped,
    GroupReady,
    GroupRequested,
    Member,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    RolloutScored,
    RolloutTimings,
    Routes,
    Sampling,
    StepCompleted,
    UndecodableError,
    WeightFile,
    WeightsApplied,
    WeightSpan,
    WeightsPublished,
    decode,
    encode,
    partition_of,
)

SAMPLES: Final = 4
EXPERTS, LAYERS, TOP_K = 8, 3, 2
PROMPT = (6, 13, 4, 14)  # "3+1=" and "=4" for the tokenizer of models/tiny-moe
RESPONSE = (14, 7)
TOPICS_OF_GROUPS: Final = ("rollouts", "scores")
PAST_S: Final = 1.0
"""The deadline of every request, so that no producer starts to generate."""

Plain = Any


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


def rollout(group: str, index: int, **fields: Any) -> RolloutCompleted:
    """An honest rollout of four prompt and two response tokens with its routes inline."""
    tokens = len(PROMPT) + len(RESPONSE)
    shape = (tokens, LAYERS, TOP_K)
    routes = np.tile(np.arange(TOP_K, dtype=np.uint8), (tokens, LAYERS, 1))
    defaults: dict[str, Any] = {
        "routes": Routes(experts=EXPERTS, shape=shape, dtype="u1", sentinel=255, data=NDArray.of(routes)),
        "logprobs": NDArray.of(np.full(len(RESPONSE), -0.5, dtype="f4")),
        "deadline_s": PAST_S,
        "requested_s": time.time(),
    }
    return RolloutCompleted(
        rollout_id=f"{group}.{index}", group_id=group, prompt_id=group.partition(".")[0], index=index, attempt=0,
        producer_id="producer-0", request=Ref("prompts", 0, 0), task="sums", samples=SAMPLES, verifier="exact_match",
        reference={"answer": "4" if index % 2 else "5", "after": "="}, spans=(WeightSpan(0, 0),),
        prompt_ids=NDArray.of(np.array(PROMPT, dtype="u4")), response_ids=NDArray.of(np.array(RESPONSE, dtype="u4")),
        sampling=Sampling(max_tokens=8), finish_reason="stop", engine=EngineInfo(name="e", version="0", model="m"),
        timings=RolloutTimings(received_s=1.0, started_s=1.0, first_token_s=1.0, finished_s=2.0), time_s=2.0,
        **(defaults | fields),
    )  # fmt: skip


def score(group: str, index: int) -> RolloutScored:
    """An honest score; of a rollout far beyond the log's end, since nothing checks that here."""
    return RolloutScored(
        rollout_id=f"{group}.{index}", group_id=group, prompt_id=group.partition(".")[0], index=index, attempt=0,
        rollout=Ref("rollouts", 0, 10**9 + int(group.partition(".")[0][1:]) * SAMPLES + index), task="sums",
        samples=SAMPLES, deadline_s=PAST_S, valid=True, time_s=2.0, reward=float(index % 2), passed=float(index % 2),
        prompt_tokens=4, response_tokens=2, requested_s=time.time(),
    )  # fmt: skip


def honest(topic: str, group: str, index: int, blob: BlobRef) -> Event:
    """An event of `topic` that concerns `group` and no other."""
    ref = Ref("rollouts", 0, 10**9)
    number = 10**6 + int(group.partition(".")[0][1:])
    match topic:
        case "prompts":
            return GroupRequested(
                group_id=group, prompt_id=group.partition(".")[0], visit=0, sequence=number, task="sums",
                samples=SAMPLES, sampling=Sampling(max_tokens=8), verifier="exact_match",
                reference={"answer": "4", "after": "="}, time_s=1.0, deadline_s=PAST_S, prompt="3+1=",
            )  # fmt: skip
        case "rollouts":
            return rollout(group, index)
        case "scores":
            return score(group, index)
        case "groups":
            members = tuple(Member(rollout_id=f"{group}.{k}", rollout=ref, response_tokens=2) for k in range(2))
            return GroupReady(
                group_id=group, prompt_id="p", task="sums", members=members, reward_mean=0.5, reward_std=0.5,
                time_s=2.0, deadline_s=PAST_S,
            )  # fmt: skip
        case "batches":
            if index % 2:
                return GroupDropped(group_id=group, prompt_id="p", task="sums", reason="stale", members=(), time_s=2.0)
            planned = PlannedSequence(
                rollout_id=f"{group}.0", rollout=ref, advantage=1.0, reward=1.0, prompt_tokens=4, response_tokens=2,
                oldest_version=0,
            )  # fmt: skip
            return BatchPlanned(
                batch=number, groups=(group,), sequences=(planned,), ranks=(((0,),),), token_budget=64, time_s=2.0
            )
        case "steps":
            return StepCompleted(
                step=number, batch=number, batch_ref=Ref("batches", 0, 10**9), version=0, metrics={"loss": 0.5},
                time_s=2.0,
            )  # fmt: skip
        case "weights":
            return WeightsPublished(
                version=number, kind="full", precision="bf16", files=(WeightFile(name="model", blob=blob),), tensors=1,
                parent_step=0, time_s=2.0,
            )  # fmt: skip
        case "applied":
            return WeightsApplied(producer_id=group, version=0, time_s=2.0)
        case "dead-letters":
            return DeadLetter(source=Ref("rollouts", 0, number), stage="rewards", error=group, data=b"junk", time_s=2.0)
        case _:
            raise ValueError(f"topic {topic!r} has no honest event")


Mutation = Callable[[random.Random, bytes, str], bytes]


def flip(rng: random.Random, data: bytes, topic: str) -> bytes:
    """One to eight bits."""
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def truncate(rng: random.Random, data: bytes, topic: str) -> bytes:
    """The first part alone, sometimes nothing."""
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes, topic: str) -> bytes:
    """A piece of it moved elsewhere."""
    cut, to = sorted(rng.sample(range(len(data)), 2))
    return data[:cut] + data[to:] + data[cut:to] + data[cut : cut + 1]


def giant_length(rng: random.Random, data: bytes, topic: str) -> bytes:
    """A text, array, map or binary that claims up to 4 GiB, somewhere in it."""
    at = rng.choice([0, rng.randrange(len(data))])
    length = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\xff\xff\xff"])
    return data[:at] + rng.choice([b"\xdb", b"\xc6", b"\xdd", b"\xdf", b"\xc9"]) + length + data[at:]


def deep(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Arrays or maps in one another, up to 200,000 of them: bare, or as a verifier's reference."""
    depth = rng.choice([40, 500, 990, 1_200, 50_000, 200_000])
    nest = rng.choice([b"\x91" * depth + b"\x01", b"\x81\xa1k" * depth + b"\x01"])
    if topic not in ("prompts", "rollouts"):
        return nest
    plain = msgspec.msgpack.decode(data)
    plain["reference"] = {"k": msgspec.Raw(nest)}
    return msgspec.msgpack.encode(plain)


def wrong_type(rng: random.Random, data: bytes, topic: str) -> bytes:
    """One value of it of another type."""
    return _changed(rng, data, lambda old: rng.choice([v for v in _FOREIGN if type(v) is not type(old)]))


def absurd_number(rng: random.Random, data: bytes, topic: str) -> bytes:
    """One number of it negative, beyond 64 bits' half, infinite or none."""

    def absurd(old: Plain) -> Plain:
        return rng.choice([-1, -(2**63), 2**63, 2**64 - 1, float("nan"), float("inf"), -float("inf"), 1e308])

    return _changed(rng, data, absurd, lambda value: isinstance(value, int | float) and not isinstance(value, bool))


def left_out(rng: random.Random, data: bytes, topic: str) -> bytes:
    """A field that must be there is not."""
    plain = msgspec.msgpack.decode(data)
    required = [name for name in ("type", "time_s") if name in plain]
    del plain[rng.choice(required)]
    return msgspec.msgpack.encode(plain)


def wrong_shape(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Valid MessagePack that is no event, or an event of another topic."""
    others = [name for name in TOPICS if name != topic and TOPICS[name].events[0] not in TOPICS[topic].events]
    choices: list[Plain] = [None, 7, "text", b"bytes", [1, 2, 3], {}, {"type": "Nonsense"}, {"type": 7}, {1: 2}]
    choices += [[msgspec.msgpack.decode(data)], {"type": type(honest(topic, "h0.0", 0, _NO_BLOB)).__name__}]
    choices += [{"group_id": "g", "type": ["x"]}, msgspec.msgpack.Ext(5, b"x"), True, -1.5]
    if rng.random() < 0.5:
        return encode(honest(rng.choice(others), f"h{rng.randrange(10**6)}.0", 0, _NO_BLOB))
    return msgspec.msgpack.encode(rng.choice(choices))


def noise(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Random bytes that begin with one that MessagePack does not know; up to 200 KB."""
    return b"\xc1" + rng.randbytes(rng.choice([0, 1, 100, 5_000, 200_000]))


def not_a_number(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Log-probs, rewards and times that are no number."""
    bad = rng.choice([float("nan"), float("inf")])
    plain = msgspec.msgpack.decode(data)
    if topic == "rollouts":
        plain["logprobs"] = ["f4", [2], np.array([-0.5, bad], dtype="<f4").tobytes()]
    else:
        plain[rng.choice([name for name in ("time_s", "reward", "deadline_s", "reward_mean") if name in plain])] = bad
    return msgspec.msgpack.encode(plain)


def wrong_array(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Arrays whose dtype, shape and bytes contradict one another."""
    bad = rng.choice(
        [
            ["f2", [2], b"abcd"], ["u4", [3], b"abcd"], ["u4", [2**40], b""], ["u4", [-1], b""],
            ["u4", [2**62, 4], b""], ["O", [1], b"12345678"], ["u4", [[1]], b"abcd"], ["u4"], [], None,
        ]
    )  # fmt: skip
    plain = msgspec.msgpack.decode(data)
    plain["logprobs" if topic == "rollouts" else "canary_logprobs"] = bad if bad is not None else [None, None, None]
    return msgspec.msgpack.encode(plain)


def bad_routes(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Routes out of range, twice the same, of another model, in a blob that is missing or differs from its digest."""
    plain = msgspec.msgpack.decode(data)
    routes = plain["routes"]
    tokens = len(PROMPT) + len(RESPONSE)
    match rng.randrange(5):
        case 0:
            routes["data"] = ["u1", [tokens, LAYERS, TOP_K], rng.randbytes(tokens * LAYERS * TOP_K - 1) + b"\xfe"]
        case 1:
            routes["data"] = ["u1", [tokens, LAYERS, TOP_K], bytes(tokens * LAYERS * TOP_K)]
        case 2:
            routes["experts"] = 999
        case 3:
            del routes["data"]
            routes["blob"] = {"uri": "file:///nonexistent/routes", "size": 24, "digest": "0" * 64}
        case _:
            del routes["data"]
            routes["blob"] = {"uri": "memory://routes", "size": 2**62, "digest": "0" * 64}
    return msgspec.msgpack.encode(plain)


def bad_blob(rng: random.Random, data: bytes, topic: str) -> bytes:
    """Published weights whose file is missing, truncated, elsewhere, or has another digest."""
    plain = msgspec.msgpack.decode(data)
    blob = plain["files"][0]["blob"]
    blob |= rng.choice(
        [{"digest": "f" * 64}, {"uri": "file:///nonexistent"}, {"size": 1}, {"codec": "zstd"}, {"uri": "what://x"}]
    )
    plain["files"][0]["name"] = rng.choice(["../../etc/x", "/", "", "model"])
    return msgspec.msgpack.encode(plain)


_NO_BLOB = BlobRef(uri="file:///nonexistent", size=1, digest="0" * 64)
_FOREIGN: Final[list[Plain]] = [None, "x", 7, -7, 1.5, True, b"x", [], [[]], {}, {"k": 1}, msgspec.msgpack.Ext(1, b"x")]

EVERYWHERE: Final[dict[str, Mutation]] = {
    m.__name__: m
    for m in (flip, truncate, splice, giant_length, deep, wrong_type, absurd_number, left_out, wrong_shape, noise)
}
SPECIAL: Final[dict[str, tuple[Mutation, ...]]] = {
    "rollouts": (not_a_number, wrong_array, bad_routes),
    "scores": (not_a_number,),
    "groups": (not_a_number,),
    "prompts": (not_a_number,),
    "applied": (wrong_array,),
    "weights": (bad_blob,),
}
CERTAIN: Final = frozenset({"truncate", "deep", "left_out", "wrong_shape", "noise", "not_a_number", "wrong_array"})

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


def _changed(
    rng: random.Random, data: bytes, change: Callable[[Plain], Plain], wanted: Callable[[Plain], bool] = lambda v: True
) -> bytes:
    plain = msgspec.msgpack.decode(data)
    places = [(holder, name) for holder, name in _leaves(plain) if wanted(holder[name])]
    holder, name = rng.choice(places)
    holder[name] = change(holder[name])
    return msgspec.msgpack.encode(plain)


def _leaves(plain: Plain) -> Iterator[tuple[Plain, Any]]:
    items = plain.items() if isinstance(plain, dict) else enumerate(plain)
    for name, value in list(items):
        if isinstance(value, dict | list) and value:
            yield from _leaves(value)
        else:
            yield plain, name
