"""The schema that editors get says what the reading of a file says."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from deploy.cli.commands.demo import DEMO
from deploy.config.json_schema import json_schema

EXAMPLE = Path(__file__).parents[3] / "examples" / "running-sums" / "run.toml"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(json_schema())
    return Draft202012Validator(json_schema())


def test_the_files_that_ship_are_valid(validator: Draft202012Validator) -> None:
    for path in (DEMO, EXAMPLE):
        assert list(validator.iter_errors(tomllib.loads(path.read_text(encoding="utf-8")))) == []


def test_what_is_short_for_a_table_is_valid(validator: Draft202012Validator) -> None:
    tables = tomllib.loads(DEMO.read_text(encoding="utf-8"))
    tables["learner"] = {"objective": "gspo", "correction": "none", "schedule": "constant", "precision": "bf16"}
    assert list(validator.iter_errors(tables)) == []


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("learner", {"learning_rat": 1e-4}),
        ("learner", {"optimizer": {"learning_rate": -1.0}}),
        ("learner", {"ranks": 2}),
        ("learner", {"objective": {"kind": "espo", "clip": 1.0}}),
        ("run", {"samples": "8"}),
        ("prompts", {"path": 3}),
        ("sections", {}),
    ],
)
def test_what_a_file_may_not_say_is_not_valid(
    validator: Draft202012Validator, section: str, change: dict[str, Any]
) -> None:
    tables = copy.deepcopy(tomllib.loads(DEMO.read_text(encoding="utf-8")))
    tables.setdefault(section, {}).update(change)
    assert list(validator.iter_errors(tables)) != []
