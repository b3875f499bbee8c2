"""Whether an error's cause lies outside the service: then a later restart helps, and giving up does not.

A full disk and a broker that is away are the operator's to fix, however long that takes; a service that fails for its
own fault fails again. A service reports which it was by its exit code (`streams.runtime.service`).
"""

import errno
from collections.abc import Iterator
from typing import Final

from aiokafka.errors import KafkaError

from streams.errors import BrokerAwayError

_ERRNOS: Final = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.ESTALE,
    }
)
"""No room, no memory, no file handles, a failing disk, nobody there."""


def is_outside(error: BaseException) -> bool:
    """Whether `error`, or anything that it came from, is of that kind."""
    return any(_is_outside(one) for one in _causes(error))


def _is_outside(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in _ERRNOS
    if isinstance(error, KafkaError):
        return bool(error.retriable)
    return isinstance(error, BrokerAwayError)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was raised from, or while handling."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
