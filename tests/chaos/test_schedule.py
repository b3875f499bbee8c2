"""The schedule: the same for the same seed, complete, and it spares nobody."""

import re
from itertools import islice
from pathlib import Path

import pytest

from streams.faults import POINTS as EVERY_POINT
from tests.chaos.schedule import (
    BROKER,
    ENGINE,
    FULL_POINTS,
    HEAVY,
    LIGHT_SERVICES,
    POINTS,
    SERVICES,
    full_schedule,
    schedule,
    sweep,
)

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "streams", "producers", "consumers", "learner", "deploy")


def test_a_seed_decides_everything() -> None:
    assert list(schedule(7, 200, 0.5)) == list(schedule(7, 200, 0.5))
    assert list(schedule(7, 200, 0.5)) != list(schedule(8, 200, 0.5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_service_and_kind_and_the_broker_are_hit(seed: int) -> None:
    blows = list(schedule(seed, 4000, 0.5))
    assert len(blows) == 4000
    assert {blow.target for blow in blows} == {*SERVICES, BROKER}
    assert {blow.kind for blow in blows} == {"kill", "point", "pause", "term", "zombie", "network", "disk", "clock"}
    assert {blow.detail for blow in blows if blow.kind == "point"} == {p for points in POINTS.values() for p in points}
    assert sum(blow.target == BROKER for blow in blows) == 100
    assert all(0 < blow.after_s < 1 for blow in blows)


def test_every_point_of_the_code_is_struck_by_a_campaign() -> None:
    texts = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    placed = {point for text in texts for point in re.findall(r"""\breach\(\s*["']([^"']*)""", text)}
    struck = {blow.detail for blow in HEAVY if blow.kind == "point"} | {p for points in POINTS.values() for p in points}
    assert placed == struck == set(EVERY_POINT)


def test_every_service_of_the_full_campaign_is_hit_at_all_its_points_and_the_broker_in_every_way() -> None:
    blows = list(islice(full_schedule(1), 5 * 5 * len(HEAVY)))
    points = {(blow.target.partition("-")[0], blow.detail) for blow in blows if blow.kind == "point"}
    assert points == {(service, point) for service, points in FULL_POINTS.items() for point in points}
    assert {blow.kind for blow in blows if blow.target == BROKER} == {"kill", "pause", "term"}
    assert {blow.detail for blow in blows if blow.kind == "network" and blow.settled} == {
        "stall", "reset", "throttle", "refuse"
    }  # fmt: skip
    assert {"disk", "clock"} <= {blow.kind for blow in blows}
    assert {blow.target for blow in blows if blow.kind == "kill"} == {
        *LIGHT_SERVICES, "learner-0", "learner-1", "producer", ENGINE, BROKER
    }  # fmt: skip


def test_a_sweep_has_every_point_of_every_service_once() -> None:
    swept = [(blow.target.partition("-")[0], blow.detail) for blow in sweep(0.1)]
    assert sorted(swept) == sorted((service, point) for service, points in POINTS.items() for point in points)
