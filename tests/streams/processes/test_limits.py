"""What a control group allows, wherever the kernel says it."""

from pathlib import Path

import pytest

from streams.processes.limits import MemoryLimit, memory_limit, processor_limit

V2 = "0::/run.slice/one\n"
V1 = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n"


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({"proc/self/cgroup": V2}, None),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/run.slice/one/memory.max": "max\n"}, None),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/run.slice/one/memory.max": "max\n",
                "sys/fs/cgroup/run.slice/memory.max": "8000\n",
                "sys/fs/cgroup/run.slice/memory.current": "5000\n",
                "sys/fs/cgroup/run.slice/memory.stat": "anon 100\ninactive_file 2000\n",
            },
            MemoryLimit(8000, 5000),
        ),
        # A container: its group has a name outside, and is the root inside.
        (
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "10\n", "sys/fs/cgroup/memory.current": "4\n"},
            MemoryLimit(10, 6),
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1000\n",
            },
            MemoryLimit(9000, 6000),
        ),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_memory(tmp_path: Path, files: dict[str, str], memory: MemoryLimit | None) -> None:
    assert memory_limit(written(tmp_path, files)) == memory


@pytest.mark.parametrize(
    ("files", "processors"),
    [
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/run.slice/one/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/run.slice/one/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/run.slice/cpu.max": "150000 100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_processors(tmp_path: Path, files: dict[str, str], processors: float | None) -> None:
    assert processor_limit(written(tmp_path, files)) == processors
