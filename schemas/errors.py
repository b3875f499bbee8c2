"""The base of all errors of this project, and the errors of wire values."""


class EachpromptError(Exception):
    """Base of every package's errors: its message is one sentence that a user can act on, without a traceback."""


class SchemaError(EachpromptError, ValueError):
    """Base of every error about the shape or content of an event."""


class UndecodableError(SchemaError):
    """Bytes that are not an event of this project; the message names the cause and the place."""
