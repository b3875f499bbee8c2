"""What a campaign found: blows, recovery times, the audit, and whatever is wrong."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from analysis.audit.result import Audit
from tests.chaos.progress import Recovery


@dataclass(frozen=True)
class Verdict:
    """What was done, how long recovery took, and what is wrong: `findings` is empty where delivery held."""

    blows: Counter[str]
    missed: Counter[str]
    recoveries: list[Recovery]
    ends: Counter[str]
    audit: Audit
    findings: list[str]
    wall_s: float
    records: Counter[str]
    steps: int
    repeated_steps: int

    @property
    def kills(self) -> int:
        """Processes that were killed with SIGKILL, at random times and at fault points."""
        return sum(count for blow, count in self.blows.items() if blow.startswith(("kill ", "point ")))

    def table(self) -> str:
        """Kill point, how often it struck, recovery median and worst in seconds; a row for each that there is."""
        return table(self.blows, self.recoveries, self.missed)

    def summary(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kills": self.kills,
            "blows": dict(self.blows),
            "not_reached": dict(+self.missed),
            "produced": self.audit.produced,
            "dispositions": self.audit.dispositions,
            "in_flight": self.audit.in_flight_waiting,
            "unaccounted": self.audit.unaccounted,
            "trained_twice": self.audit.trained_twice,
            "steps": self.steps,
            "steps_told_again": self.repeated_steps,
            "recoveries": [(each.blow, round(each.took_s, 3)) for each in self.recoveries],
            "service_ends": dict(self.ends),
            "findings": self.findings,
            "wall_s": round(self.wall_s, 1),
        }


def table(blows: Counter[str], recoveries: Iterable[Recovery], missed: Iterable[str]) -> str:
    """Kill point, how often, and seconds until the next record of whoever was hit: median and worst."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    for recovery in recoveries:
        took[recovery.blow].append(recovery.took_s)
    lines = [f"{'kill point':44} {'n':>6} {'median s':>9} {'worst s':>9}", "-" * 71]
    for blow in sorted({*blows, *missed}):
        times = took.get(blow)
        figures = f"{statistics.median(times):9.2f} {max(times):9.2f}" if times else f"{'-':>9} {'-':>9}"
        lines.append(f"{blow:44} {blows[blow]:6} {figures}")
    return "\n".join(lines)
