"""The settings that are judged without torch are those that the equations take, and a user's own function is one."""

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import torch

from learner import losses
from learner.errors import ModelError
from learner.losses.corrections import KINDS
from learner.objective_settings import CORRECTIONS, Correction, CustomCorrection, CustomObjective, Objective, kind_of
from learner.settings import LearnerSettings
from learner.training.step import build_objective

OWN = """
import torch
from learner.losses import Surrogate, TokenBatch
from learner.losses.surrogate import token_mean

def reinforce(batch: TokenBatch, *, scale: float = 1.0) -> Surrogate:
    weight, denominator = token_mean(batch)
    ratio = torch.exp(batch.logp.detach() - batch.logp_old)
    return Surrogate(scale * batch.advantage * batch.logp, weight, denominator, ratio, torch.zeros_like(ratio,
    dtype=torch.bool))

def half(batch: TokenBatch) -> torch.Tensor:
    return torch.full_like(batch.logp, 0.5)
"""


def test_settings_choices_and_equations_name_the_same() -> None:
    structs = {kind_of_class(kind): kind for kind in get_args(Objective)}
    assert structs.keys() == losses.OBJECTIVES.keys() | {"custom"}
    for name, made in losses.OBJECTIVES.items():
        assert issubclass(made, structs[name])
    assert {kind_of_class(kind) for kind in get_args(Correction)} == {"none", "custom", *CORRECTIONS}
    assert CORRECTIONS.keys() == KINDS.keys()
    for name in CORRECTIONS:
        weigher = losses.correction(name)
        assert isinstance(weigher, losses.Correction)
        assert weigher.settings.level == next(iter(KINDS[name].ratios))


def kind_of_class(kind: Any) -> str:
    return str(kind.__struct_config__.tag)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("espo", {"alpha": 0, "boundaries": (0.5, 0.8), "ratio": "group_times_token"}),
        ("espo", {"boundaries": (), "epsilon": 1}),
        ("grpo", {"max_tokens": 64, "clip_high": float("inf")}),
        ("dapo", {"clip_low": 0.1}),
        ("gspo", {"clip_low": 3e-4, "clip_high": 4e-4}),
        ("cispo", {"clip_high": 5}),
        ("gmpo", {}),
    ],
)
def test_what_is_taken_makes_the_objective(name: str, given: dict[str, Any]) -> None:
    settings = msgspec.convert({"model": "m", "objective": {"kind": name, **given}}, LearnerSettings)
    assert kind_of(settings.objective) == name
    made = build_objective(settings).policy
    assert {setting: getattr(made, setting) for setting in given} == given


def test_what_is_taken_makes_the_correction() -> None:
    settings = msgspec.convert(
        {"model": "m", "correction": {"kind": "tis", "high": 5, "level": "sequence"}}, LearnerSettings
    )
    made = build_objective(settings).correction
    assert isinstance(made, losses.Correction)
    assert (made.settings.low, made.settings.high, made.settings.level) == (0.0, 5, "sequence")


def test_an_objective_and_a_correction_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "own_losses_a.py").write_text(OWN)
    given = {"kind": "custom", "path": str(tmp_path)}
    settings = msgspec.convert(
        {
            "model": "m",
            "objective": {**given, "import": "own_losses_a:reinforce", "settings": {"scale": 2.0}},
            "correction": {**given, "import": "own_losses_a:half"},
        },
        LearnerSettings,
    )
    logp = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantage, seq = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([0, 0, 1])
    terms = build_objective(settings)(losses.TokenBatch(logp, logp.detach(), advantage, seq, 2))
    (gradient,) = torch.autograd.grad(terms.numerator.sum() / terms.denominator.sum(), logp)
    assert torch.allclose(gradient, -0.5 * 2.0 * advantage / 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"import": "no_such_module_anywhere:f"}, "module 'no_such_module_anywhere' cannot be imported"),
        ({"import": "own_losses_b:none_such"}, "has no function 'none_such'"),
        ({"settings": {"scal": 1.0}}, "takes others"),
        ({"path": "/nowhere/at/all"}, "which is no directory"),
        ({"import": "own_losses_c:f"}, "module 'own_losses_c' cannot be imported: expected"),
    ],
)
def test_a_function_that_cannot_be_had_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "own_losses_b.py").write_text(OWN)
    (tmp_path / "own_losses_c.py").write_text("def f(batch) return batch\n")
    table = {"kind": "custom", "path": str(tmp_path), "import": "own_losses_b:reinforce"} | changes
    settings = msgspec.convert({"model": "m", "objective": table}, LearnerSettings)
    with pytest.raises(ModelError, match=says):
        build_objective(settings)


def test_what_is_no_import_path_is_refused_without_importing() -> None:
    for kind in (CustomObjective, CustomCorrection):
        with pytest.raises(msgspec.ValidationError, match=r"import is 'my_losses\.loss'; allowed: module:function"):
            msgspec.convert({"kind": "custom", "import": "my_losses.loss"}, kind)
