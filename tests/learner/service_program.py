"""One rank of the learner service on a real broker: what the zygote runs for "service"."""

import json
from functools import partial
from pathlib import Path

import msgspec

from learner.service import main
from learner.settings import LearnerSettings
from streams.context import RunContext
from streams.runtime.service import run_service


def run(told_context: str, told_settings: str) -> int:
    """Both are JSON; the exit code."""
    told = json.loads(told_context)
    context = RunContext(**{**told, "directory": Path(told["directory"])})
    settings = msgspec.json.decode(told_settings, type=LearnerSettings)
    return run_service("learner", context, partial(main, settings=settings))
