from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from deploy.config.error_text import convert
from deploy.errors import ConfigError


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    mode: Literal["fast", "slow"] = "fast"


class Left(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="left"):
    path: Annotated[str, Meta(min_length=1)]


class Right(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="right"):
    size: int = 3


class Outer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    steps: Annotated[int, Meta(ge=1, description="steps")] = 1
    rate: float = 0.1
    flag: bool = False
    inner: Inner = Inner()
    names: tuple[str, ...] = ()
    limit: Annotated[int, Meta(ge=1)] | None = None
    source: Left | Right | None = None

    def __post_init__(self) -> None:
        if self.steps == 13:
            raise ValueError("steps 13 is bad luck")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"steps": "4"}, 'a.steps is "4"; allowed: an integer of at least 1'),
        ({"steps": 0}, "a.steps is 0; allowed: an integer of at least 1"),
        ({"steps": True}, "a.steps is true; allowed: an integer of at least 1"),
        ({"steps": 1.5}, "a.steps is 1.5; allowed: an integer of at least 1"),
        ({"rate": "x"}, 'a.rate is "x"; allowed: a number'),
        ({"flag": 1}, "a.flag is 1; allowed: true or false"),
        ({"inner": 3}, "a.inner is 3; allowed: a table"),
        ({"inner": {"share": 0}}, "a.inner.share is 0; allowed: a number above 0 and up to 1"),
        ({"inner": {"mode": "fats"}}, 'a.inner.mode is "fats"; allowed: "fast" or "slow" (did you mean "fast"?)'),
        ({"names": ["x", 3]}, "a.names[1] is 3; allowed: a string"),
        ({"limit": 0}, "a.limit is 0; allowed: an integer of at least 1"),
        ({"stesp": 3}, "a.stesp is 3, but there is no such key; did you mean a.steps?"),
        (
            {"zzz": 3},
            "a.zzz is 3, but there is no such key; allowed are flag, inner, limit, names, rate, source, steps",
        ),
        ({"source": {"kind": "left"}}, "a.source.path is not given; it is needed: a string"),
        ({"source": {"kind": "middle"}}, 'a.source.kind is "middle"; allowed: "left" or "right"'),
        ({"source": {"kind": "right", "size": "b"}}, 'a.source.size is "b"; allowed: an integer'),
        (
            {"source": {"kind": "right", "sice": 1}},
            "a.source.sice is 1, but there is no such key; did you mean a.source.size?",
        ),
        ({"steps": 13}, "a: steps 13 is bad luck"),
    ],
)  # fmt: skip
def test_error_is_one_line_with_key_value_and_what_is_allowed(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        convert(raw, Outer, within="a")
    assert str(caught.value) == sentence


def test_a_whole_number_serves_as_a_number() -> None:
    assert convert({"rate": 1}, Outer).rate == 1.0
