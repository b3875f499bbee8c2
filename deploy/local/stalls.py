"""Which stage stands still, said from outside: a service that is gone or hangs cannot say it itself."""

from collections.abc import Mapping
from typing import Any, Final

from deploy.config.shared import SERVICES

OUTPUT: Final = {
    "producer": "rollouts",
    "rewards": "scores",
    "groups": "groups",
    "batches": "batches",
    "learner": "steps",
}
"""Stage → the topic that it writes to."""

_QUIET_S: Final = 10.0
"""A stage that has input and wrote nothing for this long is named, also where it answers."""


def stalls(
    states: Mapping[str, str], lag: Mapping[str, int], readers: Mapping[str, str], ages_s: Mapping[str, float]
) -> list[str]:
    """A sentence for each process that does not answer, and each stage that has input and writes nothing. Pure.

    `states`: process → `ready`, `starting`, `not running` or `does not answer`; `lag`: topic → records that its reader
    has not finished; `readers`: topic → stage; `ages_s`: topic → seconds since its newest record.
    """
    told = []
    waiting = {stage: (topic, lag.get(topic, 0)) for topic, stage in readers.items()}
    for service in SERVICES:
        own = [name for name in states if name.partition("-")[0] == service]
        silent = [name for name in own if states[name] in ("not running", "does not answer")]
        topic, records = waiting.get(service, ("", 0))
        output = OUTPUT.get(service)
        age_s = ages_s.get(output or "")
        quiet = f"; nothing was written to {output} since {age_s:.0f} s" if age_s is not None else ""
        has = f"; {records} records of {topic} are not finished" if records else ""
        told += [f"{name} {_verb(states[name])}{has}{quiet}" for name in silent]
        if not silent and records and age_s is not None and age_s > _QUIET_S:
            told.append(f"{service} has {records} records of {topic} in hand or before it{quiet}")
    return told


def state_of(answer: Mapping[str, Any] | None, pid: int | None) -> str:
    """One word or three on a process: what it answered, and its process id if it is there."""
    if answer is not None:
        return "ready" if answer["ready"] else "starting"
    return "not running" if pid is None else "does not answer"


def _verb(state: str) -> str:
    return "does not answer" if state == "does not answer" else "is not running"
