"""The file by which a run directory's own broker is found: `broker/endpoint.json`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Literal

from streams.broker.base import BrokerError
from streams.processes.child import running_pid


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where the broker of a run directory listened when it was last ready."""

    kind: Literal["kafka", "embedded"]
    port: int
    bootstrap: str
    pid: int


def endpoint_path(directory: Path) -> Path:
    return directory / "broker" / "endpoint.json"


def broker_pid_file(directory: Path) -> Path:
    return directory / "pids" / "broker.pid"


def write_endpoint(directory: Path, endpoint: Endpoint) -> None:
    path = endpoint_path(directory)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(dataclasses.asdict(endpoint)) + "\n")
    partial.replace(path)


def last_endpoint(directory: Path) -> Endpoint | None:
    """What the file says, whether or not the broker still runs. Raises `BrokerError` when it is damaged."""
    path = endpoint_path(directory)
    try:
        fields = json.loads(path.read_text())
        return Endpoint(**fields)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise BrokerError(f"{path} is damaged ({error}); delete it to start the broker on a new port") from None


def find_endpoint(directory: Path) -> Endpoint | None:
    """The broker of this run directory if its process is alive, else None."""
    endpoint = last_endpoint(directory)
    if endpoint is None or running_pid(broker_pid_file(directory)) != endpoint.pid:
        return None
    return endpoint
