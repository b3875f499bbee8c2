"""Writing TOML: tables, tables in lists, strings, numbers, booleans. Reading is the standard library's `tomllib`.

What is written here reads back as the same mapping. None is left out, for TOML has no null.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_BARE = re.compile(r"^[A-Za-z0-9_-]+$")
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


def dumps(tables: Mapping[str, Any], *, comment: str = "") -> str:
    """TOML text of a mapping; `comment` stands above it. TypeError: a value that TOML cannot hold."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    _write_table(lines, (), tables)
    return "\n".join(lines).strip("\n") + "\n"


def value_text(value: Any) -> str:
    """One value, inline."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value)
        case str():
            return '"' + "".join(_character(c) for c in value) + '"'
        case Mapping():
            inner = ", ".join(f"{_key(k)} = {value_text(v)}" for k, v in value.items() if v is not None)
            return "{" + inner + "}"
        case Sequence() if not isinstance(value, (bytes, bytearray)):
            return "[" + ", ".join(value_text(item) for item in value) + "]"
        case _:
            raise TypeError(f"TOML cannot hold {value!r} of type {type(value).__name__}")


def _write_table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    given = {name: value for name, value in table.items() if value is not None}
    inner = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    plain = {name: value for name, value in given.items() if name not in inner}
    if path and (plain or not inner):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(name)} = {value_text(value)}" for name, value in plain.items()]
    for name, value in inner.items():
        _write_table(lines, (*path, name), value)


def _key(name: str) -> str:
    return name if _BARE.match(name) else value_text(name)


def _character(c: str) -> str:
    if c in _ESCAPES:
        return _ESCAPES[c]
    return f"\\u{ord(c):04X}" if ord(c) < 0x20 or ord(c) == 0x7F else c
