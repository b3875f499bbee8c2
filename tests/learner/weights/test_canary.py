"""The learner's half of the canary: the same everywhere, and the comparison whichever record comes first."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from learner.model.packed_row import Rollout
from learner.model.policy import Policy, load_model
from learner.settings import LearnerSettings
from learner.weights.canary import (
    CEILING,
    FLOOR,
    RENEWED_EVERY,
    UNKNOWN,
    CanarySet,
    CanaryWatch,
    bound_of,
    choose,
    score,
)
from schemas import Canary, CanaryScored, NDArray, WeightsApplied, WeightsPublished, WeightsRefused
from tests.builders import record_at, weights_published

Report = WeightsPublished | WeightsApplied | CanaryScored | WeightsRefused

RECORD = record_at("applied")
OWN = np.full((2, 3), -2.0, np.float32)


def published(version: int, logprobs: np.ndarray = OWN) -> WeightsPublished:
    ids = NDArray.of(np.zeros((logprobs.shape[0], logprobs.shape[1] + 1), np.uint32))
    return weights_published(version, canary=Canary(token_ids=ids, logprobs=NDArray.of(logprobs)))


def scored(version: int, off: float, producer: str = "p") -> CanaryScored:
    logprobs = NDArray.of(OWN + np.float32(off))
    return CanaryScored(producer_id=producer, version=version, time_s=0.0, logprobs=logprobs)


class Watched:
    def __init__(self) -> None:
        self.gauges: dict[str, float] = {}
        self.refused: list[int] = []
        self.watch = CanaryWatch(0.1, self.gauges.__setitem__, self.refused.append)

    def hear(self, *events: Report) -> "Watched":
        for event in events:
            self.watch.on_event(event, RECORD)
        return self


def rollout(prompt: int, response: int, first: int = 3, **fields: Any) -> Rollout:
    """A prompt of `prompt` tokens that begins with `first`, and a response."""
    tokens = first + torch.arange(prompt + response) % 20
    given: dict[str, Any] = {"logp_rollout": torch.full((response,), -0.5), "routes": None, "advantage": 0.0}
    return Rollout("r", tokens, prompt, **(given | {"reward": 0.0} | fields))


def test_tokens_that_were_sampled_are_compared_in_their_context_and_of_different_prompts() -> None:
    chosen = choose([[rollout(5, 4), rollout(5, 9), rollout(5, 8, 7)], [], [rollout(90, 3, 9), rollout(1, 1, 8)]])
    assert [sum(each.judged) for each in chosen] == [8, 7, 2], "the last token is left for the engine to sample"
    longest = chosen[0]
    assert longest.tokens == rollout(5, 9).tokens[:-1].tolist()
    assert longest.judged == [False] * 4 + [True] * 8
    assert longest.engine == [0.0] * 4 + [-0.5] * 8
    assert choose([]) == choose([[rollout(1, 1)]]) == []


def test_a_chat_templates_system_prompt_is_never_the_set() -> None:
    """Four copies of it were: the first tokens of the longest sequences, which no policy ever says."""
    system = [rollout(300, 40 + n, 3) for n in range(4)]
    for n, each in enumerate(system):
        each.tokens[299] = n  # the same system prompt, another question at its end
    chosen = choose([system])
    assert len(chosen) == 4
    assert all(not any(each.judged[:299]) and all(each.judged[299:]) for each in chosen)


def test_sequences_are_whole_and_together_no_longer_than_the_set_may_be() -> None:
    long, short, other = rollout(100, 1_900, 5), rollout(4, 30, 7), rollout(50, 900, 9)
    assert [len(each.tokens) for each in choose([[long, short, other]])] == [33, 949]
    assert [len(each.tokens) for each in choose([[rollout(400, 500, first) for first in range(3, 9)]])] == [899, 899]
    (alone,) = choose([[rollout(100, 9_000), rollout(100, 6_000, 4)]])
    assert len(alone.tokens) == 6_099 and sum(alone.judged) == 5_999, "one that is too long is better than none"


def test_given_tokens_and_older_weights_are_not_compared_with_the_engine() -> None:
    mask = torch.tensor([True, False, True, True])
    (masked,) = choose([[rollout(2, 4, sampled=mask)]])
    assert masked.judged == [False, True, False, True]
    for fields in ({"staleness": 1}, {"temperature": 0.5}):
        (found,) = choose([[rollout(2, 4, **fields)]])
        assert found.engine is None


class OneRank:
    device = torch.device("cpu")

    def exchange(self, data: bytes) -> list[bytes]:
        return [data]


def policy_of(directory: Path) -> Policy:
    settings = LearnerSettings(model="m")
    return Policy(load_model(directory / "model", settings), settings.chunk_tokens)


def test_scores_are_those_of_the_plain_model(learner_directory: Path) -> None:
    chosen = choose([[rollout(3, 12), rollout(4, 8, 7), rollout(2, 5, 9)]])
    said = score(policy_of(learner_directory), chosen, torch.device("cpu"))
    plain = load_model(learner_directory / "model", LearnerSettings(model="m", attention="eager"))
    for row, each in enumerate(chosen):
        tokens = torch.tensor([each.tokens])
        with torch.no_grad():
            logp = torch.log_softmax(plain(input_ids=tokens).logits[0, :-1], -1).gather(-1, tokens[0, 1:, None])[:, 0]
        judged = np.array(each.judged)
        found = said.logprobs.numpy()[row, : len(judged)]
        assert np.allclose(found[judged], logp.numpy()[judged], atol=1e-5)
        assert said.rows()[row] == each.tokens


def test_the_bound_is_what_the_engine_showed_before_the_first_update(learner_directory: Path) -> None:
    policy = policy_of(learner_directory)
    ranks: Any = OneRank()
    held = CanarySet(policy, ranks, None)
    assert held.score() is None
    exact = score(policy, choose([[rollout(3, 12)]]), torch.device("cpu")).logprobs.numpy()[0, 2:]
    off = torch.tensor(np.append(exact + 0.03, 0.0))
    held.prepare([[rollout(3, 12, logp_rollout=off)]])
    canary = held.score()
    assert canary is not None and canary.rounding == pytest.approx(0.03, abs=1e-4)
    assert bound_of(canary, None) == pytest.approx(0.18, abs=1e-3) and bound_of(canary, 0.5) == 0.5
    resumed = CanarySet(policy, ranks, canary)
    resumed.prepare([[rollout(3, 9, 8)]])
    again = resumed.score()
    assert again is not None and again.rows() == canary.rows(), "a process that resumes scores the same set"
    for _ in range(RENEWED_EVERY):
        resumed.score()
    resumed.prepare([[rollout(3, 9, 8)]])
    renewed = resumed.score()
    assert renewed is not None and renewed.rows() != canary.rows() and renewed.rounding == canary.rounding


def test_without_a_known_rounding_the_bound_is_a_fixed_one() -> None:
    old = Canary(token_ids=NDArray.of(np.zeros((2, 4), "u4")), logprobs=NDArray.of(OWN))
    assert bound_of(old, None) == UNKNOWN and old.compared().all()
    assert bound_of(msgspec.structs.replace(old, rounding=1e-6), None) == FLOOR


@pytest.mark.parametrize("rounding", [5.5, float("inf"), float("nan")])
def test_an_engine_that_is_wrong_from_the_start_does_not_set_its_own_bound(rounding: float) -> None:
    old = Canary(token_ids=NDArray.of(np.zeros((2, 4), "u4")), logprobs=NDArray.of(OWN), rounding=rounding)
    assert bound_of(old, None) == CEILING


@pytest.mark.parametrize("producer_first", [False, True])
def test_drift_within_the_bound_is_a_figure_and_beyond_it_an_alarm(
    caplog: pytest.LogCaptureFixture, producer_first: bool
) -> None:
    watched = Watched()
    with caplog.at_level(logging.ERROR):
        for version, off in ((1, 0.05), (2, 0.3)):
            pair: list[Report] = [published(version), scored(version, off)]
            watched.hear(*(pair[::-1] if producer_first else pair))
            assert watched.gauges["canary_drift_p"] == pytest.approx(off, abs=1e-5)
            assert watched.watch.alarms == version - 1
    (line,) = [record.getMessage() for record in caplog.records]
    assert "CANARY: p computes other log-probs with weights 2" in line and "0.3000" in line and "bound 0.1" in line
    assert watched.gauges["canary_alarms"] == 1


def test_each_producer_is_compared_with_the_version_that_it_names() -> None:
    watched = Watched().hear(published(1), published(2, OWN + 1), scored(1, 0.0, "a"), scored(2, 1.0, "b"))
    assert watched.watch.alarms == 0 and watched.gauges["canary_drift_a"] == watched.gauges["canary_drift_b"] == 0
    watched.hear(scored(2, 0.0, "a"))
    assert watched.watch.alarms == 1


def test_an_application_is_no_figure_and_a_refusal_is_passed_on() -> None:
    watched = Watched().hear(
        WeightsApplied(producer_id="p", version=1, time_s=0.0),
        WeightsRefused(producer_id="p", version=2, time_s=0.0),
        scored(7, 5.0),
    )
    assert watched.refused == [2] and watched.watch.alarms == 0 and not watched.gauges


def test_memory_is_bounded_where_the_other_record_never_comes() -> None:
    watched = Watched()
    for version in range(500):
        watched.hear(published(2 * version), scored(2 * version + 1, 0.0))
    assert len(watched.watch._published) <= 65 and len(watched.watch._scored) <= 65


def test_scores_of_the_set_that_a_version_was_first_published_with_say_nothing_of_another() -> None:
    """A learner that ends behind a publication chooses anew and publishes that version again."""
    first, again = published(3), published(3)
    assert first.canary is not None and again.canary is not None
    other = NDArray.of(np.ones(again.canary.token_ids.shape, np.uint32))
    again = msgspec.structs.replace(again, canary=msgspec.structs.replace(again.canary, token_ids=other))
    assert again.canary is not None
    early = msgspec.structs.replace(scored(3, 5.0), set_digest=first.canary.set_digest())
    heard = Watched().hear(first, again, early)
    assert heard.watch.alarms == 0 and "canary_drift_p" not in heard.gauges
    late = msgspec.structs.replace(scored(3, 5.0), set_digest=again.canary.set_digest())
    assert heard.hear(late).watch.alarms == 1
    assert Watched().hear(first, early).watch.alarms == 1, "of the same set it is one"
    under_others = msgspec.structs.replace(first.canary, logprobs=NDArray.of(OWN * 2), rounding=1.0)
    assert under_others.set_digest() == first.canary.set_digest()
