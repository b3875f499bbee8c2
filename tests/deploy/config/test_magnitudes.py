"""Numbers that mean infinity or nothing are refused, whatever section they are in."""

from pathlib import Path

import pytest

from deploy.cli.commands.demo import DEMO
from deploy.config.preflight import check
from deploy.config.run import load
from deploy.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.retention_h=inf", "run.retention_h is inf; allowed: a finite number"),
        ("run.retention_h=nan", "run.retention_h is nan; allowed: a finite number"),
        ("run.retention_h=1e-9", "run.retention_h is 1e-09; allowed: 0.1 to 1,000,000 hours"),
        ("run.retention_h=1e300", "run.retention_h is 1e+300; allowed: 0.1 to 1,000,000 hours"),
        ("dispatcher.sampling.temperature=inf", "dispatcher.sampling.temperature is inf; allowed: a finite number"),
        ("rewards.timeout_s=1e-9", "rewards.timeout_s is 1e-09; allowed: 0.001 to 100,000,000 seconds"),
        ("producer.request_timeout_s=1e300", "producer.request_timeout_s is 1e+300; allowed: 0.001 to"),
        ("dispatcher.group_timeout_s=inf", "dispatcher.group_timeout_s is inf; allowed: a finite number"),
        ("rewards.length.weight=inf", "rewards.length.weight is inf; allowed: a finite number"),
        ("learner.optimizer.learning_rate=inf", "learning_rate is inf"),
        ("prompts.weight=inf", "prompts.weight is inf; allowed: a finite number"),
    ],
)
def test_it_is_one_sentence(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check(load(DEMO, directory=tmp_path, overrides=[override]))
    assert said in str(raised.value)


def test_an_infinite_bound_of_the_learner_is_none_and_zero_hours_are_indefinite(tmp_path: Path) -> None:
    config = load(DEMO, directory=tmp_path, overrides=["learner.optimizer.max_grad_norm=inf", "run.retention_h=0"])
    assert config.run.retention_h == 0


def test_records_outlast_the_groups_that_they_are_of(tmp_path: Path) -> None:
    overrides = ["run.retention_h=0.2", "dispatcher.group_timeout_s=3600"]
    with pytest.raises(ConfigError, match=r"^run\.retention_h is 0\.2; allowed: 0 \(indefinitely\), or at least 1"):
        check(load(DEMO, directory=tmp_path, overrides=overrides))
