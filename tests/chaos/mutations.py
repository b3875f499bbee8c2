"""Ways to break an encoded event: its bytes, its types, its numbers and what it refers to."""

import random
from collections.abc import Callable
from typing import Final

import msgspec
import numpy as np

from schemas import (
    TOPICS,
    BlobRef,
    encode,
)
from tests.chaos.honest import LAYERS, PROMPT, RESPONSE, TOP_K, Plain, honest, leaves

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
    return changed(rng, data, lambda old: rng.choice([v for v in _FOREIGN if type(v) is not type(old)]))


def absurd_number(rng: random.Random, data: bytes, topic: str) -> bytes:
    """One number of it negative, beyond 64 bits' half, infinite or none."""

    def absurd(old: Plain) -> Plain:
        return rng.choice([-1, -(2**63), 2**63, 2**64 - 1, float("nan"), float("inf"), -float("inf"), 1e308])

    return changed(rng, data, absurd, lambda value: isinstance(value, int | float) and not isinstance(value, bool))


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


def changed(
    rng: random.Random, data: bytes, change: Callable[[Plain], Plain], wanted: Callable[[Plain], bool] = lambda v: True
) -> bytes:
    plain = msgspec.msgpack.decode(data)
    places = [(holder, name) for holder, name in leaves(plain) if wanted(holder[name])]
    holder, name = rng.choice(places)
    holder[name] = change(holder[name])
    return msgspec.msgpack.encode(plain)
