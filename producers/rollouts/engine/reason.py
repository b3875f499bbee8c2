"""Why an engine process ended, in its own words: vLLM tells its front end to look above.

The engine's processes write to this process's standard error. Where that is a file, as in every service, what they have
written since a mark is read back from there.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

_STDERR: Final = 2
_TAIL_BYTES: Final = 262_144
_CHARACTERS: Final = 300
_RAISED: Final = re.compile(r"^\((?:EngineCore|Worker)[^)]*\) (?P<said>[A-Za-z_][\w.]*(?:Error|Exception)\b.*)$")


def mark(descriptor: int = _STDERR) -> int | None:
    """Where standard error ends now, in bytes; None where it is no file."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def said_since(marked: int | None, descriptor: int = _STDERR) -> str:
    """The last exception that a process of the engine has printed since the mark; empty where none was."""
    if marked is None:
        return ""
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(max(marked, os.fstat(descriptor).st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = (raised["said"] for line in reversed(lines) if (raised := _RAISED.match(line)))
    return next(found, "")[:_CHARACTERS]
