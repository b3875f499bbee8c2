"""Rendezvous, immediate detection of a peer's exit, named missing ranks; in one event loop, over real connections."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from learner.errors import RankError
from learner.ranks.lifeline import Lifeline, PeerExit, RendezvousInfo
from learner.ranks.rendezvous import LOOPBACK, RENDEZVOUS_FILE, Endpoint, rank0_endpoint

LONG_S, SHORT_S = 20.0, 0.3


@asynccontextmanager
async def lifelines(endpoint: Endpoint, *ranks: int, world: int) -> AsyncIterator[list[Lifeline]]:
    made = [Lifeline(rank, world, endpoint) for rank in ranks]
    try:
        yield made
    finally:
        for lifeline in made:
            lifeline.close()


async def all_connected(*made: Lifeline) -> list[RendezvousInfo]:
    infos = await asyncio.gather(*(lifeline.rendezvous(LONG_S) for lifeline in made))
    for info in infos:
        if info.listening is not None:
            info.listening.close()
    return infos


async def observed_exit(lifeline: Lifeline) -> PeerExit:
    async with asyncio.timeout(LONG_S):
        return await lifeline.wait_for_exit()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("port", [0, 1])
async def test_all_ranks_get_one_store_and_observe_a_later_exit(tmp_path: Path, port: int) -> None:
    endpoint = rank0_endpoint(tmp_path, port and free_port())
    async with lifelines(endpoint, 2, 1, 0, world=3) as (two, one, zero):
        infos = await all_connected(two, one, zero)
        assert len({info.port for info in infos}) == 1
        assert two.waits() == []
        one.close()
        assert await observed_exit(zero) == PeerExit(1, stopping=False)
        zero.close()
        assert await observed_exit(two) == PeerExit(0, stopping=False)


async def test_missing_ranks_are_named_to_every_rank(tmp_path: Path) -> None:
    async with lifelines(rank0_endpoint(tmp_path, 0), 0, 1, world=4) as (zero, one):
        # Rank 1 must connect within this time, which is far more than it needs.
        waiting = asyncio.gather(zero.rendezvous(3.0), one.rendezvous(LONG_S), return_exceptions=True)
        while "learner ranks 2, 3 of 4" not in "".join(zero.waits()):
            assert not waiting.done(), await waiting
            await asyncio.sleep(0)
        assert one.waits()[0].startswith("waits for learner rank 0 to report that all ranks have connected since")
        outcomes = await waiting
    sentence = "learner rank 0 waited 3 s for learner ranks 2, 3 of 4 to connect"
    assert [str(outcome) for outcome in outcomes] == [sentence] * 2
    assert all(isinstance(outcome, RankError) for outcome in outcomes)


async def test_a_missing_rank_0_is_named_with_where_it_was_looked_for(tmp_path: Path) -> None:
    async with lifelines(rank0_endpoint(tmp_path, 0), 1, world=2) as (one,):
        with pytest.raises(RankError, match=f"rank 1 waited 0.3 s for learner rank 0 to listen at .*{RENDEZVOUS_FILE}"):
            await one.rendezvous(SHORT_S)


async def test_a_rank_that_exits_before_the_rendezvous_is_replaced(tmp_path: Path) -> None:
    endpoint = rank0_endpoint(tmp_path, 0)
    async with lifelines(endpoint, 0, 1, 1, 2, world=3) as (zero, first, second, two):
        pending = asyncio.create_task(all_connected(zero))
        dying = asyncio.create_task(first.rendezvous(LONG_S))
        while "learner rank 2 of" not in "".join(zero.waits()):
            await asyncio.sleep(0)
        dying.cancel()
        first.close()
        while "learner ranks 1, 2 of" not in "".join(zero.waits()):
            await asyncio.sleep(0)
        await all_connected(second, two)
        await pending


async def test_the_successor_of_rank_0_is_waited_for(tmp_path: Path) -> None:
    endpoint = rank0_endpoint(tmp_path, 0)
    async with lifelines(endpoint, 0, 0, 1, 2, world=3) as (first, second, one, two):
        waiting = asyncio.create_task(all_connected(one))
        dying = asyncio.create_task(first.rendezvous(LONG_S))
        while "learner rank 2 of" not in "".join(first.waits()):
            await asyncio.sleep(0)
        dying.cancel()
        first.close()
        infos = await all_connected(second, two)
        assert (await waiting)[0].port == infos[0].port


async def test_a_restarted_rank_waits_until_the_others_have_observed_its_first_exit(
    tmp_path: Path,
) -> None:
    endpoint = rank0_endpoint(tmp_path, 0)
    async with lifelines(endpoint, 0, 1, 1, 0, world=2) as (zero, one, again, successor):
        await all_connected(zero, one)
        waiting = asyncio.create_task(again.rendezvous(LONG_S))
        one.close()
        assert await observed_exit(zero) == PeerExit(1, stopping=False)
        assert not waiting.done()
        zero.close()
        infos = await all_connected(successor)
        assert (await waiting).port == infos[0].port


@pytest.mark.parametrize("stopped", [0, 1])
@pytest.mark.parametrize("before", [True, False])
async def test_a_rank_that_is_asked_to_stop_announces_it(tmp_path: Path, stopped: int, before: bool) -> None:
    world = 3 if before else 2
    async with lifelines(rank0_endpoint(tmp_path, 0), 0, 1, world=world) as pair:
        tasks = [asyncio.create_task(all_connected(lifeline)) for lifeline in pair]
        if before:
            while "learner rank 2 of" not in "".join(pair[0].waits()):
                await asyncio.sleep(0)
            tasks[stopped].cancel()
        else:
            await asyncio.gather(*tasks)
        pair[stopped].announce_stop()
        pair[stopped].close()
        assert await observed_exit(pair[1 - stopped]) == PeerExit(stopped, stopping=True)
        for task in tasks:
            task.cancel()


async def test_a_program_that_is_no_rank_is_refused(tmp_path: Path) -> None:
    endpoint = rank0_endpoint(tmp_path, 0)
    async with lifelines(endpoint, 0, 1, world=2) as (zero, one):
        pending = asyncio.create_task(all_connected(zero))
        while endpoint.read_port() is None:
            await asyncio.sleep(0)
        for line in (b"GET / HTTP/1.1\r\n", b'{"rank": 7}\n', b'{"rank": "1"}\n', b"[1]\n", b"x" * 100_000, b""):
            reader, writer = await asyncio.open_connection(LOOPBACK, endpoint.read_port())
            writer.write(line)
            writer.write_eof()
            async with asyncio.timeout(LONG_S):
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            writer.close()
        await all_connected(one)
        await pending


async def test_ranks_of_another_run_are_refused(tmp_path: Path) -> None:
    endpoint = rank0_endpoint(tmp_path, free_port())
    ours, theirs = (
        (Lifeline(0, 2, endpoint, "ours"), Lifeline(1, 2, endpoint, "ours")),
        Lifeline(1, 2, endpoint, "theirs"),
    )
    try:
        pending = asyncio.create_task(all_connected(ours[0]))
        with pytest.raises(RankError, match=r"waited 0\.3 s for learner rank 0 to listen at"):
            await theirs.rendezvous(SHORT_S)
        assert "learner rank 1 of 2 to connect" in ours[0].waits()[0]
        await all_connected(ours[1])
        await pending
    finally:
        for lifeline in (*ours, theirs):
            lifeline.close()


async def test_a_silent_program_at_rank_0s_port_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.ranks.lifeline._GREETING_S", 0.1)
    endpoint = rank0_endpoint(tmp_path, 0)
    held: list[asyncio.StreamWriter] = []
    foreign = await asyncio.start_server(lambda _, writer: held.append(writer), LOOPBACK, 0)
    async with foreign, lifelines(endpoint, 0, 1, world=2) as (zero, one):
        endpoint.publish_port(foreign.sockets[0].getsockname()[1])
        waiting = asyncio.create_task(all_connected(one))
        while not held:
            await asyncio.sleep(0)
        await all_connected(zero)
        await waiting
        for writer in held:
            writer.close()
