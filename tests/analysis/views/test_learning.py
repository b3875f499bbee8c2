"""Whether a run learns, judged by a few of its records on a real broker."""

import asyncio
import time
from typing import Any

import pytest

from analysis.history.run_log import RunLog
from analysis.views.learning import Learning, as_line, learning
from deploy.cli.commands.status import _waits
from schemas import GroupEvaluated
from streams.broker import Broker
from streams.record import Output
from tests.builders import group_requested, member, step_completed
from tests.run_logs import new_run, write


def asked(evaluation: int, *groups: str) -> list[Output]:
    events = [group_requested(f"{g}.{evaluation}", purpose="evaluate", evaluation=evaluation) for g in groups]
    return [Output("prompts", event, key=event.group_id) for event in events]


def evaluated(evaluation: int, passed: float, name: str = "h") -> Output:
    group = f"{name}.{evaluation}"
    event = GroupEvaluated(
        group_id=group, prompt_id=name, task="t", evaluation=evaluation, reward_mean=passed, time_s=time.time(),
        members=(member(f"{group}.0", passed=passed),),
    )  # fmt: skip
    return Output("groups", event, key=group)


def steps(first: int, last: int) -> list[Output]:
    return [
        Output("steps", step_completed(step, metrics={"reward": step / 30}, time_s=time.time()))
        for step in range(first, last + 1)
    ]


async def test_the_first_and_the_newest_round_and_the_reward_at_both_ends(broker: Broker) -> None:
    log = new_run(broker)
    run = RunLog(broker.bootstrap, log.settings.run)
    nothing = await asyncio.to_thread(learning, run, steps=0, now_s=time.time())
    assert (nothing.step, nothing.held_back_first, nothing.reward_last, nothing.steps_per_h) == (0, None, None, None)
    await write(log, *asked(0, "h"), evaluated(0, 0.25), *steps(1, 20))
    await write(log, *asked(20, "h"), evaluated(20, 0.5), *steps(21, 30), *asked(30, "h"), evaluated(30, 0.75))
    found = await asyncio.to_thread(learning, run, steps=60, now_s=time.time())
    assert (found.held_back_first, found.held_back_last) == ((0, 0.25), (30, 0.75))
    assert found.reward_first == pytest.approx(0.1)
    assert found.reward_last == pytest.approx(28 / 30)
    assert found.step == 30 and found.steps_per_h is not None and found.left_s is not None


async def test_only_rounds_of_which_every_group_is_closed_are_shown(broker: Broker) -> None:
    """Half a round is another set of prompts: it would look as if the run had learned, or forgotten."""
    log = new_run(broker)
    run = RunLog(broker.bootstrap, log.settings.run)
    await write(log, *asked(0, "h", "k"), evaluated(0, 0.5, "h"))
    await write(log, *steps(1, 2), evaluated(0, 0.1, "k"), *steps(3, 40))
    found = await asyncio.to_thread(learning, run, steps=60, now_s=time.time())
    assert found.held_back_first == found.held_back_last == (0, 0.3), "found though it is far back"
    await write(log, *asked(40, "h", "k"), evaluated(40, 1.0, "h"))
    found = await asyncio.to_thread(learning, run, steps=60, now_s=time.time())
    assert found.held_back_last == (0, 0.3)
    await write(log, evaluated(40, 0.5, "k"))
    found = await asyncio.to_thread(learning, run, steps=60, now_s=time.time())
    assert found.held_back_last == (40, 0.75)
    await write(log, *steps(41, 50), *asked(50, "h"), *steps(51, 140))
    found = await asyncio.to_thread(learning, run, steps=0, now_s=time.time())
    assert found.held_back_last == (40, 0.75)


def test_waits_are_one_line_a_process_with_times_as_a_person_says_them() -> None:
    waits = ["waits for the first rollout of group g since 54 s and for 86346 s more", "another", "a third"]
    assert _waits({"groups": {"waits": waits}, "batches": None, "learner-0": {"waits": []}}) == [
        "groups: waits for the first rollout of group g since 54 s and for 24 h more (and 2 more: --json)"
    ]


def test_a_line_says_where_it_is_and_whether_it_learns() -> None:
    known: dict[str, Any] = {
        "step": 21, "steps": 50, "steps_per_h": 1143.2, "left_s": 91.0, "reward_first": 0.471, "reward_last": 0.612,
        "held_back_first": (0, 0.457), "held_back_last": (20, 0.785),
    }  # fmt: skip
    said = "step 21 of 50, 1,143 an hour, 91 s left; held back 0.457 → 0.785 (after step 20); reward 0.471 → 0.612"
    assert as_line(Learning(**known)) == said
    assert as_line(Learning(**known | {"step": 50})).startswith("step 50 of 50; held back"), "nothing is left to go"
    unknown: dict[str, Any] = {**dict.fromkeys(known), "step": 0, "steps": 0}
    assert as_line(Learning(**unknown)) == "step 0"
