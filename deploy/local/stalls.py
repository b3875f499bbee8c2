"""Which service stands still, judged from outside: a service that is gone or hangs cannot report it itself."""

from collections.abc import Mapping
from typing import Any, Final

from schemas.services import SERVICES

_QUIET_S: Final = 60.0
"""A service that has input and has written nothing for this long is named even if it answers. A batch of a real model
takes a minute, and a long response more: shorter, and healthy runs would be called stalled."""


def stalls(states: Mapping[str, str], lags: Mapping[str, Mapping[str, int]], ages_s: Mapping[str, float]) -> list[str]:
    """A sentence for each process that does not answer, and each service that has input and writes nothing. Pure.

    `states`: process → `ready`, `starting`, `silent`, `not running` or `does not answer`; `lags`: topic → service that
    commits it → records that it has not finished; `ages_s`: topic → seconds since its newest record. A service that
    answers is judged by its input alone: records of a further one (the aggregator's `prompts`) stay unfinished while a
    group is open.
    """
    found = []
    for name, service in SERVICES.items():
        own = [process for process in states if process.partition("-")[0] == name]
        silent = [process for process in own if states[process] in _VERBS]
        waiting = {topic: lags.get(topic, {}).get(name, 0) for topic in service.commits}
        held = " and ".join(f"{records} records of {topic}" for topic, records in waiting.items() if records)
        age_s = ages_s.get(service.output) if service.output != "prompts" else None
        quiet = f"; nothing was written to {service.output} since {age_s:.0f} s" if age_s is not None else ""
        has = f"; {held} are not finished" if held else ""
        found += [f"{process} {_VERBS[states[process]]}{has}{quiet}" for process in silent]
        if not silent and service.commits and waiting[service.input] and age_s is not None and age_s > _QUIET_S:
            found.append(
                f"{name} has {waiting[service.input]} records of {service.input} in flight or before it{quiet}"
            )
    return found


_VERBS: Final = {
    "not running": "is not running",
    "does not answer": "does not answer",
    "silent": "runs and no longer reads",
}
"""States in which a process does nothing, as a sentence says it."""


def state_of(answer: Mapping[str, Any] | None, pid: int | None) -> str:
    """A process's state, from what it answered (None: nothing) and its process id (None: it is not there)."""
    if answer is not None:
        return "silent" if answer.get("silent") else "ready" if answer["ready"] else "starting"
    return "not running" if pid is None else "does not answer"
