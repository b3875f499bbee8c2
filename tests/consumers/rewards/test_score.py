"""The reward worker: text, verdict, penalties, and what it says of a rollout that it cannot judge."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.pool import VerifierPool
from consumers.rewards.score import RewardWorker
from consumers.rewards.settings import LengthPenalty, RepetitionPenalty, RewardSettings
from schemas import Ref, RolloutCompleted, RolloutScored, WeightSpan
from streams.errors import ConfigurationError, Poison
from streams.record import Output, Record
from tests.builders import step_completed

MakeRollout = Callable[..., RolloutCompleted]
Score = Callable[..., Awaitable[RolloutScored]]

RECORD = Record("rollouts", 1, 7, b"p.0", b"", {}, 0.0)


@pytest.fixture
async def pool() -> AsyncIterator[VerifierPool]:
    async with VerifierPool(size=1, timeout_s=2.0) as pool:
        yield pool


@pytest.fixture
def score(model: Path, pool: VerifierPool) -> Score:
    async def run(rollout: RolloutCompleted, **settings: Any) -> RolloutScored:
        worker = RewardWorker(RewardSettings(model=str(model), **settings), Detokeniser(model), pool)
        return await worker.score(rollout, RECORD)

    return run


async def test_a_rollout_is_judged_by_its_text(score: Score, make_rollout: MakeRollout) -> None:
    scored = await score(make_rollout("3+1=4", index=2, spans=(WeightSpan(0, 9), WeightSpan(2, 11))))
    assert (scored.valid, scored.reward, scored.passed, scored.error) == (True, 1.0, 1.0, None)
    assert [(c.name, c.version, c.value, c.weight) for c in scored.components] == [("exact_match", "1", 1.0, 1.0)]
    assert (scored.rollout_id, scored.rollout, scored.index) == ("p.0.2", Ref("rollouts", 1, 7), 2)
    assert (scored.prompt_tokens, scored.response_tokens) == (4, 6)
    assert (scored.oldest_version, scored.newest_version) == (9, 11)
    wrong = await score(make_rollout("3+1=5"))
    assert (wrong.valid, wrong.reward, wrong.passed) == (True, 0.0, 0.0)
    unfinished = await score(make_rollout("3+1=4", finish_reason="length"))
    assert (unfinished.valid, unfinished.reward, unfinished.finish_reason) == (True, 0.0, "length")
    judged = await score(make_rollout("3+1=4", finish_reason="length"), truncated="verify")
    assert judged.reward == 1.0


async def test_penalties_are_components_of_their_own(score: Score, make_rollout: MakeRollout) -> None:
    scored = await score(
        make_rollout("aaaaaaaaaaaa=4"),
        length=LengthPenalty(weight=0.5, share=0.5),
        repetition=RepetitionPenalty(weight=0.1, ngram_tokens=2),
    )
    assert [(c.name, c.weight) for c in scored.components] == [
        ("exact_match", 1.0),
        ("length", 0.5),
        ("repetition", 0.1),
    ]
    assert [c.value for c in scored.components] == pytest.approx([1.0, -0.5, -10 / 14])
    assert scored.reward == pytest.approx(1.0 - 0.25 - 1 / 14)
    assert scored.passed == 1.0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"verifier": "oracle"}, "verifier 'oracle' is not one of exact_match, math_verify, reasoning_gym"),
        ({"reference": {"result": "4"}}, "reference has answer None and not a text"),
        (
            {"verifier": "math_verify", "reference": "$9^{9^9}$"},
            "verifier math_verify passed its deadline of 2 s",
        ),
    ],
)
async def test_no_verdict_is_an_invalid_score(
    score: Score, make_rollout: MakeRollout, fields: dict[str, Any], error: str
) -> None:
    scored = await score(make_rollout("3+1=4", **fields))
    assert (scored.valid, scored.reward, scored.passed, scored.components) == (False, 0.0, None, ())
    assert scored.error == error
    assert scored.response_tokens == 6


async def test_a_long_response_is_scored_too(score: Score, make_rollout: MakeRollout) -> None:
    scored = await score(make_rollout("a" * 30_000 + "=4"), repetition=RepetitionPenalty(weight=1.0))
    assert scored.passed == 1.0
    assert scored.reward < 0.01


async def test_the_score_goes_to_the_groups_partition(
    model: Path, pool: VerifierPool, make_rollout: MakeRollout
) -> None:
    written: list[Output] = []

    async def emit(output: Output) -> Ref:
        written.append(output)
        return Ref(output.topic, 0, 0)

    gauges: dict[str, float] = {}
    worker = RewardWorker(RewardSettings(model=str(model)), Detokeniser(model), pool, gauges.__setitem__)
    await worker.handle(make_rollout("3+1=4", group_id="q.5"), RECORD, emit)
    assert [(output.topic, output.key, output.cause) for output in written] == [("scores", "q.5", RECORD)]
    await worker.handle(make_rollout("3+1=4", verifier="oracle"), RECORD, emit)
    assert gauges == {"scored": 2, "without_verdict": 1}
    step = step_completed(0)
    with pytest.raises(Poison, match="StepCompleted is not RolloutCompleted"):
        await worker.handle(step, RECORD, emit)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no {tmp_path}/tokenizer.json"):
        Detokeniser(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is no tokenizer"):
        Detokeniser(tmp_path)


def test_settings_refuse_an_unknown_verifier() -> None:
    with pytest.raises(ValueError, match="prewarm 'oracle' is not one of"):
        RewardSettings(model="m", prewarm=("oracle",))
