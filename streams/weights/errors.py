"""What can go wrong with weights on the wire."""

from streams.errors import StreamsError


class WeightsError(StreamsError):
    """Published weights that differ from what was announced, or do not fit what they are applied to; one sentence."""
