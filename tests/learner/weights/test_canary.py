"""The learner's half of the canary: the same everywhere, and the comparison whichever record comes first."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.model.packed_row import Rollout
from learner.model.policy import Policy, load_model
from learner.settings import LearnerSettings
from learner.weights.canary import CanaryWatch, choose, score
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


def rollout(length: int, first: int = 3) -> Rollout:
    tokens = first + torch.arange(length) % 20
    return Rollout(f"r{first}", tokens, 1, torch.zeros(length - 1), None, 0.0, 0.0)


def test_the_longest_sequences_are_chosen_and_cut_to_one_length() -> None:
    micro_batches = [[rollout(4), rollout(9, 5)], [], [rollout(7, 4), rollout(6, 6), rollout(8, 7), rollout(1)]]
    chosen = choose(micro_batches)
    assert [row[0] for row in chosen] == [5, 7, 4, 6] and {len(row) for row in chosen} == {6}
    assert [len(row) for row in choose([[rollout(90), rollout(70)]])] == [32, 32]
    assert choose([]) == choose([[rollout(1)]]) == []


def test_scores_are_those_of_the_plain_model(learner_directory: Path) -> None:
    settings = LearnerSettings(model="m")
    ids = np.array(choose([[rollout(12), rollout(12, 7), rollout(12, 9)]]), np.uint32)
    policy = Policy(load_model(learner_directory / "model", settings), settings.chunk_tokens)
    said = score(policy, ids, torch.device("cpu"))
    assert np.array_equal(said.token_ids.numpy(), ids)
    with torch.no_grad():
        plain = load_model(learner_directory / "model", LearnerSettings(model="m", attention="eager"))
        tokens = torch.from_numpy(ids.astype(np.int64))
        logp = torch.log_softmax(plain(input_ids=tokens).logits[:, :-1], -1).gather(-1, tokens[:, 1:, None])[..., 0]
    assert np.allclose(said.logprobs.numpy(), logp.numpy(), atol=1e-5)


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
