"""The tokens of the model that ships with the project with which a response is right or wrong."""

from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from benchmarks.delivery.shape import Shape

_MODEL: Final = Path(__file__).parents[2] / "models" / "tiny-moe"


def shape_for(rollouts: int, rate: float = 0.0) -> Shape:
    """A load of whole batches, answered with the tiny model's digits."""
    tokenizer = Tokenizer.from_file(str(_MODEL / "tokenizer.json"))

    def token(text: str) -> int:
        found = tokenizer.token_to_id(text)
        assert found is not None, text
        return int(found)

    whole = Shape(rollouts=0, model="").batch
    return Shape(
        rollouts=rollouts // whole * whole,
        model=str(_MODEL),
        rate=rate,
        equals=token("="),
        answer=token("1"),
        wrong=token("2"),
        eos=token("<eos>"),
        answer_text="1",
    )
