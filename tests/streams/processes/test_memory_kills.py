"""The kernel's count of kills for want of memory, wherever it keeps it."""

from pathlib import Path

import pytest

from streams.processes.memory_kills import memory_kills


def written(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        ({"proc__vmstat": "pgfault 12\noom_kill 7\n"}, 7),
        (
            {
                "proc__self__cgroup": "0::/run.slice\n",
                "sys__fs__cgroup__run_dot_slice__memory_dot_events": "low 0\noom 3\noom_kill 2\n",
                "proc__vmstat": "oom_kill 99\n",
            },
            2,
        ),
        (
            {
                "proc__self__cgroup": "5:cpu:/\n4:memory:/docker/abc\n0::/\n",
                "sys__fs__cgroup__memory__memory_dot_oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
            },
            4,
        ),
        ({"proc__self__cgroup": "0::/\n"}, None),
    ],
)
def test_the_own_groups_count_comes_first(tmp_path: Path, files: dict[str, str], kills: int | None) -> None:
    assert memory_kills(written(tmp_path, **files)) == kills


def test_this_machine_counts() -> None:
    assert (memory_kills() or 0) >= 0
