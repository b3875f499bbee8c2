"""One rank of the learner service on a real broker: what the zygote runs for "service"."""

import json
from functools import partial
from pathlib import Path

import msgspec

from learner.service import main
from learner.settings import LearnerSettings
from streams.context import RunContext
from streams.runtime.service import run_service


def run(context_json: str, settings_json: str) -> int:
    """Both are JSON; the exit code."""
    values = json.loads(context_json)
    context = RunContext(**{**values, "directory": Path(values["directory"])})
    settings = msgspec.json.decode(settings_json, type=LearnerSettings)
    return run_service("learner", context, partial(main, settings=settings))
