"""The phases of a start and their seconds in one log line: recovery must be quick, and this shows what is slow."""

import time
from typing import Final

LINE: Final = "is ready after"


class Phases:
    """Records when each consecutive phase of a start ends, from `began_s` (unix seconds) on."""

    def __init__(self, began_s: float) -> None:
        self._last_s = self._began_s = began_s
        self._took_s: list[tuple[str, float]] = []

    def end(self, name: str) -> None:
        """The phase `name`, which began at the last call, ends now."""
        now_s = time.time()
        self._took_s.append((name, now_s - self._last_s))
        self._last_s = now_s

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {took_s:.2f}" for name, took_s in self._took_s)
        return f"{LINE} {self._last_s - self._began_s:.2f} s: {parts}"


def read_phases(line: str) -> dict[str, float]:
    """Seconds by phase, parsed from a log line that `Phases` wrote; empty for any other line."""
    _, found, rest = line.partition(LINE)
    parts = rest.partition(": ")[2].strip().split(", ") if found else []
    return {name: float(took) for name, _, took in (part.rpartition(" ") for part in parts)}
