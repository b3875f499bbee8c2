"""What can be wrong with a wire value."""


class SchemaError(ValueError):
    """Base of every error about the shape or content of an event."""


class UndecodableError(SchemaError):
    """Bytes that are not an event of this project; the message says what and where."""
