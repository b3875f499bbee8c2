"""The table of kill points: one row for each, with the median and the worst recovery."""

from collections import Counter

from tests.chaos.progress import Recovery
from tests.chaos.verdict import table


def test_each_kill_point_has_a_row_with_median_and_worst() -> None:
    took = {"kill groups": (1.0, 3.0, 8.0), "point transaction.sent in batches": (0.5,)}
    recoveries = [Recovery(blow, blow.split()[-1], took_s) for blow, times in took.items() for took_s in times]
    blows = Counter({"kill groups": 3, "point transaction.sent in batches": 1, "disk full": 2})
    head, _, *rows = table(blows, recoveries, ["point blobs.written in producer"]).splitlines()
    assert head.split() == ["kill", "point", "n", "median", "s", "worst", "s"]
    assert [row.rsplit(maxsplit=3) for row in rows] == [
        ["disk full", "2", "-", "-"],
        ["kill groups", "3", "3.00", "8.00"],
        ["point blobs.written in producer", "0", "-", "-"],
        ["point transaction.sent in batches", "1", "0.50", "0.50"],
    ]
