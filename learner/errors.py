"""The learner's errors."""

from schemas import EachpromptError
from streams.errors import ConfigurationError


class LearnerError(EachpromptError):
    """Base of every error of the learner; the message is one sentence."""


class ModelError(LearnerError):
    """A model directory that cannot be trained."""


class CheckpointError(LearnerError):
    """A checkpoint that cannot be written or read."""


class ForeignCheckpointError(CheckpointError):
    """A checkpoint of another model or run: the user's mistake, which no restart fixes."""


class LostBatchError(LearnerError, ConfigurationError):
    """The log lacks what follows the checkpoint. No restart fixes that, so the run ends with this sentence."""


class RejectedSequenceError(LearnerError):
    """One sequence cannot be trained on; the rest of its batch is."""


class RankError(LearnerError):
    """Another rank has exited or does not answer."""
