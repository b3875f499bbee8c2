"""Learner settings as tests give them: flat, with the names that a `--set` may use."""

from typing import Any

import msgspec

from deploy.config.old_keys import current
from learner.settings import LearnerSettings


def learner_settings(**given: Any) -> LearnerSettings:
    """`learner_settings(model="m", objective="grpo", learning_rate=1e-2)`. ValueError: values that do not fit."""
    return msgspec.convert(current({"learner": {"model": "m", **given}})["learner"], LearnerSettings)
