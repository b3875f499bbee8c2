"""One rank of the learner service on a real broker: what the zygote runs for "service"."""

import json
from functools import partial
from pathlib import Path

from learner.service import main
from streams.context import RunContext
from streams.runtime.service import run_service
from tests.learner.settings import learner_settings


def run(context_json: str, settings_json: str) -> int:
    """Both are JSON; the exit code."""
    values = json.loads(context_json)
    context = RunContext(**{**values, "directory": Path(values["directory"])})
    settings = learner_settings(**json.loads(settings_json))
    return run_service("learner", context, partial(main, settings=settings))
