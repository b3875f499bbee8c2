"""A record as a person reads it: what was sampled and given, turn by turn, and what else a prompt's row said."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from analysis.history.records import as_text, described
from schemas import NDArray, Turn, encode
from tests.builders import group_requested, record_at, rollout_completed

LETTERS = "abcdefgh"


def model(directory: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(LETTERS)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def test_turns_are_shown_with_their_texts(tmp_path: Path) -> None:
    mask = np.array([1, 1, 0, 0, 0, 1], "u1")
    rollout = rollout_completed(
        response=(0, 1, 2, 3, 4, 5),
        logprobs=NDArray.of(np.where(mask, -0.5, 0.0).astype("f4")),
        loss_mask=NDArray.of(mask),
        turns=(Turn(0, "assistant"), Turn(2, "tool"), Turn(4, "assistant")),
    )
    shown = described(record_at("rollouts", value=encode(rollout)), model(tmp_path))
    assert shown["loss_mask"] == "3 of 6 tokens sampled: 0 to 1, 5 to 5"
    assert shown["turns"] == [
        {"role": "assistant", "from": 0, "tokens": 2, "sampled": 2, "text": "ab"},
        {"role": "tool", "from": 2, "tokens": 2, "sampled": 0, "text": "cd"},
        {"role": "assistant", "from": 4, "tokens": 2, "sampled": 1, "text": "ef"},
    ]
    assert shown["response_text"] == "abcdef"
    assert '    {role = "tool", from = 2, tokens = 2, sampled = 0, text = "cd"}' in as_text(shown).splitlines()
    without_texts = described(record_at("rollouts", value=encode(rollout)), tmp_path / "nowhere")
    assert without_texts["turns"][1]["text"] is None and "response_text" not in without_texts


def test_a_rollout_that_was_sampled_whole_says_nothing_of_it(tmp_path: Path) -> None:
    shown = described(record_at("rollouts", value=encode(rollout_completed())), tmp_path)
    assert shown["loss_mask"] is None and shown["turns"] == []
    assert not {"loss_mask", "turns"} & {line.split()[0] for line in as_text(shown).splitlines()}


def test_metadata_is_shown_with_the_request(tmp_path: Path) -> None:
    request = group_requested(metadata={"source": "MATH", "level": 5, "tags": ["algebra"]})
    shown = described(record_at("prompts", value=encode(request)), tmp_path)
    assert 'metadata          {source = "MATH", level = 5, tags = ["algebra"]}' in as_text(shown).splitlines()


def test_figures_have_as_many_digits_as_say_something_and_times_are_times() -> None:
    shown = {
        "metrics": {"learning_rate": 0.00019999999999999998, "loss": -0.05645676329731941, "ratio": 1.0, "step": 3},
        "time_s": 1796128107.2752216,
        "waited_s": 0.8775398080006198,
    }
    assert as_text(shown).splitlines() == [
        "metrics   {learning_rate = 0.0002, loss = -0.05646, ratio = 1, step = 3}",
        "time_s    2026-12-01 12:28:27.275Z",
        "waited_s  0.8775",
    ]
