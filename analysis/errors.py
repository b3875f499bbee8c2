"""Errors of reading a run's log, each one sentence for the user."""

from schemas import EachpromptError


class AnalysisError(EachpromptError):
    """The log cannot answer the request. `exit_code` is the command's."""

    exit_code: int = 1


class RequestError(AnalysisError):
    """The request itself is wrong, such as an id or a path. Exit code 2."""

    exit_code = 2
