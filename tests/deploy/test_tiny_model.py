"""The model and the prompts that ship with the project are whole and agree with one another."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS = Path(__file__).parents[2] / "models"
MODEL = MODELS / "tiny-moe"
PROMPTS = MODELS / "running-sums"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROMPTS / name).read_text(encoding="utf-8").splitlines()]


def prompts(name: str) -> list[str]:
    return [row["prompt"] for row in rows(name)]


def worked_answer(prompt: str) -> str:
    total, *rest = map(int, prompt.removesuffix("=").split("+"))
    parts = []
    for operand in rest:
        parts.append(f"{total}+{operand}={total + operand}")
        total += operand
    return ",".join(parts)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_sizes_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 8_000_000
    assert (PROMPTS / "train.jsonl").stat().st_size <= 1_000_000


@pytest.mark.parametrize("name", ["train.jsonl", "held_back.jsonl"])
def test_each_row_states_a_sum_and_its_answer(name: str) -> None:
    for row in rows(name):
        operands = [int(part) for part in row["prompt"].removesuffix("=").split("+")]
        assert 2 <= len(operands) <= 5
        assert all(1 <= operand <= 9 for operand in operands)
        assert row == {
            "prompt": "+".join(map(str, operands)) + "=",
            "task": "running-sums",
            "verifier": "exact_match",
            "reference": {"answer": str(sum(operands)), "after": "="},
        }


def test_held_back_prompts_are_never_trained_on_and_none_repeats() -> None:
    train, held_back = prompts("train.jsonl"), prompts("held_back.jsonl")
    assert len(held_back) == 256
    assert len(set(train + held_back)) == len(train) + len(held_back)


def test_both_files_have_the_same_share_of_each_length() -> None:
    train, held_back = (Counter(map(len, prompts(name))) for name in ("train.jsonl", "held_back.jsonl"))
    assert train.keys() == held_back.keys()
    for length, count in train.items():
        assert count / train.total() == pytest.approx(held_back[length] / held_back.total())


def test_tokenizer_maps_each_character_to_one_token_and_back(tokenizer: Any) -> None:
    for prompt in prompts("train.jsonl") + prompts("held_back.jsonl"):
        text = prompt + worked_answer(prompt)
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_vocabulary_and_special_tokens_agree_with_the_model(tokenizer: Any, model: Any) -> None:
    assert len(tokenizer) == model.config.vocab_size == 64
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 1
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id == 0
    assert model.config.max_position_embeddings >= 256


def test_weights_are_stored_in_bf16() -> None:
    assert AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").dtype == torch.bfloat16


def test_the_rule_is_known(tokenizer: Any, model: Any) -> None:
    """Teacher-forced on the right answers, the most likely next token is nearly always the right one."""
    wanted = [prompt for prompt in prompts("held_back.jsonl") if prompt.count("+") == 2]
    right = 0
    for prompt in wanted[:32]:
        answer = [*tokenizer.encode(worked_answer(prompt)), tokenizer.eos_token_id]
        prompt_ids = tokenizer.encode(prompt)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt_ids + answer])).logits[0]
        right += logits[len(prompt_ids) - 1 : -1].argmax(-1).tolist() == answer
    assert right >= 30
