"""Where the time of a start goes, in one line of the log: recovery is to be quick, and this says what is slow."""

import time
from typing import Final

LINE: Final = "is ready after"


class Phases:
    """Marks the end of one phase of a start after the other, from `began_s` (unix seconds) on."""

    def __init__(self, began_s: float) -> None:
        self._last_s = self._began_s = began_s
        self._took_s: list[tuple[str, float]] = []

    def end(self, name: str) -> None:
        """What was done until now, since the last mark, was `name`."""
        now_s = time.time()
        self._took_s.append((name, now_s - self._last_s))
        self._last_s = now_s

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {took_s:.2f}" for name, took_s in self._took_s)
        return f"{LINE} {self._last_s - self._began_s:.2f} s: {parts}"


def read_phases(line: str) -> dict[str, float]:
    """Seconds by phase of a log line that holds such a sentence; empty where it does not."""
    _, found, said = line.partition(LINE)
    parts = said.partition(": ")[2].strip().split(", ") if found else []
    return {name: float(took) for name, _, took in (part.rpartition(" ") for part in parts)}
