"""Checkpoints are complete or absent, and any number of ranks reads them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from learner.checkpoint.retention import Retention


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    two_ranks: list[dict[str, Any]], one_rank: dict[str, Any]
) -> None:
    assert two_ranks[0]["resume"]["digest"] == two_ranks[0]["train"]["digest"]
    assert one_rank["resume"]["digest"] == one_rank["train"]["digest"]
    assert two_ranks[0]["resume"]["position"] == two_ranks[1]["resume"]["position"] == [2, 4, 2, 17]


def test_one_rank_resumes_a_checkpoint_of_two(learner_directory: Path, one_rank: dict[str, Any]) -> None:
    assert one_rank["resume_from_2"]["position"] == [2, 4, 2, 17]
    close(learner_directory / "from-2-by-1.safetensors", learner_directory / "weights-1.safetensors")


def test_two_ranks_resume_a_checkpoint_of_one(
    learner_directory: Path, two_ranks_after_others: list[dict[str, Any]]
) -> None:
    close(learner_directory / "from-1-by-2.safetensors", learner_directory / "weights-2.safetensors")


def test_four_ranks_resume_a_checkpoint_of_two(learner_directory: Path, four_ranks: list[dict[str, Any]]) -> None:
    close(learner_directory / "from-2-by-4.safetensors", learner_directory / "weights-2.safetensors")


def test_a_model_held_twice_learns_what_one_held_once_does_and_is_written_once(
    learner_directory: Path, two_ranks: list[dict[str, Any]], four_ranks: list[dict[str, Any]]
) -> None:
    close(learner_directory / "copies.safetensors", learner_directory / "weights-2.safetensors")
    results = four_ranks[0]["copies"]
    assert results["replicas"] == 2
    for norm, metrics in zip(results["norms"], two_ranks[0]["train"]["metrics"], strict=True):
        assert norm == pytest.approx(metrics["grad_norm"], rel=1e-4)
    whole = sum(path.stat().st_size for path in learner_directory.glob("resume-2/step-2/*.safetensors"))
    assert whole <= results["written"] < 1.2 * whole, "each shard is in the checkpoint once"


def test_tensors_that_are_not_dealt_evenly_come_back_bit_by_bit_and_by_other_ranks(
    learner_directory: Path, three_ranks: list[dict[str, Any]], two_ranks_after_others: list[dict[str, Any]]
) -> None:
    assert three_ranks[0]["resume"]["digest"] == three_ranks[0]["train"]["digest"]
    close(learner_directory / "from-3-by-2.safetensors", learner_directory / "weights-2.safetensors")


def close(path: Path, other: Path) -> None:
    mine, theirs = load_file(path), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)


def test_old_checkpoints_are_deleted_and_a_damaged_one_is_skipped(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["damage"]["kept"] == ["step-2", "step-3"]
    assert [results["damage"]["taken"] for results in two_ranks] == ["step-2", "step-2"]


DAMAGES = {
    "bit flip": r"rank-1\.safetensors differs from its digest [0-9a-f]{16}…",
    "truncation": r"rank-1\.safetensors has 1000 bytes and not \d+",
    "missing file": r"rank-1\.safetensors is missing",
    "bit flip in the manifest": r"manifest\.json",
    "missing manifest": r"has no readable manifest\.json",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_its_fault_in_the_log(two_ranks: list[dict[str, Any]], how: str) -> None:
    for results in two_ranks:
        taken, (line,) = results["damages"][how]
        assert taken == "step-1"
        assert line.startswith("skips a damaged checkpoint and tries the one before it: checkpoint")
        assert re.search(DAMAGES[how], line), line
        assert results["damages"][f"{how}, rewritten"][0] == "step-2"


@given(st.sets(st.integers(1, 200)), st.integers(1, 5), st.integers(0, 20))
def test_the_newest_and_the_periodic_checkpoints_are_kept(steps: set[int], last: int, every: int) -> None:
    dropped = set(Retention(last, every).dropped(list(steps)))
    kept = steps - dropped
    assert set(sorted(steps)[-last:]) <= kept
    assert kept - set(sorted(steps)[-last:]) == {step for step in sorted(steps)[:-last] if every and step % every == 0}


def test_a_damaged_checkpoint_does_not_count_as_kept() -> None:
    keep = Retention(last=2)
    assert keep.dropped([10, 11, 12, 13], damaged={12, 13}) == [], "resumed from 10, then wrote 11"
    assert keep.dropped([10, 11, 12, 13], damaged={13}) == [10], "12 was rewritten"
    assert keep.dropped([11, 12, 13, 14], damaged={13}) == [11, 13], "a newer intact one exists"
    assert keep.dropped([12, 13], damaged={12, 13}) == []


def test_every_rank_reports_that_no_checkpoint_is_intact(two_ranks: list[dict[str, Any]]) -> None:
    for results in two_ranks:
        assert "no checkpoint is intact" in results["damage"]["complaint"]
        assert "differs from its digest" in results["damage"]["complaint"]
        assert "no readable manifest.json" in results["damage"]["complaint"]


def test_what_one_rank_cannot_write_is_no_checkpoint_for_any(two_ranks: list[dict[str, Any]]) -> None:
    for results in two_ranks:
        assert results["full_disk"]["complaint"].startswith("rank 1: checkpoint in ")
        assert "was not written" in results["full_disk"]["complaint"]
        assert results["full_disk"]["newest"] == "step-1"


def test_a_checkpoint_of_another_model_is_refused(two_ranks: list[dict[str, Any]]) -> None:
    for results in two_ranks:
        assert "is of run and model m and not of another" in results["other_model"]
