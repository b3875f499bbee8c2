"""Prompts from a JSON Lines file, one object a line."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from producers.dispatcher.sources.prompt import Prompt, SourceError, distinct
from schemas.parts import Message
from schemas.verifiers import VERIFIERS

_ALLOWED = (
    "a line is an object with prompt (text) or messages (a list of {role, content}), "
    "verifier, reference (text or an object) and, where wanted, task (text)"
)


class _Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str

    def on_wire(self) -> Message:
        """As requests carry it."""
        return Message(role=self.role, content=self.content)


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    verifier: str
    reference: str | dict[str, Any]
    prompt: str | None = None
    messages: tuple[_Turn, ...] | None = None
    task: str | None = None


class JsonlSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="jsonl"):
    """A JSON Lines file: `{"prompt": ... | "messages": [...], "verifier": ..., "reference": ..., "task": ...}`."""

    path: Annotated[str, msgspec.Meta(min_length=1, description="the file; its name is the task of rows without one")]

    def load(self) -> list[Prompt]:
        """Every prompt of the file. SourceError: what is wrong, with file and line number, and what is allowed."""
        path = Path(self.path)
        decoder = msgspec.json.Decoder(_Row)
        try:
            with path.open("rb") as lines:
                prompts = [
                    _prompt(decoder, line, f"{path}, line {number}", path.stem)
                    for number, line in enumerate(lines, start=1)
                    if line.strip()
                ]
        except OSError as error:
            raise SourceError(f"prompts cannot be read from {path}: {error.strerror}") from error
        if not prompts:
            raise SourceError(f"{path} has no prompts: {_ALLOWED}")
        return distinct(prompts)


def _prompt(decoder: msgspec.json.Decoder[_Row], line: bytes, origin: str, stem: str) -> Prompt:
    try:
        row = decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{origin}: {error}; {_ALLOWED}") from error
    if row.verifier not in VERIFIERS:
        raise SourceError(f"{origin}: verifier {row.verifier!r} is not one of {', '.join(VERIFIERS)}")
    if (row.prompt is None) == (row.messages is None):
        raise SourceError(f"{origin}: the row has {'neither' if row.prompt is None else 'both'} of prompt and messages")
    if row.prompt == "" or row.messages == ():
        raise SourceError(f"{origin}: {'prompt' if row.prompt == '' else 'messages'} is empty")
    return Prompt.of(
        task=row.task if row.task is not None else stem,
        verifier=row.verifier,
        reference=row.reference,
        text=row.prompt,
        messages=row.messages if row.messages is None else tuple(turn.on_wire() for turn in row.messages),
        origin=origin,
    )
