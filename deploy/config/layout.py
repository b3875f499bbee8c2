"""The places in a run directory (DESIGN section 12)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """A run directory; nothing is made by asking for a place."""

    root: Path

    @property
    def config(self) -> Path:
        """The fully resolved configuration."""
        return self.root / "run.toml"

    @property
    def summary(self) -> Path:
        """What the demo found, as JSON."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The demo's picture."""
        return self.root / "report.png"

    @property
    def health(self) -> Path:
        """One JSON file a service with its port and process id."""
        return self.root / "health"

    def log(self, process: str) -> Path:
        """Where the output of a service process goes."""
        return self.root / "logs" / f"{process}.log"

    def pid_file(self, process: str) -> Path:
        """Its process id, while it lives."""
        return self.root / "pids" / f"{process}.pid"

    @property
    def blob_uri(self) -> str:
        """The blob store of a run that names no other."""
        return (self.root.resolve() / "blobs").as_uri()


def process_name(service: str, ordinal: int, processes: int) -> str:
    """`<service>` where there is one process of it, else `<service>-<ordinal>`."""
    return service if processes == 1 else f"{service}-{ordinal}"
