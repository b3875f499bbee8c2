"""Mappings to typed structs, strictly; each error is one line: the key, the value given, what is allowed.

    convert({"run": {"stepz": 3}}, RunConfig)
    # ConfigError: run.stepz is 3, but there is no such key; did you mean run.steps?

msgspec finds the error; this module names it by the keys of the file that the user wrote.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as mi

from deploy.errors import ConfigError

T = TypeVar("T")

_WHERE = re.compile(r"^(?P<what>.*?)(?: - at `\$?(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
_FORMAL = re.compile(r"^(Expected |Invalid enum value |Invalid value )")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


def convert(raw: Mapping[str, Any], kind: type[T] | Any, *, within: str = "") -> T:
    """`raw` as a `kind` (a struct or a tagged union of structs). `within` is the dotted key of `raw` itself.

    ConfigError: the first error that msgspec finds.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(_sentence(str(error), raw, kind, within)) from None


def allowed_text(kind: mi.Type) -> str:
    """What a value of this type may be, as part of a sentence."""
    match kind:
        case mi.Metadata():
            return allowed_text(kind.type)
        case mi.BoolType():
            return "true or false"
        case mi.IntType():
            return "an integer" + _bounds(kind)
        case mi.FloatType():
            return "a number" + _bounds(kind)
        case mi.StrType():
            return "a string" if kind.pattern is None else f"a string that matches {kind.pattern}"
        case mi.LiteralType() | mi.EnumType():
            values = kind.values if isinstance(kind, mi.LiteralType) else [item.value for item in kind.cls]
            return " or ".join(shown(value) for value in values)
        case mi.UnionType():
            options = [allowed_text(option) for option in kind.types if not isinstance(option, mi.NoneType)]
            return " or ".join(dict.fromkeys(options))
        case mi.VarTupleType() | mi.ListType() | mi.SetType() | mi.FrozenSetType():
            return f"a list, each item {allowed_text(kind.item_type)}"
        case mi.TupleType():
            return "a list of " + ", ".join(allowed_text(item) for item in kind.item_types)
        case mi.StructType() | mi.DictType() | mi.DataclassType():
            return "a table"
        case _:
            return "another value"


def suggestion(name: str, choices: list[str]) -> str | None:
    """The choice that `name` most likely is a misspelling of; None: none is close."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return close[0] if close else None


def shown(value: object) -> str:
    """A value in TOML's notation, at most 80 characters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = msgspec.json.encode(value, enc_hook=str).decode() if not isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _sentence(message: str, raw: Mapping[str, Any], kind: Any, within: str) -> str:
    found = _WHERE.match(message)
    assert found is not None
    what, path = found["what"], found["path"] or ""
    steps: list[str | int] = [int(index) if index else name for name, index in _STEP.findall(path)]
    key, value, expected = _dotted(within, steps), _value_at(raw, steps), _type_at(mi.type_info(kind), steps, raw)
    fields = [field.encode_name for field in expected.fields] if isinstance(expected, mi.StructType) else []
    if unknown := _UNKNOWN.match(what):
        name = unknown["name"]
        close = suggestion(name, fields)
        allowed = f"allowed are {', '.join(sorted(fields))}" if fields else "it takes none"
        fix = f"did you mean {_dotted(key, [close])}?" if close else allowed
        given = shown(value[name]) if isinstance(value, Mapping) and not isinstance(value[name], Mapping) else "given"
        return f"{_dotted(key, [name])} is {given}, but there is no such key; {fix}"
    if missing := _MISSING.match(what):
        name = missing["name"]
        wanted = _type_at(expected, [name], value)
        return f"{_dotted(key, [name])} is not given; it is needed: {allowed_text(wanted) if wanted else 'a value'}"
    if _FORMAL.match(what) and expected is not None:
        close = suggestion(value, [str(v) for v in _choices(expected)]) if isinstance(value, str) else None
        slip = f" (did you mean {shown(close)}?)" if close else ""
        return f"{key} is {shown(value)}; allowed: {allowed_text(expected)}{slip}"
    return f"{key}: {what}" if key and not what.startswith(key) else what


def _choices(kind: mi.Type) -> tuple[Any, ...]:
    if isinstance(kind, mi.Metadata):
        return _choices(kind.type)
    return kind.values if isinstance(kind, mi.LiteralType) else ()


def _bounds(kind: mi.IntType | mi.FloatType) -> str:
    words = [
        f"{word} {bound:g}" if isinstance(bound, float) else f"{word} {bound}"
        for word, bound in (
            ("of at least", kind.ge),
            ("above", kind.gt),
            ("up to", kind.le),
            ("below", kind.lt),
        )
        if bound is not None
    ]
    return " " + " and ".join(words) if words else ""


def _dotted(within: str, steps: list[Any]) -> str:
    key = within
    for step in steps:
        key += f"[{step}]" if isinstance(step, int) else f".{step}" if key else str(step)
    return key


def _value_at(raw: Any, steps: list[str | int]) -> Any:
    for step in steps:
        named = isinstance(raw, Mapping) and step in raw
        if not named and not (isinstance(raw, (list, tuple)) and isinstance(step, int) and step < len(raw)):
            return None
        raw = raw[step]
    return raw


def _type_at(kind: mi.Type | None, steps: list[str | int], raw: Any) -> mi.Type | None:
    """The type that the value at `steps` must have; None where the values above it do not determine it."""
    kind = _plain(kind, raw)
    for step in steps:
        raw = _value_at(raw, [step])
        match kind:
            case mi.StructType() if step == kind.tag_field:
                return mi.LiteralType((kind.tag,))
            case mi.StructType():
                kind = next((field.type for field in kind.fields if field.encode_name == step), None)
            case mi.UnionType():
                tags = [o.tag for o in kind.types if isinstance(o, mi.StructType) and o.tag_field == step]
                return mi.LiteralType(tuple(tags)) if tags else None
            case mi.VarTupleType() | mi.ListType():
                kind = kind.item_type
            case mi.TupleType() if isinstance(step, int):
                kind = kind.item_types[step]
            case mi.DictType():
                kind = kind.value_type
            case _:
                return None
        kind = _plain(kind, raw)
    return kind


def _plain(kind: mi.Type | None, raw: Any) -> mi.Type | None:
    """Without annotations and the `| None` of what may be left out; of a tagged union, the struct that `raw` names."""
    while isinstance(kind, mi.Metadata):
        kind = kind.type
    if isinstance(kind, mi.UnionType):
        options = [option for option in kind.types if not isinstance(option, mi.NoneType)]
        if len(options) == 1:
            return _plain(options[0], raw)
        tagged = [option for option in options if isinstance(option, mi.StructType) and option.tag_field is not None]
        if isinstance(raw, Mapping):
            return next((option for option in tagged if raw.get(option.tag_field) == option.tag), kind)
    return kind
