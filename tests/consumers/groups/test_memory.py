"""What the aggregator remembers, and that it forgets."""

from consumers.groups.memory import Memory
from schemas import Ref


def test_remembers_rollouts_and_closed_groups() -> None:
    memory = Memory(remember_s=10)
    memory.remember("p.0", (Ref("rollouts", 1, 2**40),), 0.0, closed=False)
    assert memory.ended("p.0", Ref("rollouts", 1, 2**40))
    assert not memory.ended("p.0", Ref("rollouts", 2, 2**40))
    assert not memory.ended("p.1", Ref("rollouts", 1, 2**40))
    assert not memory.closed("p.0")
    memory.remember("p.0", (Ref("rollouts", 1, 7),), 1.0, closed=True)
    assert memory.closed("p.0")
    assert memory.ended("p.0", Ref("rollouts", 1, 2**40))


def test_forgets_a_group_after_the_last_of_its_rollouts_ended() -> None:
    memory = Memory(remember_s=10)
    memory.remember("p.0", (), 0.0, closed=True)
    memory.remember("q.0", (), 5.0, closed=True)
    memory.remember("p.0", (), 8.0, closed=False)
    memory.forget(15.0)
    assert (memory.closed("p.0"), memory.closed("q.0"), len(memory)) == (True, False, 1)
    memory.forget(18.0)
    assert len(memory) == 0
