"""History, summary, timeline, hops and picture from a whole run's events."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.audit.ledger import Ledger
from analysis.history import timeline
from analysis.history.history import History
from analysis.history.latency import hops, percentile
from analysis.views.live_figures import as_line, snapshot
from analysis.views.report import write_report
from analysis.views.summary import Summary, summarise
from schemas import decode

Simulate = Callable[..., Any]
STEPS = 8


def read(run: Any) -> tuple[History, Summary]:
    history, ledger = History(), Ledger()
    for ref, value in run.records:
        history.add(decode(value), ref)
        ledger.add(ref, value)
    return history, summarise(history, ledger.close(), run="demo", seed=7, broker="kafka", restarts={})


@pytest.fixture(scope="module")
def run(simulated: Simulate) -> Any:
    return simulated(steps=STEPS)


def test_summary_is_what_the_log_says(run: Any) -> None:
    history, summary = read(run)
    assert summary.steps == STEPS
    rounds: dict[int, list[float]] = {}
    for ref, value in run.records:
        event = decode(value)
        if ref.topic == "groups" and type(event).__name__ == "GroupEvaluated":
            rounds.setdefault(event.evaluation, []).extend(member.passed for member in event.members)  # type: ignore[union-attr, arg-type, misc]
    assert summary.pass_rate_first == pytest.approx(np.mean(rounds[0]))
    assert summary.pass_rate_last == pytest.approx(np.mean(rounds[STEPS]))
    assert summary.evaluated_last == len(rounds[STEPS]) == 12
    assert summary.groups_ready == 4 * STEPS
    assert summary.groups_dropped == sum(summary.groups_dropped_by_reason.values())
    assert summary.rollouts == sum(ref.topic == "rollouts" for ref, _ in run.records)
    assert summary.tokens_generated == sum(rollout.tokens for rollout in history.rollouts.values())
    assert summary.max_staleness == 0
    assert summary.learner_idle_share == pytest.approx(0.2)
    assert summary.replay.k3_on is not None
    assert summary.replay.k3_off is not None
    assert summary.replay.k3_on < summary.replay.k3_off
    assert summary.audit.clean


def test_an_empty_log_invents_nothing() -> None:
    summary = summarise(History(), Ledger().close(), run="demo", seed=0, broker="kafka", restarts={})
    assert summary.steps == 0
    assert summary.pass_rate_first is None
    assert summary.learner_idle_share is None
    assert summary.tokens_per_s is None
    assert summary.replay.k3_on is None


def test_order_and_repetition_of_events_do_not_matter(run: Any) -> None:
    _, summary = read(run)
    backwards = type(run)(records=[*reversed(run.records)])
    history = History()
    for ref, value in [*backwards.records, *backwards.records]:
        history.add(decode(value), ref)
    ledger = Ledger()
    for ref, value in backwards.records:
        ledger.add(ref, value)
    again = summarise(history, ledger.close(), run="demo", seed=7, broker="kafka", restarts={})
    assert again == summary


def test_waiting_counts_follow_the_rollouts(run: Any) -> None:
    history, _ = read(run)
    times, places = timeline.waiting(history)
    total = sum(places.values())
    assert times[0] == 0.0
    assert np.all(np.diff(times) > 0)
    assert total.max() > 0  # type: ignore[union-attr]
    assert {name: counts[-1] for name, counts in places.items()} == dict.fromkeys(places, 0.0)


def test_series_have_a_point_a_step(run: Any) -> None:
    history, _ = read(run)
    assert list(timeline.metric(history, "reward").x) == list(range(1, STEPS + 1))
    assert list(timeline.held_back(history).x) == [0, 2, 4, 6, 8]
    rates = timeline.training_pass_rate(history)
    assert rates.y[-1] > rates.y[0]
    assert len(timeline.metric(history, "no such metric").x) == 0


def test_hops_cover_the_way_from_request_to_weights(run: Any) -> None:
    history, _ = read(run)
    found = {hop.name.strip(): hop for hop in hops(history)}
    trained = sum(rollout.batch is not None for rollout in history.rollouts.values())
    assert found["prompt requested → rollout completed"].count == len(history.rollouts)
    assert found["rollout completed → scored"].p99_s == pytest.approx(0.005, abs=1e-3)
    assert found["batch planned → step completed"].p50_s == pytest.approx(0.5, abs=1e-3)
    assert found["weights published → applied"].count == STEPS
    assert found["end to end: requested → weights applied"].count == trained
    for hop in found.values():
        assert hop.p50_s <= hop.p95_s <= hop.p99_s <= hop.max_s


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (0.01, 1.0)])
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == value


def test_the_picture_is_drawn_whole(run: Any, tmp_path: Path) -> None:
    history, summary = read(run)
    path = tmp_path / "report.png"
    write_report(history, summary, path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert len(data) > 50_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.png"]


def test_a_run_that_did_nothing_has_a_picture_too(tmp_path: Path) -> None:
    history = History()
    summary = summarise(history, Ledger().close(), run="demo", seed=0, broker="kafka", restarts={})
    write_report(history, summary, tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_the_plain_line_says_where_the_run_is(run: Any) -> None:
    history, _ = read(run)
    now = snapshot(history, now_s=run.now_s, steps=STEPS, lag={"rollouts": 3, "scores": 0})
    line = as_line(now)
    assert line.startswith(f"step {STEPS}/{STEPS} | pass rate 0.")
    assert f"(after step {STEPS})" in line
    assert line.endswith("lag rollouts 3")
    assert now.queues == {"generating": 0, "in open groups": 0, "for a batch": 0, "for its step": 0}
