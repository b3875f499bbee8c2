"""The light services' collector: in a process of its own, since it changes the whole of one."""

import subprocess
import sys

PROGRAM = """
import gc
from streams.runtime.gc_tuning import collect_rarely

runs = []
collect_rarely()
gc.callbacks.append(lambda phase, info: runs.append(phase))
hand = [[number] for number in range(15_000)]
print(len(runs), gc.get_freeze_count() > 1_000)
"""


def test_fifteen_thousand_objects_in_flight_are_not_looked_at() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["0", "True"]
