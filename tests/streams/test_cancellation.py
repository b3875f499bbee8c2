"""A cancellation that nobody asked for is an error; one that was asked for stays what it is."""

import asyncio

import pytest

from streams.cancellation import StrayCancellationError, owned, spawn


async def awaits_what_it_cancels() -> None:
    """What aiokafka's `stop()` does."""
    inner = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    inner.cancel()
    await inner


async def test_a_task_group_lets_a_stray_cancellation_go_without_a_word() -> None:
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(awaits_what_it_cancels())
    assert reading.cancelled()  # why `spawn` is there


async def test_a_stray_cancellation_is_an_error_with_the_name_of_the_task() -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(StrayCancellationError, match="^groups reads was cancelled from within")):
        async with asyncio.TaskGroup() as tasks:
            spawn(awaits_what_it_cancels(), "groups reads", tasks)


async def test_a_stray_cancellation_in_a_call_is_an_error_of_the_call() -> None:
    with pytest.raises(StrayCancellationError, match="a read of the log"):
        await owned(awaits_what_it_cancels(), "a read of the log")


@pytest.mark.parametrize("steps", [0, 1])
async def test_a_task_that_is_cancelled_is_cancelled(steps: int) -> None:
    task = spawn(asyncio.sleep(60), "sleeps")
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_time_out_is_a_time_out() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await owned(asyncio.sleep(60), "sleeps")


async def test_an_error_elsewhere_cancels_the_tasks_of_a_group() -> None:
    async def fails() -> None:
        raise ValueError("this one")

    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="this one")):
        async with asyncio.TaskGroup() as tasks:
            spawn(asyncio.sleep(60), "sleeps", tasks)
            spawn(fails(), "fails", tasks)
