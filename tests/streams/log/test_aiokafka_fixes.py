"""aiokafka is the version that its work-arounds were written for, and what each of them rests on is there."""

import asyncio
import inspect
from importlib.metadata import version
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import GroupAuthorizationFailedError, NoError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, SyncGroupRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.errors import BrokerAwayError
from streams.log.aiokafka_fixes import AIOKAFKA_VERSION, close, committed_offsets, pace, stop_producer
from streams.stages.group_protocol import Heartbeat, LeaveGroup, OffsetCommit

PARTITION = TopicPartition("run.scores", 0)


def newest(request: Any) -> int:
    """The highest version of a request that aiokafka can build."""
    return max(int(struct.API_VERSION) for struct in request._CLASSES)


def test_the_fixes_and_the_group_protocol_are_bound_to_the_installed_version() -> None:
    assert version("aiokafka") == AIOKAFKA_VERSION, (
        "check each fix of streams/log/aiokafka_fixes.py, streams/stages/group_protocol.py and group_coordinator.py "
        "against the new version, drop what it has fixed, then raise AIOKAFKA_VERSION"
    )


def test_the_method_that_pace_wraps_has_the_arguments_that_it_passes_on() -> None:
    assert list(inspect.signature(Fetcher._proc_fetch_request).parameters) == [
        "self",
        "assignment",
        "node_id",
        "request",
    ]


def test_aiokafka_lacks_just_the_requests_that_the_group_protocol_adds() -> None:
    assert newest(JoinGroupRequest) >= 5 and newest(SyncGroupRequest) >= 3
    theirs = [newest(request) for request in (HeartbeatRequest, LeaveGroupRequest, OffsetCommitRequest)]
    ours = [newest(request) for request in (Heartbeat, LeaveGroup, OffsetCommit)]
    assert all(lacking < added for lacking, added in zip(theirs, ours, strict=True)), (theirs, ours)


def test_static_requests_are_built_with_the_name_of_the_instance() -> None:
    heartbeat = Heartbeat("group", 3, "member", "instance").prepare({12: (0, 4)})
    assert heartbeat.API_VERSION == 3
    assert heartbeat.encode().hex() == (
        "0005" + b"group".hex() + "00000003" + "0006" + b"member".hex() + "0008" + b"instance".hex()
    )


class _Admin:
    """Answers of a coordinator, one after the other."""

    def __init__(self, *answers: dict[TopicPartition, OffsetAndMetadata] | Exception) -> None:
        self.answers = list(answers)

    async def list_consumer_group_offsets(self, group: str, partitions: list[TopicPartition]) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_answer_without_the_partitions_is_no_answer() -> None:
    committed = {PARTITION: OffsetAndMetadata(7, "")}
    admin: Any = _Admin({}, NoError("a partition's own error"), committed)
    async with asyncio.timeout(10):
        assert await committed_offsets(admin, "group", [PARTITION]) == committed
    assert not admin.answers


async def test_a_refusal_is_not_asked_again() -> None:
    admin: Any = _Admin(GroupAuthorizationFailedError("group"))
    with pytest.raises(GroupAuthorizationFailedError):
        await committed_offsets(admin, "group", [PARTITION])


async def test_aiokafka_still_takes_a_loading_coordinator_for_a_group_without_commits() -> None:
    """The fix is needed as long as this holds."""
    admin = AIOKafkaAdminClient()

    class Loading:
        error_code = 14
        topics = ()

    async def answer(request: object, node_id: int) -> Loading:
        return Loading()

    admin._send_request = answer
    assert await admin.list_consumer_group_offsets("group", 0, [PARTITION]) == {}


class _Consumer:
    """A consumer whose fetches come back at once."""

    def __init__(self, found: bool) -> None:
        self._fetcher = self
        self.found = found

    async def _proc_fetch_request(self, assignment: object, node_id: object, request: object) -> bool:
        return self.found


@pytest.mark.parametrize(("found", "least_s"), [(False, 0.03), (True, 0.0)])
async def test_an_empty_fetch_that_came_back_at_once_is_followed_by_a_pause(found: bool, least_s: float) -> None:
    consumer = _Consumer(found)
    pace(consumer)
    clock = asyncio.get_running_loop().time
    began_s = clock()
    assert await consumer._proc_fetch_request(None, None, None) is found
    elapsed_s = clock() - began_s
    assert least_s <= elapsed_s + 0.001
    assert found is False or elapsed_s < 0.02


async def test_a_close_that_hangs_is_given_up() -> None:
    async with asyncio.timeout(10):
        await close(asyncio.Event().wait(), 0.05)


async def test_a_client_that_cancels_its_own_tasks_at_its_close_does_not_replace_the_error_that_ends_the_service() -> (
    None
):
    async def stop() -> None:
        fetching = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        fetching.cancel()
        await fetching

    with pytest.raises(BrokerAwayError):
        try:
            raise BrokerAwayError("for records", 30)
        finally:
            await close(stop(), 5)


async def test_a_close_that_hangs_ends_with_its_caller() -> None:
    began = asyncio.Event()

    async def stop() -> None:
        began.set()
        await asyncio.sleep(60)

    closing = asyncio.create_task(close(stop(), 60))
    await began.wait()
    closing.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([closing])
    assert closing.cancelled()


async def test_the_connections_of_a_producer_are_closed_though_its_caller_is_cancelled_meanwhile() -> None:
    began, closed = asyncio.Event(), asyncio.Event()

    class Hanging:
        async def stop(self) -> None:
            began.set()
            await asyncio.sleep(60)

        async def close(self) -> None:
            closed.set()

    hanging: Any = Hanging()
    hanging.client = hanging
    stopping = asyncio.create_task(stop_producer(hanging, 60))
    await began.wait()
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled() and closed.is_set()


async def test_a_close_begins_at_once_so_that_the_end_of_the_loop_finds_the_client_closed() -> None:
    begun: list[bool] = []

    async def stop() -> None:
        begun.append(True)
        await asyncio.sleep(60)

    async def leave() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await close(stop(), 5)

    leaving = asyncio.create_task(leave())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # what `asyncio.run` does at its end
        task.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled() and begun


async def test_an_error_of_a_close_that_is_not_the_brokers_is_raised() -> None:
    async def stop() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await close(stop(), 5)
