"""Prompts from a JSON Lines file, one object a line."""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from producers.dispatcher.sources.prompt import Prompt, SourceError, distinct
from schemas.parts import Message
from schemas.verifiers import VERIFIERS

_ALLOWED: Final = (
    "a line is an object with prompt (text) or messages (a list of {role, content}), "
    "verifier, reference (text, a number or an object) and, where wanted, task (text); other columns are metadata"
)


_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_KINDS: Final = (
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"ARROW1", "an Arrow file"),
)
"""First bytes of the files that are given in place of JSON Lines."""


class _TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"):
    text: str


class _ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str | tuple[_TextPart, ...]

    def on_wire(self) -> Message:
        """As requests carry it: text parts are one text."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=self.role, content=content)


class _Row(msgspec.Struct, frozen=True):
    verifier: str
    reference: str | int | float | dict[str, Any]
    prompt: str | None = None
    messages: tuple[_ChatMessage, ...] | None = None
    task: str | None = None


class JsonlSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="jsonl"):
    """A JSON Lines file: `{"prompt": ... | "messages": [...], "verifier": ..., "reference": ..., "task": ...}`.

    What else a row says is the prompt's metadata.
    """

    path: Annotated[str, msgspec.Meta(min_length=1, description="the file; its name is the task of rows without one")]

    def load(self) -> list[Prompt]:
        """Every prompt of the file. SourceError: what is wrong, with file and line number, and what is allowed."""
        path = Path(self.path)
        try:
            with path.open("rb") as lines:
                _check_kind(path, lines.peek(8))
                prompts = [
                    _prompt(line, f"{path}, line {number}", path.stem)
                    for number, line in enumerate(lines, start=1)
                    if line.strip()
                ]
        except OSError as error:
            raise SourceError(f"prompts cannot be read from {path}: {error.strerror}") from error
        if not prompts:
            raise SourceError(f"{path} has no prompts: {_ALLOWED}")
        return distinct(prompts)


def _prompt(line: bytes, origin: str, stem: str) -> Prompt:
    try:
        columns = msgspec.json.decode(line)
        row = msgspec.convert(columns, _Row)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{origin}: {error}; {_ALLOWED}") from error
    except RecursionError:
        raise SourceError(f"{origin}: the row nests deeper than can be read; {_ALLOWED}") from None
    if row.verifier not in VERIFIERS:
        raise SourceError(f"{origin}: verifier {row.verifier!r} is not one of {', '.join(VERIFIERS)}")
    if (row.prompt is None) == (row.messages is None):
        raise SourceError(f"{origin}: the row has {'neither' if row.prompt is None else 'both'} of prompt and messages")
    messages = None if row.messages is None else tuple(message.on_wire() for message in row.messages)
    if row.prompt is not None and not row.prompt.strip():
        raise SourceError(f"{origin}: prompt is {'blank' if row.prompt else 'empty'}")
    if messages is not None and not any(message.content.strip() for message in messages):
        raise SourceError(f"{origin}: messages {'are blank' if messages else 'is empty'}")
    return Prompt.of(
        task=row.task if row.task is not None else stem,
        verifier=row.verifier,
        reference=row.reference if isinstance(row.reference, (str, dict)) else str(row.reference),
        text=row.prompt,
        messages=messages,
        origin=origin,
        metadata={name: value for name, value in columns.items() if name not in _Row.__struct_fields__},
    )


def _check_kind(path: Path, first: bytes) -> None:
    """SourceError: the file is of another kind than JSON Lines, whatever its name says."""
    for magic, kind in _KINDS:
        if first.startswith(magic):
            raise SourceError(f"{path} is {kind}; allowed: JSON Lines, {_ALLOWED}")
    if first.startswith(_BYTE_ORDER_MARK):
        raise SourceError(f"{path}, line 1: the file begins with a byte-order mark; allowed: UTF-8 without one")
    if first.lstrip().startswith(b"["):
        raise SourceError(f"{path}, line 1: the file is one JSON list; allowed: JSON Lines, {_ALLOWED}")
