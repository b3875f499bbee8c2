"""What this process's control group may take: in a container the machine's own figures are somebody else's.

Of a group and of every group around it the tightest counts. Version 2 and 1 of control groups; in a container the group
is often mounted as the root. None: no limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
_UNLIMITED: Final = 1 << 60
"""Version 1 says that there is no limit by one of about 2^63."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Bytes: the limit, and how much of it is left; file caches, which the kernel gives back, count as left."""

    limit: int
    left: int


def memory_limit(root: Path = _ROOT) -> MemoryLimit | None:
    """The tightest, by what is left. `root` is the file system's, for tests."""
    found = []
    for directory in _groups(root, "memory"):
        limit = _number(directory / "memory.max") or _number(directory / "memory.limit_in_bytes")
        used = _number(directory / "memory.current") or _number(directory / "memory.usage_in_bytes") or 0
        if limit is not None and limit < _UNLIMITED:
            cached = _entry(directory / "memory.stat", ("inactive_file", "total_inactive_file"))
            found.append(MemoryLimit(limit, max(0, limit - max(0, used - cached))))
    return min(found, key=lambda each: each.left, default=None)


def processor_limit(root: Path = _ROOT) -> float | None:
    """Processors' worth of time, the least of the quotas."""
    found = []
    for directory in _groups(root, "cpu"):
        quota, _, period = _text(directory / "cpu.max").partition(" ")
        if not period:
            quota, period = _text(directory / "cpu.cfs_quota_us"), _text(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's group and those around it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        own = mount / path.strip().lstrip("/")
        yield from (each for each in (own, *own.parents) if each == mount or mount in each.parents)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _entry(path: Path, names: tuple[str, ...]) -> int:
    entries = dict(line.split(" ", 1) for line in _text(path).splitlines() if " " in line)
    return next((int(entries[name]) for name in reversed(names) if entries.get(name, "").isdigit()), 0)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
