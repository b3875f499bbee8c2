"""Errors that end the command, and their exit codes."""

from typing import Final

FAILED: Final = 1
USAGE: Final = 2


class DeployError(Exception):
    """Base of the errors of this package: one sentence for the user. `exit_code` is the command's."""

    exit_code: int = FAILED


class ConfigError(DeployError):
    """A key, value or file of the user is wrong. Exit code 2."""

    exit_code = USAGE


class StoppedError(DeployError):
    """The user stopped the command before its work was done."""
