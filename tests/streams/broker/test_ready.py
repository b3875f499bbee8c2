"""A broker that is not there is said to be within five seconds, and again every ten."""

import pytest

from streams.broker.base import BrokerError
from streams.broker.ready import wait_ready


def test_it_is_said_while_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("streams.broker.ready.time.monotonic", lambda: now_s[0])

    def pause(_: float) -> None:
        now_s[0] += 0.5

    said: list[str] = []
    with pytest.raises(BrokerError, match="is not ready after 30 s"):
        wait_ready("127.0.0.1:1", 30.0, pause, said.append)
    assert [line.partition(":1 ")[2].partition(":")[0] for line in said] == [
        "is not reachable since 4 s", "is not reachable since 14 s", "is not reachable since 24 s",
    ]  # fmt: skip
    assert "waiting for a connection of 127.0.0.1:1" in said[0]
