"""Prompts to token ids: the fast tokenizer for text, the model's chat template for messages."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from tokenizers import Tokenizer

from schemas.parts import Message
from streams.errors import ConfigurationError, Poison


class PromptEncoder:
    """Encodes prompts the way the model was trained to see them.

    Text goes through the tokenizer's own post-processing (a leading begin-of-sequence token where the model has one);
    messages go through the chat template, which places such tokens itself. ConfigurationError: no tokenizer there.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        path = model / "tokenizer.json"
        if not path.is_file():
            raise ConfigurationError(f"model directory {model} has no tokenizer.json (a fast tokenizer)")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare Exceptions, whatever is wrong with the file
            raise ConfigurationError(f"{path} is no tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._chat: Any = None

    def encode(self, prompt: str | None, messages: Sequence[Message] | None) -> npt.NDArray[np.uint32]:
        """Token ids u4 `[prompt tokens]` of exactly one of both.

        Poison: nothing is left of it, or no chat template. ConfigurationError: the template's tokenizer does not load.
        """
        if messages is None:
            ids = self._tokenizer.encode(prompt or "", add_special_tokens=True).ids
        else:
            ids = self._encode_chat(messages)
        if not ids:
            raise Poison("the prompt has no tokens")
        return np.asarray(ids, dtype=np.uint32)

    def _encode_chat(self, messages: Sequence[Message]) -> list[int]:
        template = self._template()
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = template(turns)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise Poison(f"the chat template of {self._model} does not take the messages: {error}") from error
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _template(self) -> Any:
        if self._chat is None:
            if not self._has_template():
                raise Poison(f"model directory {self._model} has no chat template: give prompts as text")
            # Imported here: it takes seconds, and text prompts never need it.
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(str(self._model), local_files_only=True)
            except (OSError, ValueError, ImportError, LookupError) as error:
                raise ConfigurationError(
                    f"the tokenizer of model directory {self._model} cannot be loaded for its chat template: {error}"
                ) from error

            def render(turns: list[dict[str, str]]) -> str:
                rendered: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                return rendered

            self._chat = render
        return self._chat

    def _has_template(self) -> bool:
        if (self._model / "chat_template.jinja").is_file() or (self._model / "chat_template.json").is_file():
            return True
        path = self._model / "tokenizer_config.json"
        try:
            return path.is_file() and bool(json.loads(path.read_bytes()).get("chat_template"))
        except (OSError, ValueError, AttributeError) as error:
            raise ConfigurationError(f"{path} is no tokenizer configuration: {error}") from error
