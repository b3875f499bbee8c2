"""Python's cycle collector in services with hundreds of records in flight.

It runs after every 700 new containers and examines all young ones, and each rollout in flight is dozens of them: a
quarter of a reward consumer's CPU time went there, to find nothing, since records and events make no cycles.
"""

import gc
from typing import Final

_NEW_CONTAINERS: Final = 20_000
_YOUNGER_RUNS: Final = 20


def collect_rarely() -> None:
    """Never look again at what start-up made, and at the rest after 20,000 new containers, some megabytes.

    For services whose memory is Python objects: where cycles could hold tensors, megabytes become gigabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_CONTAINERS, _YOUNGER_RUNS, _YOUNGER_RUNS)
