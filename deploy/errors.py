"""What ends the command, and with which exit code."""

from typing import Final

FAILED: Final = 1
USAGE: Final = 2


class DeployError(Exception):
    """Base of the errors of this package: one sentence for the user. `exit_code` is what the command ends with."""

    exit_code: int = FAILED


class ConfigError(DeployError):
    """The user gave something wrong: a key, a value, a file. Exit code 2."""

    exit_code = USAGE


class StoppedError(DeployError):
    """The user stopped the command before its work was done."""
