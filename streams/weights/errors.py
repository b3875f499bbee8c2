"""What can go wrong with weights on the wire."""

from streams.errors import StreamsError


class WeightsError(StreamsError):
    """Published weights that are not what they say, or not what they can be applied to; one sentence."""
