"""Brokers, a tokenizer and rollouts for the tests of the consumers."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from schemas import RolloutCompleted, Sampling, WeightSpan
from tests.builders import rollout_completed

ALPHABET = "0123456789+=,abcdefghijklmnopqrstuvwxyz "
EOS = len(ALPHABET)

MakeRollout = Callable[..., RolloutCompleted]


def ids_of(text: str, *, eos: bool = True) -> list[int]:
    """Token ids of `text`, one a character, and the end of sequence."""
    return [ALPHABET.index(letter) for letter in text] + [EOS] * eos


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tokenizer.json of a character vocabulary with a special end of sequence."""
    directory = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(ALPHABET)}, unk_token=" "))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    assert tokenizer.token_to_id("<eos>") == EOS
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="session")
def make_rollout() -> MakeRollout:
    """`make_rollout("3+1=4", group_id="p.0", index=1, ...)`: a finished rollout with that response."""

    def make(text: str, *, group_id: str = "p.0", index: int = 0, attempt: int = 0, **fields: Any) -> RolloutCompleted:
        response = ids_of(text, eos=fields.get("finish_reason", "stop") == "stop")
        defaults: dict[str, Any] = {
            "reference": {"answer": "4", "after": "="},
            "spans": (WeightSpan(0, 3), WeightSpan(2, 4)),
            "sampling": Sampling(max_tokens=20),
        }
        return rollout_completed(
            group_id,
            index,
            attempt=attempt,
            prompt=ids_of("3+1=", eos=False),
            response=response,
            requested_s=fields.pop("requested_s", time.time()),
            **defaults | fields,
        )

    return make
