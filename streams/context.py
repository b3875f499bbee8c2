"""What every service is told about the run it belongs to."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunContext:
    """One service instance's place in a run: replica `ordinal` of `replicas`; `drain_s` is its budget after SIGTERM."""

    run: str
    directory: Path
    bootstrap: str
    partitions: int
    blob_uri: str
    ordinal: int = 0
    replicas: int = 1
    inline_max_bytes: int = 1 << 20
    seed: int = 0
    drain_s: float = 10.0
    otlp_endpoint: str | None = None
