"""A client that repeats itself is heard once; nobody else is thinned out."""

import logging

import pytest

from streams.runtime.client_logs import ThinOut


def record(name: str, message: str, *values: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, message, values, None)


def test_a_client_is_heard_once_in_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1.0
    monkeypatch.setattr("streams.runtime.client_logs.time.monotonic", lambda: now_s)
    thin = ThinOut()
    assert thin.filter(record("aiokafka", "Unable connect to node with id %s: %s", 1, "refused"))
    assert not thin.filter(record("aiokafka", "Unable connect to node with id %s: %s", 2, "refused"))
    assert thin.filter(record("aiokafka", "another message"))
    assert thin.filter(record("aiokafka.consumer.fetcher", "Unable connect to node with id %s: %s", 1, "refused"))
    now_s = 11.5
    assert thin.filter(record("aiokafka", "Unable connect to node with id %s: %s", 1, "refused"))


def test_others_are_always_heard() -> None:
    thin = ThinOut()
    assert all(thin.filter(record("streams.stages.worker", "the same")) for _ in range(3))
    assert all(thin.filter(record("aiokafkaesque", "the same")) for _ in range(3))
