"""What can go wrong in the learner."""

from schemas import EachpromptError
from streams.errors import ConfigurationError


class LearnerError(EachpromptError):
    """Base of every error of the learner; the message is one sentence."""


class ModelError(LearnerError):
    """A model directory that cannot be trained."""


class CheckpointError(LearnerError):
    """A checkpoint that cannot be written or read."""


class ForeignCheckpointError(CheckpointError):
    """A checkpoint of another model or run: the user's mistake, which no restart mends."""


class LostBatchError(LearnerError, ConfigurationError):
    """The log has not got what comes after the checkpoint: no restart mends that, so the run ends with the sentence."""


class RejectedSequenceError(LearnerError):
    """One sequence cannot be trained on; the batch goes on without it."""


class RankError(LearnerError):
    """Another rank is gone or does not answer."""
