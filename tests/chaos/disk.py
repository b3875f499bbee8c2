"""A small disk of its own that can be filled: a tmpfs, where this machine lets us mount one."""

import contextlib
import subprocess
from pathlib import Path

_CHUNK = bytes(64 * 1024)


class SmallDisk:
    """A tmpfs of `size_mib` at `path`."""

    def __init__(self, path: Path, size_mib: int) -> None:
        self.path = path
        self._size_mib = size_mib
        self.mounted = False

    def open(self) -> None:
        """Mount it; where that is not allowed it is a directory like any other, and `mounted` stays False."""
        self.path.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={self._size_mib}m", "tmpfs", str(self.path)]
        with contextlib.suppress(FileNotFoundError):
            self.mounted = subprocess.run(mount, capture_output=True, timeout=10, check=False).returncode == 0

    def fill(self) -> None:
        """Take all the space that is left."""
        with (self.path / "junk").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(_CHUNK):
                pass

    def free(self) -> None:
        """Give it back."""
        (self.path / "junk").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it; its contents are gone."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, timeout=10, check=False)
            self.mounted = False
