"""What can be wrong with a wire value, and the base of everything this project says is wrong."""


class EachpromptError(Exception):
    """Base of every package's errors: its message is one sentence that a user can act on, without a traceback."""


class SchemaError(EachpromptError, ValueError):
    """Base of every error about the shape or content of an event."""


class UndecodableError(SchemaError):
    """Bytes that are not an event of this project; the message says what and where."""
