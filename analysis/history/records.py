"""One record as a person reads it: field by field, arrays abbreviated, token ids decoded with the model's tokenizer."""

import json
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import NDArray, Ref, UndecodableError, WeightSpan, decode
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
    for name in _TOKENS:
        if isinstance(ids := getattr(event, name, None), NDArray) and (text := _decoded(ids, model)) is not None:
            fields[name.replace("_ids", "_text")] = text
    return place | {"event": type(event).__name__} | fields


def as_text(shown: dict[str, Any]) -> str:
    """Aligned lines, one a field; lists of tables are indented below their name."""
    return "\n".join(_lines(shown, ""))


def _lines(table: dict[str, Any], indent: str) -> list[str]:
    width = max((len(name) for name in table), default=0)
    lines: list[str] = []
    for name, value in table.items():
        if value is None:
            continue
        if isinstance(value, dict) and len(_value_text(value)) > 100:
            lines += [f"{indent}{name}", *_lines(value, indent + "    ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines.append(f"{indent}{name} ({len(value)})")
            lines += [f"{indent}    {_value_text(item)}" for item in value]
        else:
            text = value if isinstance(value, str) and "\n" not in value else _value_text(value)
            lines.append(f"{indent}{name:<{width}}  {text}")
    return lines


def _value_text(value: Any) -> str:
    """One value on one line, as TOML has it."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            return "{" + ", ".join(f"{k} = {_value_text(v)}" for k, v in value.items() if v is not None) + "}"
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
        case WeightSpan():
            return f"version {value.version} from token {value.first_token}"
        case tuple() | list():
            return [_plain(item) for item in value]
        case dict():
            return {str(name): _plain(item) for name, item in value.items()}
        case _:
            return value


def _decoded(ids: NDArray, model: Path) -> str | None:
    """The text of token ids; None where the model directory has no `tokenizer.json`."""
    path = model / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(path)).decode(ids.numpy().tolist(), skip_special_tokens=False)
    return text


def clock(time_s: float) -> str:
    """A unix time as `2026-01-31 12:00:00.250Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time_s)) + f".{int(time_s * 1000) % 1000:03d}Z"
