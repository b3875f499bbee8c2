"""noida-db, a Kafka-compatible broker in a 12 MB binary that starts at once and keeps everything in memory."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import ClassVar, Literal

from streams.broker.base import BrokerConfigurationError, BrokerError
from streams.broker.local import LocalBroker
from streams.broker.ports import HOST
from streams.broker.settings import BrokerSettings

LOSES = (
    "it writes its state to disk about once a second without syncing it: kill -9 loses acknowledged records, "
    "and a restart forgets which producers were fenced"
)


class EmbeddedBroker(LocalBroker):
    """For demonstrations and tests: what was acknowledged may be lost. Raises `BrokerError` unless `ephemeral` is set.

    A clean stop while nothing is being written keeps the topics, so that a finished run can still be looked at.
    """

    kind: ClassVar[Literal["embedded"]] = "embedded"

    def __init__(self, settings: BrokerSettings, directory: Path) -> None:
        super().__init__(settings, directory)
        if not settings.ephemeral:
            raise BrokerConfigurationError(
                f"the embedded broker is ephemeral: {LOSES}; set broker.ephemeral = true to accept that"
            )

    def _command(self, port: int, deadline_s: float) -> list[str]:
        program = embedded_program()
        if program is None:
            raise BrokerError("the embedded broker is not installed: install noida-db (extra `embedded`)")
        data = self.home / "embedded"
        data.mkdir(exist_ok=True)
        options = ["--host", HOST, "--only", "kafka", "--kafka-port", str(port), "--data-dir", str(data)]
        return [str(program), "start", *options]


def embedded_program() -> Path | None:
    """The binary inside the noida_db package, made executable, or None when the package is not installed."""
    package = importlib.util.find_spec("noida_db")
    if package is None or package.origin is None:
        return None
    program = Path(package.origin).with_name("noida-db")
    if not program.is_file():
        return None
    if not os.access(program, os.X_OK):
        # Some installers drop the executable bit of package data.
        program.chmod(0o755)
    return program
