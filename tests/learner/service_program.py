"""One rank of the learner service on a real broker: `service_program.py CONTEXT SETTINGS`, both JSON."""

import json
import sys
from functools import partial
from pathlib import Path

from learner.service import main
from learner.settings import LearnerSettings
from streams.context import RunContext
from streams.service import run_service

if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    context = RunContext(**{**told, "directory": Path(told["directory"])})
    settings = LearnerSettings(**json.loads(sys.argv[2]))
    sys.exit(run_service("learner", context, partial(main, settings=settings)))
