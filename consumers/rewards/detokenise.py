"""Token ids to text, here rather than in the engine, so that it runs in parallel with generation."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from schemas import NDArray
from streams.errors import ConfigurationError


class Detokeniser:
    """The text of token ids, special tokens left out."""

    def __init__(self, model: Path) -> None:
        """Reads `<model>/tokenizer.json`. ConfigurationError where that is no tokenizer."""
        path = model / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(f"rewards.model {model}: there is no {path}")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises bare Exception for whatever it cannot read
            raise ConfigurationError(f"rewards.model {model}: {path} is no tokenizer: {error}") from None

    def text(self, ids: NDArray) -> str:
        """Text of `ids` `[tokens]`, u4; ids that the vocabulary does not have are left out."""
        decoded: str = self._tokenizer.decode(ids.numpy().astype(np.uint32).tolist(), skip_special_tokens=True)
        return decoded
