"""The settings that are judged without torch are those that the equations take."""

from typing import Any, get_args, get_type_hints

import pytest

from learner import losses
from learner.losses.corrections import KINDS
from learner.objective_settings import CORRECTIONS, OBJECTIVES, check_correction, check_objective
from learner.settings import LearnerSettings

CHOICES = get_type_hints(LearnerSettings)


def test_settings_choices_and_equations_name_the_same() -> None:
    assert set(get_args(CHOICES["objective"])) == OBJECTIVES.keys() == losses.OBJECTIVES.keys()
    for name, settings in OBJECTIVES.items():
        made = losses.OBJECTIVES[name]
        assert isinstance(made, type) and issubclass(made, settings)
    assert set(get_args(CHOICES["correction"])) == {"none", *CORRECTIONS} and CORRECTIONS.keys() == KINDS.keys()
    for name, defaults in CORRECTIONS.items():
        assert tuple(KINDS[name].ratios) == defaults.levels


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("espo", {"alpha": 0, "boundaries": [0.5, 0.8], "ratio": "group_times_token"}),
        ("espo", {"boundaries": [], "epsilon": 1}),
        ("grpo", {"max_tokens": 64, "clip_high": float("inf")}),
        ("dapo", {"clip_low": 0.1}),
        ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4}),
        ("cispo", {"clip_high": 5}),
        ("gmpo", {}),
    ],
)
def test_what_is_taken_makes_the_objective(name: str, given: dict[str, Any]) -> None:
    check_objective(name, given)
    made = losses.objective(name, **given).policy
    assert {setting: getattr(made, setting) for setting in given} == given


def test_what_is_taken_makes_the_correction() -> None:
    check_correction("tis", {"high": 5, "level": "sequence"})
    made = losses.correction("tis", high=5, level="sequence")
    assert isinstance(made, losses.Correction) and (made.low, made.high, made.level) == (0.0, 5, "sequence")
