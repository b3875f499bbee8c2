"""A prompt as every source yields it, and the rules that hold across sources."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from schemas.identity import prompt_id
from schemas.parts import Message, check_metadata, check_reference
from streams.errors import ConfigurationError


class SourceError(ConfigurationError):
    """A source that cannot be used; the message names the file and line, or the value, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: exactly one of `text` and `messages`; `origin` says where it was read, for error messages.

    `metadata` is what else its row said, plain JSON: kept on the log with every request, and acted on by nobody.
    """

    prompt_id: str
    task: str
    verifier: str
    reference: str | dict[str, Any]
    text: str | None
    messages: tuple[Message, ...] | None
    origin: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        task: str,
        verifier: str,
        reference: str | dict[str, Any],
        text: str | None = None,
        messages: tuple[Message, ...] | None = None,
        origin: str,
        metadata: dict[str, Any] | None = None,
    ) -> "Prompt":
        """The prompt with its identity: the digest of task and content.

        SourceError: a reference that no record can carry, such as an integer of 2^64 or one that nests too deep;
        metadata that is no plain JSON or too much of it.
        """
        try:
            check_reference(origin, reference)
            msgspec.msgpack.encode(reference)
        except (ValueError, OverflowError, RecursionError, TypeError) as error:
            why = str(error).removeprefix(f"{origin} ")
            raise SourceError(f"{origin}: the reference cannot be written to the log: {why}") from error
        try:
            check_metadata(f"{origin}: the row", metadata or {})
        except ValueError as error:
            raise SourceError(str(error)) from error
        content = text if messages is None else messages
        return cls(prompt_id(task, content), task, verifier, reference, text, messages, origin, metadata or {})


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Each prompt once, in order, with the first row's metadata: two rows of the same task and content would share
    every identity.

    SourceError: two rows of the same task and content with different references, which cannot both be right.
    """
    kept: dict[str, Prompt] = {}
    for prompt in prompts:
        first = kept.setdefault(prompt.prompt_id, prompt)
        if (first.verifier, first.reference) != (prompt.verifier, prompt.reference):
            raise SourceError(
                f"{prompt.origin} has the prompt of {first.origin} with another verifier or reference: "
                "a prompt of one task has one reference"
            )
    return list(kept.values())


def without(prompts: Iterable[Prompt], held_back: Iterable[Prompt]) -> list[Prompt]:
    """`prompts` less those held back: what measures progress is never trained on, whatever its task is called."""
    contents = {(prompt.text, prompt.messages) for prompt in held_back}
    return [prompt for prompt in prompts if (prompt.text, prompt.messages) not in contents]
