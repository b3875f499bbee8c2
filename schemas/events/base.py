"""What every event is: a frozen struct that its type's name tags on the wire."""

import msgspec


class EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True):
    """Base of all events."""
