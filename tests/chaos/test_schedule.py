"""The schedule: the same for the same seed, complete, and it spares nobody."""

import pytest

from streams.faults import POINTS as EVERY_POINT
from tests.chaos.schedule import BROKER, POINTS, SERVICES, schedule, sweep


def test_a_seed_decides_everything() -> None:
    assert list(schedule(7, 200, 0.5)) == list(schedule(7, 200, 0.5))
    assert list(schedule(7, 200, 0.5)) != list(schedule(8, 200, 0.5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_service_and_kind_and_the_broker_are_hit(seed: int) -> None:
    blows = list(schedule(seed, 4000, 0.5))
    assert len(blows) == 4000
    assert {blow.target for blow in blows} == {*SERVICES, BROKER}
    assert {blow.kind for blow in blows} == {"kill", "point", "pause", "term", "zombie", "network", "disk"}
    assert {blow.detail for blow in blows if blow.kind == "point"} == {p for points in POINTS.values() for p in points}
    assert sum(blow.target == BROKER for blow in blows) == 100
    assert all(0 < blow.after_s < 1 for blow in blows)


def test_its_points_exist() -> None:
    assert {point for points in POINTS.values() for point in points} <= set(EVERY_POINT)


def test_a_sweep_has_every_point_of_every_service_once() -> None:
    swept = [(blow.target.partition("-")[0], blow.detail) for blow in sweep(0.1)]
    assert sorted(swept) == sorted((service, point) for service, points in POINTS.items() for point in points)
