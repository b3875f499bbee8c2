"""Steps on real process groups: exact means, any number of ranks, the same bits twice, every way of routing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from learner.model.policy import load_model
from learner.settings import LearnerSettings
from learner.training.schedule import learning_rate
from tests.learner import rank_trainer
from tests.learner.settings import learner_settings


def test_two_runs_have_the_same_bits(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["train"]["digest"] == two_ranks[0]["repeat"]


def test_all_ranks_report_the_same(two_ranks: list[dict[str, Any]]) -> None:
    for first, second in zip(two_ranks[0]["train"]["metrics"], two_ranks[1]["train"]["metrics"], strict=True):
        assert {n: v for n, v in first.items() if not n.startswith("time/")} == {
            n: v for n, v in second.items() if not n.startswith("time/")
        }


def test_one_rank_learns_what_two_do(
    learner_directory: Path, two_ranks: list[dict[str, Any]], one_rank: dict[str, Any]
) -> None:
    one = load_file(learner_directory / "weights-1.safetensors")
    two = load_file(learner_directory / "weights-2.safetensors")
    start = load_file(learner_directory / "start-2.safetensors")
    assert one.keys() == two.keys() == start.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], atol=1e-5, rtol=1e-5)
        assert not torch.equal(tensor, start[name]), f"{name} was not trained"
    for mine, theirs in zip(one_rank["train"]["metrics"], two_ranks[0]["train"]["metrics"], strict=True):
        for name in ("loss", "grad_norm", "entropy/high", "replay/k3_on", "replay/flip_share", "response_tokens"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_the_gradient_is_that_of_one_sequence_at_a_time_without_sharding(
    learner_directory: Path, two_ranks: list[dict[str, Any]]
) -> None:
    model: Any = load_model(learner_directory / "model", LearnerSettings(model="m", attention="sdpa"))
    drawn = rank_trainer.sequences(0)
    for rollout in drawn:
        logits = model(rollout.tokens.unsqueeze(0), use_cache=False).logits[0].log_softmax(-1)
        positions = torch.arange(rollout.prompt_tokens - 1, len(rollout.tokens) - 1)
        logp = logits[positions, rollout.tokens[rollout.prompt_tokens :]][rank_trainer.sampled_of(rollout)]
        (-rollout.advantage * logp.mean() / len(drawn)).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    for results in two_ranks:
        assert results["once"]["grad_norm"] == pytest.approx(norm, rel=1e-4)
        for name, parameter in model.named_parameters():
            first, rows = results["once"]["moments"][name]
            got = 10 * torch.tensor(rows).reshape(-1, *parameter.shape[1:])
            torch.testing.assert_close(got, parameter.grad[first : first + len(got)], atol=1e-5, rtol=1e-4)


def test_a_batch_without_usable_sequences_leaves_the_weights(
    learner_directory: Path, two_ranks: list[dict[str, Any]]
) -> None:
    for results in two_ranks:
        assert results["nothing"]["same"] and results["nothing"]["skipped"] == 2
    sentence = "a batch leaves the weights as they are: none of its tokens can be trained on"
    assert sentence in (learner_directory / "said-2-0-train.err").read_text()


def test_every_way_of_routing_trains_and_measures_replay(two_ranks: list[dict[str, Any]]) -> None:
    modes = dict(two_ranks[0]["modes"])
    rounded = modes.pop("espo, bf16")
    assert rounded["skipped_updates"] == 0 and rounded["loss"] == pytest.approx(modes["espo"]["loss"], abs=0.05)
    assert len(modes) == 7
    for mode, metrics in modes.items():
        assert metrics["skipped_updates"] == 0, mode
        # Whatever trains, both routings are measured on the same weights.
        assert metrics["replay/k3_on"] == pytest.approx(modes["rollout/proximal"]["replay/k3_on"], rel=1e-6), mode
        assert metrics["replay/k3_off"] == pytest.approx(modes["rollout/proximal"]["replay/k3_off"], rel=1e-6), mode
        assert 0 < metrics["replay/flip_share"] < 1 and 0 < metrics["replay/native_share"] < 1
    # One update a batch starts at the old policy itself, whichever routing both have: the ratio is one, bit for bit.
    for mode in ("rollout/proximal", "old/proximal", "off/proximal"):
        assert modes[mode]["ratio"] == 1 and modes[mode]["ratio_max"] == 1 and modes[mode]["policy_k3"] == 0
    assert modes["rollout/rollout"]["ratio"] != 1
    assert modes["espo"]["clip_fraction"] > 0
    for name in ("loss", "grad_norm"):
        assert modes["espo"][name] == pytest.approx(modes["espo, recomputed"][name], rel=1e-5)
        assert modes["espo"][name] == modes["espo, offloaded"][name]


def test_the_share_of_fillers_is_said(two_ranks: list[dict[str, Any]]) -> None:
    for metrics in two_ranks[0]["train"]["metrics"]:
        assert metrics["packing/filler_share"] == pytest.approx(1 / 3), "three micro-batches here, one there"


def test_gradients_are_communicated_once_an_update_in_float32_however_many_micro_batches(
    two_ranks: list[dict[str, Any]],
) -> None:
    for results in two_ranks:
        found = results["accumulated"]
        sent = [
            {name: count for name, count in counts.items() if "reduce_scatter" in name}
            for counts in found["counts"].values()
        ]
        # One for each group of FSDP: the layers, and embedding, norm and head.
        assert sent == [{"_reduce_scatter_base_ torch.float32": found["layers"] + 1}] * 2, found
        assert found["kept"] == dict.fromkeys(("model", "exp_avg", "exp_avg_sq"), "torch.float32")


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", {0: 0.5, 1: 1.0, 2: 1.0, 50: 1.0}),
        ("linear", {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.55, 10: 0.1, 50: 0.1}),
        ("cosine", {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.55, 10: 0.1, 50: 0.1}),
    ],
)
def test_the_rate_warms_up_and_decays(schedule: Any, rates: dict[int, float]) -> None:
    settings = learner_settings(learning_rate=1.0, warmup_steps=2, decay_steps=10, schedule=schedule)
    for step, rate in rates.items():
        assert learning_rate(step, settings) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("max_steps", "rates"),
    [(500, {2: 1.0, 40: 0.931, 251: 0.55, 499: 0.102}), (None, {2: 1.0, 10_000: 1.0}), (1, {0: 0.5}), (3, {2: 1.0})],
)
def test_the_rate_decays_over_the_run_where_nothing_else_is_said(max_steps: int, rates: dict[int, float]) -> None:
    settings = learner_settings(learning_rate=1.0, warmup_steps=2, max_steps=max_steps)
    for step, rate in rates.items():
        assert learning_rate(step, settings) == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"old_policy": "rollout"}, "has no proximal entropies"),
        (
            {"old_policy": "rollout", "objective": "grpo", "correction": "tis"},
            "with old_policy 'rollout' they are one",
        ),
        (
            {"old_policy": "rollout", "objective": "grpo", "router_replay": "old"},
            "which old_policy 'rollout' leaves out",
        ),
        ({"decay_steps": 3}, "not above warmup_steps"),
        ({"fetch_timeout_s": 100.0}, "three times fetch_timeout_s 100"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        learner_settings(**changes)
