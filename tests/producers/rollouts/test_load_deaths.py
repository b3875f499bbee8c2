"""A real engine that dies of its load, with a prompt that kills it among the others: nothing innocent is lost."""

import json
import urllib.request
from typing import Any

import pytest

from schemas import DeadLetter, RolloutCompleted
from tests.producers.rollouts.engine_run import (
    REPEATED,
    SAMPLES,
    SETTINGS,
    START_S,
    Found,
    ask,
    holds,
    of,
    request,
)

pytestmark = [pytest.mark.engine, pytest.mark.chaos, pytest.mark.timeout(900)]

LOAD_KILLER = {"logits_processors": ["tests.producers.rollouts.prompt_killer:LoadKiller"]}


async def test_a_load_that_kills_is_lowered_and_the_killer_among_it_is_found(run: Any) -> None:
    settings = SETTINGS | {"max_num_seqs": 16, "extra": LOAD_KILLER}
    process = run.launch("producer", settings)
    several = [request(number) for number in range(500, 506)]
    try:
        await ask(run, *several)
        whole = {f"{each.group_id}.{index}" for each in several for index in range(SAMPLES)}

        def has_all(found: Found) -> bool:
            return whole <= {rollout.rollout_id for rollout in of(found, RolloutCompleted)}

        rollouts = of(await run.read("rollouts", until=has_all, within_s=2 * START_S), RolloutCompleted)
        assert {rollout.rollout_id for rollout in rollouts} == whole and len(rollouts) == len(whole)
        deaths = max(rollout.attempt for rollout in rollouts)
        assert 2 <= deaths <= 4
        status = status_of(run)
        assert 1 <= status["gauges"]["rollouts_at_once_limit"] <= 8 and status["gauges"]["prompts_suspected"] == 0
        assert any("the engine died of its load: at most" in line for line in status["waits"])

        killer, after = request(510, prompt="1+2+3" + "+" * REPEATED), [request(number) for number in range(511, 514)]
        await ask(run, killer, *after)
        (dead_letter,) = of(
            await run.read("dead-letters", until=holds(DeadLetter, 1), within_s=2 * START_S), DeadLetter
        )
        assert "while this prompt was in flight, the last time with it alone" in dead_letter.error
        whole |= {f"{each.group_id}.{index}" for each in after for index in range(SAMPLES)}
        assert len(of(await run.read("rollouts", until=has_all, within_s=START_S), RolloutCompleted)) == len(whole)
        assert process.poll() is None
        log = run.log_of("producer").read_text()
        assert "the engine died of its load: each prompt that was in flight was generated apart" in log
    finally:
        process.kill()
        process.wait(timeout=10)
        print("\n".join(run.log_of("producer").read_text().splitlines()[-60:]))


def status_of(run: Any) -> Any:
    port = json.loads((run.context.directory / "health" / "producer.json").read_text())["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=30) as response:
        return json.load(response)
