"""Requests of a static group member that aiokafka 0.14.0 lacks: heartbeat, leave and commit with the instance's name.

Layouts: the Kafka protocol's message definitions, HeartbeatRequest 3, LeaveGroupRequest 3, OffsetCommitRequest 7.
The base classes are aiokafka's own and not public: bound to `streams.log.aiokafka_fixes.AIOKAFKA_VERSION`, and to go
once aiokafka has these versions (aio-libs/aiokafka#682 added the instance's name to join and sync alone).
"""

from typing import Any, TypeVar

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int16, Int32, Int64, Schema, String

_Built = TypeVar("_Built", bound=RequestStruct)


class _HeartbeatResponseV3(Response):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _HeartbeatV3(RequestStruct):  # type: ignore[misc]
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponseV3
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _LeaveGroupResponseV3(Response):  # type: ignore[misc]
    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "members",
            Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")), ("error_code", Int16)),
        ),
    )


class _LeaveGroupV3(RequestStruct):  # type: ignore[misc]
    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = _LeaveGroupResponseV3
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("members", Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")))),
    )


class _OffsetCommitResponseV7(Response):  # type: ignore[misc]
    API_KEY = 8
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(("topic", String("utf-8")), ("partitions", Array(("partition", Int32), ("error_code", Int16)))),
        ),
    )


class _OffsetCommitV7(RequestStruct):  # type: ignore[misc]
    API_KEY = 8
    API_VERSION = 7
    RESPONSE_TYPE = _OffsetCommitResponseV7
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("partition", Int32), ("offset", Int64), ("leader_epoch", Int32), ("metadata", String("utf-8"))
                    ),
                ),
            ),
        ),
    )


class _Fields(Request[_Built]):  # type: ignore[misc]
    """A request of one version: its fields in the order of the schema."""

    API_KEY = -1

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_Built]) -> _Built:
        built: _Built = request_struct_class(*self._fields)
        return built


class Heartbeat(_Fields[_HeartbeatV3]):
    """(group, generation, member, instance)"""

    API_KEY = 12


class LeaveGroup(_Fields[_LeaveGroupV3]):
    """(group, [(member, instance)])"""

    API_KEY = 13


class OffsetCommit(_Fields[_OffsetCommitV7]):
    """(group, generation, member, instance, [(topic, [(partition, offset, leader epoch, metadata)])])"""

    API_KEY = 8
