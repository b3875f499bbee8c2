"""The pool's real processes: verdicts, deadlines, deaths, and that nothing outlives the service."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import psutil
import pytest

from consumers.rewards.pool import VerifierPool
from consumers.rewards.verifiers import Sample, VerifierError

STUCK = Sample("$9^{9^9}$", "$7$")
"""A number of 370 million digits, which sympy starts to compute."""


@pytest.fixture
async def pool() -> AsyncIterator[VerifierPool]:
    async with VerifierPool(size=2, timeout_s=2.0) as pool:
        yield pool


def children(recursive: bool = False) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=recursive):
        # One that ends while it is looked at has ended.
        with suppress(psutil.Error):
            if "consumers.rewards.pool_process" in process.cmdline():
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert children(recursive=True) == []


async def test_fractional_scores_of_reasoning_gym(pool: VerifierPool) -> None:
    entry: dict[str, Any] = {"question": "1 + 2?", "answer": "3", "metadata": {}}
    reference = {"dataset": "chain_sum", "entry": entry}
    assert await pool.check("reasoning_gym", Sample("so <answer>3</answer>", reference)) == 1.0
    wrong = await pool.check("reasoning_gym", Sample("<answer>4</answer>", reference))
    assert 0.0 <= wrong < 0.5
    with pytest.raises(VerifierError, match="'no_such_task'"):
        await pool.check("reasoning_gym", Sample("3", {"dataset": "no_such_task", "entry": entry}))
    with pytest.raises(VerifierError, match="reference is a text"):
        await pool.check("reasoning_gym", Sample("3", "3"))
    with pytest.raises(VerifierError, match="verifier reasoning_gym failed: KeyError"):
        await pool.check("reasoning_gym", Sample("3", {"dataset": "chain_sum", "entry": {}}))


async def test_math_verify(pool: VerifierPool) -> None:
    assert await pool.check("math_verify", Sample("so it is $\\frac{1}{2}$", "0.5")) == 1.0
    assert await pool.check("math_verify", Sample("so it is $\\frac{1}{3}$", {"answer": "0.5"})) == 0.0


async def test_a_stuck_sample_passes_its_deadline_and_delays_nobody() -> None:
    async with VerifierPool(size=2, timeout_s=5.0) as pool:
        await check_that_a_stuck_sample_delays_nobody(pool)


async def check_that_a_stuck_sample_delays_nobody(pool: VerifierPool) -> None:
    await pool.warm(["math_verify"])
    before = {process.pid for process in children()}
    stuck = asyncio.create_task(pool.check("math_verify", STUCK))
    quick = [await pool.check("math_verify", Sample(f"${n}$", f"${n}$")) for n in range(20)]
    assert quick == [1.0] * 20
    assert not stuck.done()
    with pytest.raises(VerifierError, match="verifier math_verify passed its deadline of 5 s"):
        await stuck
    # Nothing is imported again: the processes are the same, and the one that was stuck has a new child.
    assert {process.pid for process in children()} == before
    assert await pool.check("math_verify", Sample("$1$", "$1$")) == 1.0


async def test_a_sample_whose_process_dies_is_tried_again(pool: VerifierPool) -> None:
    await pool.warm(["math_verify"])
    victims = children()
    assert len(victims) == 2
    for process in victims:
        process.send_signal(signal.SIGKILL)
    assert await pool.check("math_verify", Sample("$1$", "$1$")) == 1.0


async def test_cancelling_a_check_ends_its_process(pool: VerifierPool) -> None:
    await pool.warm(["math_verify"])
    stuck = asyncio.create_task(pool.check("math_verify", STUCK))
    await asyncio.sleep(0)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    assert len(children()) == 1


PARENT = """
import asyncio
from consumers.rewards.pool import VerifierPool
async def main():
    async with VerifierPool(1, 5.0) as pool:
        await pool.warm(["exact_match"])
        print("warm", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def test_processes_die_with_the_service() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"warm\n"
        (process,) = psutil.Process(parent.pid).children()
        parent.kill()
    process.wait(timeout=10)


async def test_samples_that_do_not_end_cost_their_deadline_and_no_more() -> None:
    """Nine of them in a row: none costs the process that has imported the package, only a child of it."""
    async with VerifierPool(size=1, timeout_s=0.2) as pool:
        await pool.warm(["math_verify"])
        before = [process.pid for process in children()]
        for _ in range(9):
            with pytest.raises(VerifierError, match=r"passed its deadline of 0\.2 s"):
                await pool.check("math_verify", STUCK)
        assert [process.pid for process in children()] == before


async def test_a_judging_process_that_dies_has_one_successor() -> None:
    async with VerifierPool(size=1, timeout_s=20.0) as pool:
        await pool.warm(["math_verify"])
        judged = asyncio.create_task(pool.check("math_verify", STUCK))
        for _ in range(2):
            judge = await _judge_of(children()[0])
            judge.kill()
            judge.wait(timeout=10)
        with pytest.raises(VerifierError, match="died twice: it was killed by signal 9"):
            await judged
        assert await pool.check("math_verify", Sample("$1$", "$1$")) == 1.0


async def _judge_of(process: psutil.Process) -> psutil.Process:
    async with asyncio.timeout(10):
        while not (found := [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]):
            await asyncio.sleep(0.01)
    return found[0]
