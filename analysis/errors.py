"""What ends a reading of a run's log: one sentence for the user."""

from schemas import EachpromptError


class AnalysisError(EachpromptError):
    """What was asked for cannot be had from this log. `exit_code` is what the command ends with."""

    exit_code: int = 1


class RequestError(AnalysisError):
    """What was asked for is itself wrong: an id, a path. Exit code 2."""

    exit_code = 2
