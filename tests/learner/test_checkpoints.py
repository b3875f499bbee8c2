"""Checkpoints are whole or not there, and any number of ranks reads them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(
    two_ranks: list[dict[str, Any]], one_rank: dict[str, Any]
) -> None:
    assert two_ranks[0]["resume"]["digest"] == two_ranks[0]["train"]["digest"]
    assert one_rank["resume"]["digest"] == one_rank["train"]["digest"]
    assert two_ranks[0]["resume"]["position"] == two_ranks[1]["resume"]["position"] == [2, 4, 2, 17]


def test_one_rank_goes_on_from_what_two_left(learner_directory: Path, one_rank: dict[str, Any]) -> None:
    close(learner_directory / "resumed-by-1.safetensors", learner_directory / "weights-1.safetensors")


def test_two_ranks_go_on_from_what_one_left(learner_directory: Path, two_ranks_after_one: list[dict[str, Any]]) -> None:
    close(learner_directory / "resumed-by-2.safetensors", learner_directory / "weights-2.safetensors")


def close(path: Path, other: Path) -> None:
    mine, theirs = load_file(path), load_file(other)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-5)


def test_old_ones_are_deleted_and_a_damaged_one_is_passed_over(two_ranks: list[dict[str, Any]]) -> None:
    assert two_ranks[0]["damage"]["kept"] == ["step-2", "step-3"]
    assert [said["damage"]["taken"] for said in two_ranks] == ["step-2", "step-2"]


def test_every_rank_says_so_if_none_is_whole(two_ranks: list[dict[str, Any]]) -> None:
    for said in two_ranks:
        assert "no checkpoint is whole" in said["damage"]["complaint"]
        assert "differs from its digest" in said["damage"]["complaint"]
        assert "no readable manifest.json" in said["damage"]["complaint"]


def test_what_one_rank_cannot_write_is_no_checkpoint_for_any(two_ranks: list[dict[str, Any]]) -> None:
    for said in two_ranks:
        assert said["full_disk"]["complaint"].startswith("rank 1: checkpoint in ")
        assert "was not written" in said["full_disk"]["complaint"]
        assert said["full_disk"]["newest"] == "step-1"


def test_a_checkpoint_of_another_model_is_refused(two_ranks: list[dict[str, Any]]) -> None:
    for said in two_ranks:
        assert "is of model m and not of another" in said["other_model"]
