"""What a campaign found: blows, recovery times, the audit, and whatever is wrong."""

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass

from deploy.audit import Audit
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
    repeated_steps: int

    @property
    def kills(self) -> int:
        """Processes that were killed with SIGKILL, at random times and at fault points."""
        return sum(count for blow, count in self.blows.items() if blow.startswith(("kill ", "point ")))

    def table(self) -> str:
        """Blow, how often, recovery p50 and max in seconds."""
        return table(self.blows, self.recoveries)

    def summary(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kills": self.kills,
            "blows": dict(self.blows),
            "not_reached": dict(self.missed),
            "produced": self.audit.produced,
            "dispositions": self.audit.dispositions,
            "in_flight": self.audit.in_flight_waiting,
            "unaccounted": self.audit.unaccounted,
            "trained_twice": self.audit.trained_twice,
            "steps_told_again": self.repeated_steps,
            "service_ends": dict(self.ends),
            "findings": self.findings,
            "wall_s": round(self.wall_s, 1),
        }


def table(blows: Counter[str], recoveries: list[Recovery]) -> str:
    """Blow, how often, and seconds until the next progress of whoever was hit: p50 and max."""
    took: defaultdict[str, list[float]] = defaultdict(list)
    for recovery in recoveries:
        took[recovery.blow].append(recovery.took_s)
    lines = [f"{'blow':44} {'count':>6} {'p50 s':>7} {'max s':>7}", "-" * 67]
    for blow in sorted(blows):
        times = took.get(blow)
        figures = f"{statistics.median(times):7.2f} {max(times):7.2f}" if times else f"{'-':>7} {'-':>7}"
        lines.append(f"{blow:44} {blows[blow]:6} {figures}")
    return "\n".join(lines)
