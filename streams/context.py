"""The run that a service belongs to, and its place in it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunContext:
    """One service instance's place in a run: replica `ordinal` (from 0) of `replicas`.

    `bootstrap` is the broker's `host:port[,host:port…]`, `partitions` those of every sharded topic, `blob_uri` the root
    of the blob store. Bodies above `inline_max_bytes` go there. `drain_s`: seconds to finish what is in flight after
    SIGTERM. `config_digest` is of the settings that this process was started with, as far as a step depends on them.
    """

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
    config_digest: str | None = None
