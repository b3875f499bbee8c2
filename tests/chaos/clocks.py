"""Wall clocks that can be made to jump, one for each service process. The machine's own stays as it is."""

import os
import struct
from pathlib import Path
from typing import Final

_SITE: Final = Path(__file__).with_name("clock")
_OFFSET: Final = struct.Struct("<d")


class Clocks:
    """The clocks of the processes of one run, kept in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def environment(self, name: str, python_path: Path) -> dict[str, str]:
        """What the process `name` needs in its environment so that its clock can jump."""
        if not self._file(name).exists():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file(name).write_bytes(_OFFSET.pack(0.0))
        return {"EACHPROMPT_CLOCK": str(self._file(name)), "PYTHONPATH": f"{python_path}{os.pathsep}{_SITE}"}

    def jump(self, name: str, seconds: float) -> None:
        """The process `name` believes from now on, and after its restart, that it is `seconds` later than it is."""
        with self._file(name).open("r+b", buffering=0) as file:
            file.write(_OFFSET.pack(seconds))

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.offset"
