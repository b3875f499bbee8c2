"""The reward worker: text, verdict, penalties, and what it says of a rollout that it cannot judge."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.pool import VerifierPool
from consumers.rewards.score import RewardWorker
from consumers.rewards.settings import LengthPenalty, RepetitionPenalty, RewardSettings
from schemas import NDArray, Ref, RolloutCompleted, RolloutScored, WeightSpan
from streams.errors import ConfigurationError, Poison
from streams.record import Output, Record
from tests.builders import step_completed
from tests.consumers.conftest import ALPHABET, EOS

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


def sampled(text: str, given: str) -> dict[str, Any]:
    """Mask and log-probs of `text` and the end of sequence, of which the letters over `given`'s spaces were sampled."""
    mask = np.array([letter == " " for letter in given.ljust(len(text) + 1)], np.uint8)
    logprobs = np.where(mask, -0.5, 0.0).astype(np.float32)
    return {"loss_mask": NDArray.of(mask), "logprobs": NDArray.of(logprobs)}


@pytest.mark.parametrize(
    ("answer", "text", "given", "reward"),
    [
        ("4", "look up =4 so it is =4", "       ggg            ", 1.0),
        ("4", "look up =4 so it is =5", "       ggg            ", 0.0),
        ("4", "look up =4", "       ggg", 0.0),
        ("4", "=4 thanks", "   gggggg", 1.0),
        ("4", "=, 4", " gg ", 1.0),
        ("14", "=1 of 4", "  gggg ", 0.0),
    ],
)
async def test_only_what_the_policy_said_is_rewarded(
    score: Score, make_rollout: MakeRollout, answer: str, text: str, given: str, reward: float
) -> None:
    """A tool that states the answer earns nothing, and two of the policy's turns are not one number."""
    scored = await score(make_rollout(text, **sampled(text, given), reference={"answer": answer, "after": "="}))
    assert (scored.valid, scored.reward) == (True, reward)
    assert (scored.response_tokens, scored.sampled_tokens) == (len(text) + 1, len(text) + 1 - given.count("g"))


async def test_penalties_and_staleness_are_of_the_sampled_tokens(score: Score, make_rollout: MakeRollout) -> None:
    text, given = "abcdefghijklm=4", "  gggggggggg   "
    spans = (WeightSpan(0, 9), WeightSpan(2, 3), WeightSpan(12, 11), WeightSpan(16, 12))
    penalties = {
        "length": LengthPenalty(weight=0.5, share=0.5), "repetition": RepetitionPenalty(weight=0.1, ngram_tokens=2)
    }  # fmt: skip
    scored = await score(make_rollout(text, **sampled(text, given), spans=spans), **penalties)
    assert [c.value for c in scored.components] == [1.0, 0.0, 0.0], "6 of 16 tokens, at most 20"
    # Version 3 only read what a tool said, and no token was sampled with version 12.
    assert (scored.oldest_version, scored.newest_version) == (9, 11)
    plain = await score(make_rollout(text, spans=spans), **penalties)
    assert plain.components[1].value < 0 and (plain.oldest_version, plain.sampled_tokens) == (3, None)


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


def test_special_tokens_are_kept_where_asked_for_and_what_ends_a_response_never_is(model: Path) -> None:
    ids = NDArray.of(np.array([1, EOS, 2, EOS, EOS], np.uint32))
    assert Detokeniser(model).text(ids) == ALPHABET[1] + ALPHABET[2]
    assert Detokeniser(model, keep_special=True).text(ids) == f"{ALPHABET[1]}<eos>{ALPHABET[2]}"


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no {tmp_path}/tokenizer.json"):
        Detokeniser(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="is no tokenizer"):
        Detokeniser(tmp_path)


def test_settings_refuse_an_unknown_verifier() -> None:
    with pytest.raises(ValueError, match="prewarm 'oracle' is not one of"):
        RewardSettings(model="m", prewarm=("oracle",))
