"""Events to bytes and back: MessagePack maps, strict limits, one error for whatever is wrong."""

from typing import Final

import msgspec

from schemas.errors import UndecodableError
from schemas.events import Event

SCHEMA_VERSION: Final = 1
"""The version in every record's `schema` header; a reader takes any version and ignores fields it does not know."""

MAX_EVENT_BYTES: Final = 64 * 1024 * 1024

MAX_LETTER_BYTES: Final = MAX_EVENT_BYTES + 1024 * 1024
"""A dead letter holds a record of whatever size a topic takes, and says a little about it."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """One MessagePack map, tagged with its type."""
    return _encoder.encode(event)


def decode(data: bytes | memoryview) -> Event:
    """The event in `data`; its arrays are views into it. UndecodableError: anything else, in one sentence."""
    if len(data) > MAX_LETTER_BYTES:
        raise UndecodableError(f"record of {len(data)} bytes is over the limit of {MAX_LETTER_BYTES}")
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise UndecodableError(f"record of {len(data)} bytes is no event: {error}") from error
    except RecursionError as error:
        raise UndecodableError(f"record of {len(data)} bytes is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise UndecodableError(f"record of {len(data)} bytes holds text that is not UTF-8: {error}") from error


def schema_header(event: Event) -> bytes:
    """`<type>/<version>` for the record's `schema` header."""
    return f"{type(event).__name__}/{SCHEMA_VERSION}".encode()
