"""The search for the prompt that kills the engine, against engines of which the killers are known."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.rollouts.quarantine import NARROWING, Quarantine, Suspects
from streams.errors import Poison


def search(count: int, killers: set[int], capacity: int) -> tuple[set[str], set[str], int]:
    """Condemned, generated, and how many engines it took, with `capacity` prompts in flight at most."""
    suspects = Suspects()
    waiting = [str(number) for number in range(count)]
    condemned: set[str] = set()
    generated: set[str] = set()
    deaths = 0
    while waiting:
        cohort = suspects.admitted(waiting[:capacity], ())
        assert cohort, "somebody may always go on"
        if {int(key) for key in cohort} & killers:
            deaths += 1
            suspects.died(cohort)
            condemned |= (gone := {key for key in cohort if suspects.is_condemned(key)})
        else:
            generated |= (gone := set(cohort))
        for key in gone:
            suspects.clear(key)
        waiting = [key for key in waiting if key not in gone]
    assert not suspects
    return condemned, generated, deaths


@given(st.integers(1, 600), st.sets(st.integers(0, 599), max_size=4), st.integers(1, 256))
def test_killers_and_nobody_else_are_condemned(count: int, killers: set[int], capacity: int) -> None:
    killers = {killer for killer in killers if killer < count}
    condemned, generated, deaths = search(count, killers, capacity)
    assert {int(key) for key in condemned} == killers
    assert len(generated) == count - len(killers)
    assert deaths <= 5 * len(killers)


def test_one_of_256_is_found_after_four_deaths() -> None:
    assert search(256, {77}, 256)[2] == 4
    assert search(1, {0}, 256)[2] == 2


def test_two_deaths_for_another_reason_condemn_nobody() -> None:
    suspects = Suspects()
    everyone = [str(number) for number in range(40)]
    suspects.died(everyone)
    assert suspects.admitted(everyone, ()) == everyone
    suspects.died(everyone)
    tried = []
    while waiting := [key for key in everyone if key not in tried]:
        cohort = suspects.admitted(waiting, ())
        assert suspects.admitted(waiting, cohort) in ([], waiting) and len(cohort) in (40 // NARROWING, 40)
        for key in cohort:
            suspects.clear(key)
        tried += cohort
    assert tried == everyone


async def test_a_turn_waits_while_suspects_are_tried() -> None:
    turns = Quarantine()
    order: list[str] = []
    dies = {0: {"a", "b"}, 1: {"a", "b"}, 2: {"a"}}
    life = 0
    death = asyncio.Event()

    async def generate(key: str) -> None:
        nonlocal life
        while True:
            async with turns.attempt(key) as turn:
                order.append(key)
                if key not in dies.get(life, set()):
                    return
                turn.lost = life
                await death.wait()

    async with asyncio.timeout(10):
        tasks = [asyncio.create_task(generate(key)) for key in ("a", "b")]
        for ended in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if ended == 2:
                assert turns.waits()[0].startswith("the engine died twice with 2 prompts in flight: tries a apart")
                tasks.append(asyncio.create_task(generate("c")))
                await asyncio.sleep(0)
                assert order == ["a", "b", "a", "b", "a"]
            life = ended + 1
            death.set()
            death = asyncio.Event()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], Poison) and "died 3 times while this prompt was in flight" in str(results[0])
    assert results[1:] == [None, None] and order[5:] == ["b", "c"] and turns.waits() == []


async def test_a_cancelled_suspect_holds_up_nobody() -> None:
    turns = Quarantine()
    started = asyncio.Event()

    async def die(key: str) -> None:
        for life in (0, 1):
            async with turns.attempt(key) as turn:
                turn.lost = life
                await asyncio.sleep(0)
        async with turns.attempt(key):
            started.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(10):
        suspects = [asyncio.create_task(die(key)) for key in ("a", "b")]
        await started.wait()
        for suspect in suspects:
            suspect.cancel()
        with pytest.raises(asyncio.CancelledError):
            await suspects[0]
        async with turns.attempt("c"):
            pass
