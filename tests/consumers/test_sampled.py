"""Rollouts with a tool's answers in them, through the three services on real brokers: rewarded, grouped, packed."""

from pathlib import Path

import numpy as np

from schemas import BatchPlanned, DeadLetter, NDArray, RolloutCompleted, RolloutScored, Turn, WeightSpan
from streams.log.clients import Log, Writer
from streams.record import Output
from streams.telemetry import names
from tests.consumers.test_services import BATCHES, Everything, MakeRollout, log, serving

__all__ = ["log"]

ASKS, TOOL = "look up", " =4 "
SPANS = (WeightSpan(0, 3), WeightSpan(len(ASKS), 1), WeightSpan(len(ASKS + TOOL), 4))
"""Weights 1 read what the tool said, and sampled nothing."""


def with_tool(make_rollout: MakeRollout, answer: str, group_id: str, index: int) -> RolloutCompleted:
    """It asks a tool, which states the reference, and then answers itself."""
    text = f"{ASKS}{TOOL}so {answer}"
    mask = np.ones(len(text) + 1, np.uint8)
    mask[len(ASKS) : len(ASKS + TOOL)] = 0
    return make_rollout(
        text,
        group_id=group_id,
        index=index,
        spans=SPANS,
        loss_mask=NDArray.of(mask),
        logprobs=NDArray.of(np.where(mask, -0.5, 0.0).astype(np.float32)),
        turns=(Turn(0, "assistant"), Turn(len(ASKS), "tool"), Turn(len(ASKS + TOOL), "assistant")),
    )


async def test_what_a_tool_said_is_packed_and_not_rewarded(
    log: Log, model: Path, tmp_path: Path, make_rollout: MakeRollout
) -> None:
    seen, answers = Everything(log), ("=4", "=5", "=4", "none")
    async with serving(log, model, tmp_path), Writer(log) as writer:
        for group in ("p.0", "p.1"):
            for index, answer in enumerate(answers):
                rollout = with_tool(make_rollout, answer, group, index)
                await writer.write(Output("rollouts", rollout, key=group))
        await seen.read_until("a batch", lambda: len(seen.of(BatchPlanned)) == 1)
    headers = [record.headers[names.SCHEMA] for _, record in seen.records["rollouts"]]
    assert headers == [b"RolloutCompleted/2"] * 8 and not seen.of(DeadLetter)
    scores = {score.rollout_id: score for score in seen.of(RolloutScored)}
    for group in ("p.0", "p.1"):
        assert [scores[f"{group}.{index}"].reward for index in range(4)] == [1.0, 0.0, 1.0, 0.0]
    for score in scores.values():
        assert score.sampled_tokens == score.response_tokens - len(TOOL)
        assert (score.oldest_version, score.newest_version) == (3, 4)
    (plan,) = seen.of(BatchPlanned)
    lengths = [each.prompt_tokens + each.response_tokens for each in plan.sequences]
    assert min(lengths) > 4 + len(ASKS) + len(TOOL), "given tokens take room in a micro-batch"
    assert all(sum(lengths[index] for index in micro) <= BATCHES.token_budget for rank in plan.ranks for micro in rank)
