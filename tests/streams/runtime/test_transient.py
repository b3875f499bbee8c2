"""Which errors a service lays at another's door."""

import errno

import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from streams.errors import BlobError, BrokerAwayError, DeadlineError, DeliveryError, FencedError, StreamsError
from streams.runtime.transient import is_outside


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        BrokerAwayError("for the broker at 127.0.0.1:1", 30.0),
        raised_from(BlobError("blob x cannot be written"), OSError(errno.EDQUOT, "Disk quota exceeded")),
        raised_from(DeliveryError("the broker did not take it"), KafkaConnectionError()),
        raised_from(RuntimeError("outer"), raised_from(StreamsError("middle"), OSError(errno.EIO, "I/O error"))),
    ],
)
def test_outside(error: BaseException) -> None:
    assert is_outside(error)


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("own fault"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        DeadlineError("for weights 3", 60.0),
        FencedError("another instance has taken over"),
        raised_from(DeliveryError("refused"), TopicAuthorizationFailedError()),
        raised_from(StreamsError("records cannot be read"), ValueError("x")),
    ],
)
def test_its_own_fault(error: BaseException) -> None:
    assert not is_outside(error)


def test_an_error_while_handling_another_counts_unless_it_was_cut_off() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("while cleaning up")  # noqa: B904
    except RuntimeError as error:
        assert is_outside(error)
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("unrelated") from None
    except RuntimeError as error:
        assert not is_outside(error)


def test_a_circle_of_causes_ends() -> None:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_outside(one)
    assert is_outside(raised_from(OSError(errno.ENOSPC, "No space left on device"), one))
