import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.history import toml

SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.text())
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
TABLES = st.recursive(
    st.dictionaries(st.text(min_size=1), VALUES, max_size=4),
    lambda inner: st.dictionaries(st.text(min_size=1), inner | VALUES, max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_what_is_written_reads_back(tables: dict[str, Any]) -> None:
    assert tomllib.loads(toml.dumps(tables, comment="a comment\nof two lines")) == tables


def test_none_is_left_out_and_tables_in_lists_are_inline() -> None:
    text = toml.dumps({"a": {"b": None, "c": [{"d": 1}]}})
    assert text == "[a]\nc = [{d = 1}]\n"


def test_a_value_that_toml_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match="TOML cannot hold b'x' of type bytes"):
        toml.dumps({"a": b"x"})
