"""Under load: reward consumers come and go, and every service is restarted in turn; nothing is lost or done twice."""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from tests.chaos import campaign, shape
from tests.chaos.rolling import ONE_BY_ONE, SHAPE, Rolling, roll

RECOVERY_S = 3.0
STARTS = 4
"""Of a bare service, in which a machine that is slow or busy must have recovered."""


@pytest.mark.kafka
async def test_consumers_come_and_go_and_services_are_restarted_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (obstacle := kafka_obstacle(BrokerSettings(kind="kafka"))) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")
    for module in (campaign, shape):
        monkeypatch.setattr(module, "REPLICAS", {"groups": 2})
    rolling = Rolling(tmp_path, SHAPE)
    before_s = await asyncio.to_thread(start_s)
    try:
        verdict = await rolling.run(roll())
    finally:
        rolling.end()
    bound_s = max(RECOVERY_S, STARTS * max(before_s, await asyncio.to_thread(start_s)))
    print(verdict.table())
    print(verdict.summary())
    assert verdict.findings == []
    assert verdict.audit.unaccounted == verdict.audit.trained_twice == verdict.audit.duplicated == 0
    assert rolling.shares == [[2, 1, 1], [2, 2], [4]]
    assert rolling.left == {"1": 0, "5": 0}
    assert sum(verdict.blows[f"term {name.partition('-')[0]}"] for name in ONE_BY_ONE if "-1" not in name) == 7
    assert all("exit code 0" in end for end in verdict.ends), verdict.ends
    recoveries = [recovery.took_s for recovery in verdict.recoveries if recovery.blow == "kill rewards"]
    assert len(recoveries) == 3 and statistics.median(recoveries) <= bound_s, (recoveries, bound_s)


def start_s() -> float:
    """How long a reward consumer takes here to be loaded, which is the most of a recovery."""
    began = time.monotonic()
    modules = "import deploy.cli.commands.run, consumers.rewards.service"
    subprocess.run([sys.executable, "-c", modules], check=True, cwd=Path(__file__).parents[2])
    return time.monotonic() - began
