"""Token ids to text, here rather than in the engine, so that it runs in parallel with generation."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from schemas import NDArray
from streams.errors import ConfigurationError


class Detokeniser:
    """The text of token ids, special tokens left out or, with `keep_special`, kept but for those at the end."""

    def __init__(self, model: Path, keep_special: bool = False) -> None:
        """Reads `<model>/tokenizer.json`. ConfigurationError where that is no tokenizer."""
        path = model / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(f"rewards.model {model}: there is no {path}")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises bare Exception for whatever it cannot read
            raise ConfigurationError(f"rewards.model {model}: {path} is no tokenizer: {error}") from None

        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        self._keep_special = keep_special

    def text(self, ids: NDArray) -> str:
        """Text of `ids` `[tokens]`, u4; ids that the vocabulary does not have are left out.

        What ends a response (end of sequence, end of turn) is no part of what it says, whatever the setting.
        """
        tokens: list[int] = ids.numpy().astype(np.uint32).tolist()
        while self._keep_special and tokens and tokens[-1] in self._special:
            tokens.pop()
        decoded: str = self._tokenizer.decode(tokens, skip_special_tokens=not self._keep_special)
        return decoded
