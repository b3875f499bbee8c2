"""How often the kernel has killed for want of memory: a process that it killed cannot say so, and its log just ends.

Compare the count before a process starts with the one after it ended by SIGKILL. Of this process's own control group
where the kernel counts by group (a container's other tenants do not matter then), else of the machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")


def memory_kills(root: Path = _ROOT) -> int | None:
    """Kills so far; None where the kernel does not say. `root` is the file system's, for tests."""
    for path in (*_own_counters(root), root / "proc/vmstat"):
        try:
            text = path.read_text()
        except OSError:
            continue
        for line in text.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.strip().isdigit():
                return int(value)
    return None


def _own_counters(root: Path) -> Iterator[Path]:
    """The counters of this process's group, version 2 and 1. In a container its group is often mounted as the root."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.oom_control"
        else:
            continue
        yield mount / path.lstrip("/") / name
        yield mount / name
