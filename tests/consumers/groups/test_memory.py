"""What the aggregator remembers, that it forgets, at which size, and that it knows what it forgot."""

import gc
import inspect
import math
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from consumers.groups.memory import SKEW_S, Memory
from schemas import Ref


def test_remembers_rollouts_and_closed_groups() -> None:
    memory = Memory(10, 100)
    memory.remember("p.0", (Ref("rollouts", 1, 2**40),), 0.0, closed=False, requested_s=0.0)
    assert memory.ended("p.0", Ref("rollouts", 1, 2**40))
    assert not memory.ended("p.0", Ref("rollouts", 2, 2**40))
    assert not memory.ended("p.1", Ref("rollouts", 1, 2**40))
    assert not memory.closed("p.0")
    memory.remember("p.0", (Ref("rollouts", 1, 7),), 1.0, closed=True, requested_s=0.0)
    assert memory.closed("p.0")
    assert memory.ended("p.0", Ref("rollouts", 1, 2**40))
    assert memory.ended("p.0", Ref("rollouts", 1, 7))


def test_forgets_a_group_after_the_last_of_its_rollouts_ended() -> None:
    memory = Memory(10, 100)
    memory.remember("p.0", (), 0.0, closed=True, requested_s=0.0)
    memory.remember("q.0", (), 5.0, closed=True, requested_s=3.0)
    memory.remember("p.0", (), 8.0, closed=False, requested_s=0.0)
    memory.forget(15.0)
    assert (memory.closed("p.0"), memory.closed("q.0"), len(memory)) == (True, False, 1)
    assert memory.edge_s == 3.0
    memory.forget(18.0)
    assert len(memory) == 0


def test_an_absurd_time_of_request_does_not_move_the_edge_into_the_future() -> None:
    memory = Memory(10, 100)
    memory.remember("p.0", (), 100.0, closed=True, requested_s=1e11)
    memory.forget(110.0)
    assert memory.edge_s == 100.0 + SKEW_S


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 50), st.floats(-10, 20)), max_size=80), st.integers(1, 8))
def test_whatever_was_forgotten_lies_at_or_before_the_edge(ends: list[tuple[int, float, float]], most: int) -> None:
    """Also with a clock that jumps back and forth, and with any order of requests."""
    memory = Memory(5.0, most)
    requested: dict[str, float] = {}
    now_s = 0.0
    for name, requested_s, later_s in ends:
        now_s += later_s
        requested_s = requested.setdefault(f"g{name}", min(requested_s, now_s))
        memory.remember(f"g{name}", (Ref("rollouts", 0, name),), now_s, closed=True, requested_s=requested_s)
        memory.forget(now_s)
        assert len(memory) <= most
        assert all(memory.closed(group) or at_s <= memory.edge_s for group, at_s in requested.items())


def test_a_group_of_eight_takes_no_more_than_documented() -> None:
    gc.collect()
    tracemalloc.start()
    memory = Memory(math.inf, 1_000_000)
    groups = 20_000
    for number in range(groups):
        rollouts = tuple(Ref("rollouts", 3, 10**9 + 8 * number + k) for k in range(8))
        memory.remember(f"{number:016x}.{number % 10}", rollouts, 1.8e9, closed=True, requested_s=1.8e9)
    gc.collect()
    own = [tracemalloc.Filter(True, inspect.getfile(Memory)), tracemalloc.Filter(True, __file__)]
    # Not the whole process: clients of a broker that other tests share allocate meanwhile, in threads of their own.
    traces = tracemalloc.take_snapshot().filter_traces(own).traces
    tracemalloc.stop()
    taken = sum(trace.size for trace in traces)
    print(f"{taken / groups:.0f} bytes a group")
    assert 200 < taken / groups < 300
