"""Ranks meet, notice ends at once, and say who is missing; in one event loop, over real connections."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from learner.errors import RankError
from learner.ranks.lifeline import End, Lifeline, Meeting
from learner.ranks.rendezvous import LOOPBACK, RENDEZVOUS_FILE, Place, place_of

LONG_S, SHORT_S = 20.0, 0.3


@asynccontextmanager
async def lifelines(place: Place, *ranks: int, world: int) -> AsyncIterator[list[Lifeline]]:
    made = [Lifeline(rank, world, place) for rank in ranks]
    try:
        yield made
    finally:
        for lifeline in made:
            lifeline.close()


async def all_met(*made: Lifeline) -> list[Meeting]:
    meetings = await asyncio.gather(*(lifeline.meet(LONG_S) for lifeline in made))
    for meeting in meetings:
        if meeting.listening is not None:
            meeting.listening.close()
    return meetings


async def heard(lifeline: Lifeline) -> End:
    async with asyncio.timeout(LONG_S):
        return await lifeline.lost()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("port", [0, 1])
async def test_all_learn_of_one_store_and_of_an_end_after_that(tmp_path: Path, port: int) -> None:
    place = place_of(tmp_path, port and free_port())
    async with lifelines(place, 2, 1, 0, world=3) as (two, one, zero):
        meetings = await all_met(two, one, zero)
        assert len({meeting.port for meeting in meetings}) == 1
        assert two.waits() == []
        one.close()
        assert await heard(zero) == End(1, stopping=False)
        zero.close()
        assert await heard(two) == End(0, stopping=False)


async def test_who_did_not_come_is_named_to_all(tmp_path: Path) -> None:
    async with lifelines(place_of(tmp_path, 0), 0, 1, world=4) as (zero, one):
        # Rank 1 must come before that is over, which is more than it takes.
        waiting = asyncio.gather(zero.meet(3.0), one.meet(LONG_S), return_exceptions=True)
        while "learner ranks 2, 3 of 4" not in "".join(zero.waits()):
            assert not waiting.done(), await waiting
            await asyncio.sleep(0)
        assert one.waits()[0].startswith("waits for learner rank 0 to say that all are here since")
        outcomes = await waiting
    sentence = "learner rank 0 waited 3 s for learner ranks 2, 3 of 4 to come"
    assert [str(outcome) for outcome in outcomes] == [sentence] * 2
    assert all(isinstance(outcome, RankError) for outcome in outcomes)


async def test_a_missing_rank_0_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    async with lifelines(place_of(tmp_path, 0), 1, world=2) as (one,):
        with pytest.raises(RankError, match=f"rank 1 waited 0.3 s for learner rank 0 to come to .*{RENDEZVOUS_FILE}"):
            await one.meet(SHORT_S)


async def test_who_ends_before_all_have_met_is_replaced(tmp_path: Path) -> None:
    place = place_of(tmp_path, 0)
    async with lifelines(place, 0, 1, 1, 2, world=3) as (zero, first, second, two):
        meeting = asyncio.create_task(all_met(zero))
        dying = asyncio.create_task(first.meet(LONG_S))
        while "learner rank 2 of" not in "".join(zero.waits()):
            await asyncio.sleep(0)
        dying.cancel()
        first.close()
        while "learner ranks 1, 2 of" not in "".join(zero.waits()):
            await asyncio.sleep(0)
        await all_met(second, two)
        await meeting


async def test_the_successor_of_rank_0_is_waited_for(tmp_path: Path) -> None:
    place = place_of(tmp_path, 0)
    async with lifelines(place, 0, 0, 1, 2, world=3) as (first, second, one, two):
        waiting = asyncio.create_task(all_met(one))
        dying = asyncio.create_task(first.meet(LONG_S))
        while "learner rank 2 of" not in "".join(first.waits()):
            await asyncio.sleep(0)
        dying.cancel()
        first.close()
        meetings = await all_met(second, two)
        assert (await waiting)[0].port == meetings[0].port


async def test_the_second_life_of_a_rank_waits_until_the_others_have_noticed_the_end_of_the_first(
    tmp_path: Path,
) -> None:
    place = place_of(tmp_path, 0)
    async with lifelines(place, 0, 1, 1, 0, world=2) as (zero, one, again, successor):
        await all_met(zero, one)
        waiting = asyncio.create_task(again.meet(LONG_S))
        one.close()
        assert await heard(zero) == End(1, stopping=False)
        assert not waiting.done()
        zero.close()
        meetings = await all_met(successor)
        assert (await waiting).port == meetings[0].port


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("before", [True, False])
async def test_one_that_is_told_to_stop_says_so(tmp_path: Path, stopped: int, before: bool) -> None:
    world = 3 if before else 2
    async with lifelines(place_of(tmp_path, 0), 0, 1, world=world) as pair:
        tasks = [asyncio.create_task(all_met(lifeline)) for lifeline in pair]
        if before:
            while "learner rank 2 of" not in "".join(pair[0].waits()):
                await asyncio.sleep(0)
            tasks[stopped].cancel()
        else:
            await asyncio.gather(*tasks)
        pair[stopped].stop()
        pair[stopped].close()
        assert await heard(pair[1 - stopped]) == End(stopped, stopping=True)
        for task in tasks:
            task.cancel()


async def test_what_is_no_rank_is_not_let_in(tmp_path: Path) -> None:
    place = place_of(tmp_path, 0)
    async with lifelines(place, 0, 1, world=2) as (zero, one):
        meeting = asyncio.create_task(all_met(zero))
        while place.told() is None:
            await asyncio.sleep(0)
        for said in (b"GET / HTTP/1.1\r\n", b'{"rank": 7}\n', b'{"rank": "1"}\n', b"[1]\n", b"x" * 100_000, b""):
            reader, writer = await asyncio.open_connection(LOOPBACK, place.told())
            writer.write(said)
            writer.write_eof()
            async with asyncio.timeout(LONG_S):
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
        await all_met(one)
        await meeting


async def test_ranks_of_another_run_are_refused(tmp_path: Path) -> None:
    place = place_of(tmp_path, free_port())
    ours, theirs = (Lifeline(0, 2, place, "ours"), Lifeline(1, 2, place, "ours")), Lifeline(1, 2, place, "theirs")
    try:
        meeting = asyncio.create_task(all_met(ours[0]))
        with pytest.raises(RankError, match=r"waited 0\.3 s for learner rank 0 to come"):
            await theirs.meet(SHORT_S)
        assert "learner rank 1 of 2 to come" in ours[0].waits()[0]
        await all_met(ours[1])
        await meeting
    finally:
        for lifeline in (*ours, theirs):
            lifeline.close()


async def test_a_silent_program_at_rank_0s_port_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.ranks.lifeline._GREETING_S", 0.1)
    place = place_of(tmp_path, 0)
    held: list[asyncio.StreamWriter] = []
    foreign = await asyncio.start_server(lambda _, writer: held.append(writer), LOOPBACK, 0)
    async with foreign, lifelines(place, 0, 1, world=2) as (zero, one):
        place.tell(foreign.sockets[0].getsockname()[1])
        waiting = asyncio.create_task(all_met(one))
        while not held:
            await asyncio.sleep(0)
        await all_met(zero)
        await waiting
        for writer in held:
            writer.close()
