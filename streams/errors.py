"""What can go wrong in the log runtime."""

from schemas import EachpromptError, Ref


class StreamsError(EachpromptError):
    """Base of every error of the log runtime."""


class ConfigurationError(StreamsError):
    """The user's configuration is wrong: the command ends with exit code 2 and this one sentence."""


class DeadlineError(StreamsError):
    """A named wait passed its deadline."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"waited {seconds:g} s {what}")
        self.what = what
        self.seconds = seconds


class BrokerAwayError(DeadlineError):
    """The broker did not answer in time."""


class Poison(StreamsError):
    """This record can never be processed: it becomes a dead letter with its bytes, and the stage continues."""


class DeliveryError(StreamsError):
    """The broker did not take a record."""


class FencedError(StreamsError):
    """A successor with the same transactional id or the same group instance has taken over; this one must end."""


class MissingRecordError(StreamsError):
    """A reference names a record that is no longer (or was never) on the log."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(f"record {ref.topic}/{ref.partition}@{ref.offset} is not on the log")
        self.ref = ref


class BlobError(StreamsError):
    """A blob is missing, truncated or differs from its digest."""
