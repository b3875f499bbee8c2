"""Events to bytes and back: MessagePack maps, strict limits, one error for whatever is wrong."""

from functools import lru_cache
from typing import Final

import msgspec

from schemas.errors import UndecodableError
from schemas.events import Event, OnWire, RolloutCompleted
from schemas.events.earlier_forms import AnyDeadLetter, AnyWeightsApplied

SCHEMA_VERSION: Final = 2
"""The newest major version; a record's own is in its `schema` header: `<type>/<major>` or `<type>/<major>.<minor>`.

A minor version adds fields with defaults: older readers ignore them, newer ones fill in what older writers leave out.
What older readers would misread, a changed meaning say, needs a new major version, which they refuse. A record is of
the lowest version whose readers understand it. Version 2: a rollout with a `loss_mask`, all of whose tokens a reader of
version 1 would train on.
"""

MAX_EVENT_BYTES: Final = 64 * 1024 * 1024

MAX_DEAD_LETTER_BYTES: Final = MAX_EVENT_BYTES + 1024 * 1024
"""A dead letter holds a record of whatever size a topic takes, and says a little about it."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[OnWire] = msgspec.msgpack.Decoder(OnWire)


def encode(event: Event) -> bytes:
    """One MessagePack map, tagged with its type."""
    return _encoder.encode(event)


def decode(data: bytes | memoryview) -> Event:
    """The event in `data`; its arrays are views into it. UndecodableError: anything else, in one sentence.

    A record whose type said several things in earlier versions comes as the event that it means.
    """
    if len(data) > MAX_DEAD_LETTER_BYTES:
        raise UndecodableError(f"record of {len(data)} bytes is over the limit of {MAX_DEAD_LETTER_BYTES}")
    try:
        event = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UndecodableError(f"record of {len(data)} bytes is no event: {error}") from error
    except RecursionError as error:
        raise UndecodableError(f"record of {len(data)} bytes is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UndecodableError(f"record of {len(data)} bytes holds text that is not UTF-8: {error}") from error
    return event.upcast() if isinstance(event, AnyWeightsApplied | AnyDeadLetter) else event


def schema_header(event: Event) -> bytes:
    """`<type>/<version>` for the record's `schema` header."""
    return _header(type(event), 2 if isinstance(event, RolloutCompleted) and event.loss_mask is not None else 1)


@lru_cache(64)
def _header(kind: type[Event], version: int) -> bytes:
    return f"{kind.__name__}/{version}".encode()


@lru_cache(256)
def check_schema(header: bytes) -> None:
    """UndecodableError: the `schema` header tells of a newer major version. One that makes no sense tells nothing."""
    kind, _, version = header.partition(b"/")
    major = version.partition(b".")[0]
    if major.isdigit() and len(major) < 10 and int(major) > SCHEMA_VERSION:
        raise UndecodableError(
            f"schema {kind[:80].decode(errors='replace')}/{int(major)} is newer than {SCHEMA_VERSION}, which this "
            "reader knows: upgrade it, then replay the dead letter"
        )
