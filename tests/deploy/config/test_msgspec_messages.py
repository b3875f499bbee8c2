"""The contract that `deploy.config.error_text` has with msgspec: it reads msgspec's English error messages.

A release of msgspec that words a message differently fails here, and names the message whose pattern must follow.
"""

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from deploy.config.error_text import convert
from deploy.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="left"):
    path: str = ""


class Right(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="right"):
    size: int = 3


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    count: int = 1

    def __post_init__(self) -> None:
        if self.count == 5:
            raise ValueError("count is 5")


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    needed: int
    low: Annotated[int, Meta(ge=1)] = 1
    high: Annotated[int, Meta(lt=9)] = 1
    above: Annotated[float, Meta(gt=0)] = 1.0
    share: Annotated[float, Meta(le=1)] = 1.0
    flag: bool = True
    name: Annotated[str, Meta(pattern="^[a-z]+$")] = "a"
    title: Annotated[str, Meta(min_length=1)] = "a"
    mode: Literal["fast", "slow"] = "fast"
    bits: Literal[8, 16] = 8
    colour: Colour = Colour.RED
    limit: int | None = None
    source: Left | Right | None = None
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (1, 1)
    inner: Inner = Inner()


MESSAGES = [
    # The patterns of unknown and missing fields, at the root and below it.
    ({"zzz": 2}, "Object contains unknown field `zzz`",
     f"a.zzz is 2, but there is no such key; allowed are {', '.join(sorted(Outer.__struct_fields__))}"),
    ({"inner": {"coumt": 2}}, "Object contains unknown field `coumt` - at `$.inner`",
     "a.inner.coumt is 2, but there is no such key; did you mean a.inner.count?"),
    ({"needed": None}, "Expected `int`, got `null` - at `$.needed`", "a.needed is null; allowed: an integer"),
    ({"source": {}}, "Object missing required field `kind` - at `$.source`",
     'a.source.kind is not given; it is needed: "left" or "right"'),
    # Types.
    ({"needed": "a"}, "Expected `int`, got `str` - at `$.needed`", 'a.needed is "a"; allowed: an integer'),
    ({"needed": 1.5}, "Expected `int`, got `float` - at `$.needed`", "a.needed is 1.5; allowed: an integer"),
    ({"flag": 1}, "Expected `bool`, got `int` - at `$.flag`", "a.flag is 1; allowed: true or false"),
    ({"limit": "a"}, "Expected `int | null`, got `str` - at `$.limit`", 'a.limit is "a"; allowed: an integer'),
    ({"names": 3}, "Expected `array`, got `int` - at `$.names`", "a.names is 3; allowed: a list, each item a string"),
    ({"names": ["x", 3]}, "Expected `str`, got `int` - at `$.names[1]`", "a.names[1] is 3; allowed: a string"),
    ({"inner": 3}, "Expected `object`, got `int` - at `$.inner`", "a.inner is 3; allowed: a table"),
    ({"source": 3}, "Expected `object | null`, got `int` - at `$.source`", "a.source is 3; allowed: a table"),
    # Bounds, lengths and patterns.
    ({"low": 0}, "Expected `int` >= 1 - at `$.low`", "a.low is 0; allowed: an integer of at least 1"),
    ({"high": 9}, "Expected `int` <= 8 - at `$.high`", "a.high is 9; allowed: an integer below 9"),
    ({"above": 0}, "Expected `float` > 0.0 - at `$.above`", "a.above is 0; allowed: a number above 0"),
    ({"share": 2.5}, "Expected `float` <= 1.0 - at `$.share`", "a.share is 2.5; allowed: a number up to 1"),
    ({"name": "A"}, "Expected `str` matching regex '^[a-z]+$' - at `$.name`",
     'a.name is "A"; allowed: a string that matches ^[a-z]+$'),
    ({"title": ""}, "Expected `str` of length >= 1 - at `$.title`", 'a.title is ""; allowed: a string'),
    ({"pair": [1]}, "Expected `array` of length 2, got 1 - at `$.pair`",
     "a.pair is [1]; allowed: a list of an integer, an integer"),
    # Choices and tags.
    ({"mode": "z"}, "Invalid enum value 'z' - at `$.mode`", 'a.mode is "z"; allowed: "fast" or "slow"'),
    ({"bits": 3}, "Invalid enum value 3 - at `$.bits`", "a.bits is 3; allowed: 8 or 16"),
    ({"colour": "z"}, "Invalid enum value 'z' - at `$.colour`", 'a.colour is "z"; allowed: "red" or "blue"'),
    ({"source": {"kind": "c"}}, "Invalid value 'c' - at `$.source.kind`",
     'a.source.kind is "c"; allowed: "left" or "right"'),
    # A sentence of our own, from __post_init__, comes through with its path.
    ({"inner": {"count": 5}}, "count is 5 - at `$.inner`", "a.inner: count is 5"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "message", "sentence"), MESSAGES, ids=[message for _, message, _ in MESSAGES])
def test_msgspec_words_its_message_so_and_it_is_understood(raw: dict[str, Any], message: str, sentence: str) -> None:
    whole = {"needed": 1, **raw}
    with pytest.raises(msgspec.ValidationError) as theirs:
        msgspec.convert(whole, Outer)
    assert str(theirs.value) == message, f"msgspec {msgspec.__version__} words this otherwise: see error_text.py"
    with pytest.raises(ConfigError) as ours:
        convert(whole, Outer, within="a")
    assert str(ours.value) == sentence


def test_a_missing_field_at_the_root_has_no_path() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"^Object missing required field `needed`$"):
        msgspec.convert({}, Outer)
    with pytest.raises(ConfigError, match=r"^a\.needed is not given; it is needed: an integer$"):
        convert({}, Outer, within="a")
