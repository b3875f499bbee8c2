"""One record as a person reads it: field by field, arrays abbreviated, token ids decoded with the model's tokenizer."""

import json
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from schemas import NDArray, Ref, RolloutCompleted, Turn, UndecodableError, WeightSpan, decode
from streams.record import Record

_FIRST: Final = 8
_LONG_TEXT: Final = 400
_TOKENS: Final = ("prompt_ids", "response_ids")


def described(record: Record, model: Path) -> dict[str, Any]:
    """The record's place, headers and event as plain values."""
    place = {
        "record": f"{record.topic}/{record.partition}/{record.offset}",
        "key": None if record.key is None else record.key.decode(errors="replace"),
        "time": clock(record.time_s),
        "bytes": len(record.value),
        "headers": {name: value.decode(errors="replace") for name, value in record.headers.items()},
    }
    try:
        event = decode(record.value)
    except UndecodableError as error:
        return place | {"undecodable": str(error), "data": record.value[:64].hex()}
    fields = {name: _plain(getattr(event, name)) for name in event.__struct_fields__}
    tokenizer = _tokenizer(model) if any(hasattr(event, name) for name in _TOKENS) else None
    for name in _TOKENS:
        if tokenizer is not None and isinstance(ids := getattr(event, name, None), NDArray):
            fields[name.replace("_ids", "_text")] = _text(tokenizer, ids.numpy())
    if isinstance(event, RolloutCompleted) and (event.loss_mask is not None or event.turns):
        fields |= _by_turn(event, tokenizer)
    return place | {"event": type(event).__name__} | fields


_TIMES_S: Final = 1e8
"""A field in seconds above this is a moment (unix time) and not a length of time."""


def as_text(shown: dict[str, Any]) -> str:
    """Aligned lines, one a field that says something; lists of tables are indented below their name."""
    return "\n".join(_lines(shown, ""))


def _lines(table: dict[str, Any], indent: str) -> list[str]:
    width = max((len(name) for name in table), default=0)
    lines: list[str] = []
    for name, value in table.items():
        if value in (None, [], {}):
            continue
        if isinstance(value, dict) and len(_value_text(value)) > 100:
            lines += [f"{indent}{name}", *_lines(value, indent + "    ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{name} ({len(value)})")
            lines += [f"{indent}    {_value_text(item)}" for item in value]
        else:
            text = value if isinstance(value, str) and "\n" not in value else _value_text(value, name)
            lines.append(f"{indent}{name:<{width}}  {text}")
    return lines


def _value_text(value: Any, name: str = "") -> str:
    """One value on one line, as TOML has it; a number with as many digits as say something, a time as a time."""
    match value:
        case bool():
            return "true" if value else "false"
        case float() if name.endswith("_s") and value > _TIMES_S:
            return clock(value)
        case float():
            return f"{value:.4g}"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            return "{" + ", ".join(f"{k} = {_value_text(v, k)}" for k, v in value.items() if v is not None) + "}"
        case list():
            return "[" + ", ".join(_value_text(item) for item in value) + "]"
        case _:
            return str(value)


def _plain(value: Any) -> Any:
    match value:
        case NDArray():
            flat = value.numpy().reshape(-1)
            first = ", ".join(f"{item:.4g}" for item in flat[:_FIRST].tolist())
            more = ", …" if flat.size > _FIRST else ""
            return f"{value.dtype}{list(value.shape)} [{first}{more}]"
        case bytes():
            return f"{len(value)} bytes {value[:16].hex()}"
        case str():
            return value if len(value) <= _LONG_TEXT else value[:_LONG_TEXT] + "…"
        case msgspec.Struct():
            return {
                name: _plain(getattr(value, name))
                for name in value.__struct_fields__
                if getattr(value, name) is not None
            }
        case Ref():
            return f"{value.topic}/{value.partition}/{value.offset}"
        case Turn():
            return f"{value.role} from token {value.first_token}"
        case WeightSpan():
            return f"version {value.version} from token {value.first_token}"
        case tuple() | list():
            return [_plain(item) for item in value]
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case _:
            return value


def _by_turn(rollout: RolloutCompleted, tokenizer: Any) -> dict[str, Any]:
    """The fields of a rollout of which not every token was sampled: which were, and its turns with their texts."""
    tokens = rollout.response_ids.shape[0]
    sampled = np.ones(tokens, np.bool_) if rollout.sampled is None else rollout.sampled
    edges = np.flatnonzero(np.diff(sampled, prepend=False, append=False)).reshape(-1, 2).tolist()
    runs = ", ".join(f"{first} to {end - 1}" for first, end in edges[:_FIRST]) + (", …" if len(edges) > _FIRST else "")
    firsts = [turn.first_token for turn in rollout.turns]
    turns: list[dict[str, Any]] = []
    for turn, end in zip(rollout.turns, [*firsts[1:], tokens], strict=True):
        here = slice(turn.first_token, end)
        row = {"role": turn.role, "from": turn.first_token, "tokens": end - turn.first_token}
        row["sampled"] = int(sampled[here].sum())
        text = None if tokenizer is None else _plain(_text(tokenizer, rollout.response_ids.numpy()[here]))
        turns.append(row | {"text": text})
    return {"loss_mask": f"{int(sampled.sum())} of {tokens} tokens sampled: {runs}", "turns": turns}


def _tokenizer(model: Path) -> Any:
    """The tokenizer of a model directory; None where it has no `tokenizer.json`."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(path))


def _text(tokenizer: Any, ids: npt.NDArray[Any]) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return text


def clock(time_s: float) -> str:
    """A unix time as `2026-01-31 12:00:00.250Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s)) + f".{int(time_s * 1000) % 1000:03d}Z"
