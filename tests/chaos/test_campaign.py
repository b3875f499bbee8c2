"""A short campaign: everything is killed some times, and afterwards the log shows that nothing was lost or doubled."""

from pathlib import Path

import pytest

from streams.broker import BrokerSettings
from streams.broker.jars import kafka_obstacle
from tests.chaos.campaign import Campaign
from tests.chaos.schedule import schedule, sweep
from tests.chaos.shape import LIGHT
from tests.chaos.verdict import Verdict


def verify(verdict: Verdict) -> None:
    print(verdict.table())
    print(verdict.summary())
    assert verdict.findings == []
    assert verdict.audit.unaccounted == verdict.audit.trained_twice == 0
    assert verdict.audit.dispositions["trained"] > 0


@pytest.fixture(autouse=True)
def _kafka() -> None:
    if (obstacle := kafka_obstacle(BrokerSettings(kind="kafka"))) is not None:
        pytest.skip(f"Apache Kafka cannot run: {obstacle}")


@pytest.mark.kafka
async def test_nothing_is_lost_or_trained_twice_whatever_is_killed(tmp_path: Path) -> None:
    blows = [*sweep(gap_s=0.5), *schedule(seed=4, count=8, gap_s=0.5, broker_every=8)]
    verdict = await Campaign(tmp_path, LIGHT).run(blows)
    verify(verdict)
    assert verdict.kills >= 5
