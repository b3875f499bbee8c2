"""The finished offsets above a commit, written into its metadata: what is unfinished as a list, a bitmap, or both.

One straggler far behind is two or three bytes of a list whatever lies between; a stretch in which much is unfinished is
a bit an offset. A partition usually has some of the former and then one of the latter, up to its end.
"""

import base64
import binascii
from collections.abc import Iterable
from typing import Final

LIST: Final = "u:"
BITMAP: Final = "b:"
MIXED: Final = "m:"

_WORTH_MIXING: Final = 64


def encode(low: int, top: int, unfinished: list[int]) -> str:
    """What is finished from `low` to `top`, which is the last finished one; '' if nothing is.

    In base64, whichever is shortest. `b:` and the bits of the finished offsets from `low` on, least significant first.
    `u:` and the gaps before the unfinished ones, then the one before `top`, as LEB128 numbers. `m:` and how many are
    listed, their gaps, the gap before the next one, and the bits from that on.
    """
    if top <= low:
        return ""
    listed = gaps(low, [*unfinished, top])
    bits = (top - low + 8) // 8
    if min(len(listed), bits) > _WORTH_MIXING:
        size, count = _split(low, top, unfinished)
        if size < min(len(listed), bits):
            head = gaps(0, [count]) + gaps(low, unfinished[: count + 1])
            return MIXED + _text(head + _bitmap(unfinished[count], top, unfinished[count:]))
    if len(listed) <= bits:
        return LIST + _text(listed)
    return BITMAP + _text(_bitmap(low, top, unfinished))


def decode(low: int, metadata: str) -> tuple[int, list[int]]:
    """The last finished offset (below `low` if there is none), and the unfinished ones before it. ValueError."""
    if not metadata:
        return low - 1, []
    try:
        kind, data = metadata[:2], base64.b64decode(metadata[2:], validate=True)
        if kind == LIST:
            *unfinished, top = _from_gaps(low, data)
            return top, unfinished
        if kind == BITMAP:
            return _from_bitmap(low, data)
        if kind == MIXED:
            count, rest = _number(data)
            listed = []
            expected = low
            for _ in range(count + 1):
                gap, rest = _number(rest)
                listed.append(expected + gap)
                expected += gap + 1
            top, unfinished = _from_bitmap(listed[-1], rest)
            return top, [*listed[:-1], *unfinished]
    except (binascii.Error, IndexError, ValueError) as error:
        raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker: {error}") from error
    raise ValueError(f"commit metadata {metadata[:40]!r} was not written by an offset tracker")


def mixed_bytes(low: int, top: int, unfinished: list[int]) -> int:
    """The size of the best mixture before base64; at least one is unfinished, and a bitmap goes to `top`."""
    return _split(low, top, unfinished)[0]


def _split(low: int, top: int, unfinished: list[int]) -> tuple[int, int]:
    """The size of the best mixture, and how many it lists."""
    best, at = (top - low) // 8 + 16, 0
    listed, expected = 0, low
    for count, offset in enumerate(unfinished):
        listed += _size(offset - expected)
        expected = offset + 1
        size = _size(count) + listed + (top - offset + 8) // 8
        if size < best:
            best, at = size, count
    return best, at


def _size(number: int) -> int:
    """Bytes of a LEB128 number."""
    return max(1, (number.bit_length() + 6) // 7)


def _bitmap(low: int, top: int, unfinished: Iterable[int]) -> bytes:
    bits = bytearray(b"\xff" * ((top - low + 8) // 8))
    bits[-1] >>= -(top - low + 1) % 8
    for offset in unfinished:
        bits[(offset - low) >> 3] &= ~(1 << ((offset - low) & 7))
    return bytes(bits)


def _from_bitmap(low: int, data: bytes) -> tuple[int, list[int]]:
    finished = [low + i for i in range(8 * len(data)) if data[i >> 3] >> (i & 7) & 1]
    known = set(finished)
    return finished[-1], [offset for offset in range(low, finished[-1]) if offset not in known]


def gaps(low: int, offsets: Iterable[int]) -> bytes:
    """LEB128 numbers: how many offsets lie between each and the one before it (the first: and `low`)."""
    encoded = bytearray()
    expected = low
    for offset in offsets:
        gap, expected = offset - expected, offset + 1
        while gap > 127:
            encoded.append(gap & 127 | 128)
            gap >>= 7
        encoded.append(gap)
    return bytes(encoded)


def _from_gaps(low: int, encoded: bytes) -> list[int]:
    offsets, expected = [], low
    while encoded:
        gap, encoded = _number(encoded)
        offsets.append(expected + gap)
        expected += gap + 1
    if not offsets:
        raise ValueError("it lists nothing")
    return offsets


def _number(encoded: bytes) -> tuple[int, bytes]:
    """The first LEB128 number, and what follows it."""
    number = 0
    for index, byte in enumerate(encoded):
        number |= (byte & 127) << 7 * index
        if byte < 128:
            return number, encoded[index + 1 :]
    raise ValueError("its last number is cut off")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
