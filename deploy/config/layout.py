"""The paths in a run directory."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDirectory:
    """The paths below `root`; nothing is created."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "run.toml"

    @property
    def configurations(self) -> Path:
        """Directory of every configuration that the run had, 0001.toml and on."""
        return self.root / "configurations"

    @property
    def identity(self) -> Path:
        """What the run was begun as, JSON."""
        return self.root / "identity.json"

    @property
    def lock(self) -> Path:
        """Held by the process that keeps the run up."""
        return self.root / "lock"

    @property
    def summary(self) -> Path:
        """The run's summary, JSON."""
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        """The run's report, PNG."""
        return self.root / "report.png"

    @property
    def health(self) -> Path:
        """Directory of one JSON file per service process, with its port and process id."""
        return self.root / "health"

    def log(self, process: str) -> Path:
        """The file that takes a service process's output."""
        return self.root / "logs" / f"{process}.log"

    def pid_file(self, process: str) -> Path:
        """The file that holds its process id while it runs."""
        return self.root / "pids" / f"{process}.pid"

    @property
    def blob_uri(self) -> str:
        """The blob store of a run whose configuration names no other."""
        # Not `as_uri`: fsspec takes a file URI's path as it is, and `%20` would be a directory of that name.
        return f"file://{self.root.resolve() / 'blobs'}"


def process_name(service: str, ordinal: int, processes: int) -> str:
    """`<service>` where there is one process of it, else `<service>-<ordinal>`."""
    return service if processes == 1 else f"{service}-{ordinal}"
