"""How a run stands, asked from outside: what each process says of itself, and which of them should be there."""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from deploy.config.layout import process_name
from deploy.config.run import RunConfig
from deploy.local.stalls import stalls, state_of
from schemas.services import SERVICES
from streams.processes.child import running_pid

_ANSWER_S: Final = 3.0
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Not by way of $http_proxy, which cannot reach this machine's loopback."""

_ASK_EVERY_S: Final = 2.0
_STALLED_S: Final = 30.0
"""A process that has been up and does nothing for so long is worth a sentence; one that is started again is not."""


def answers(config: RunConfig) -> dict[str, dict[str, Any] | None]:
    """Process → its own status report; None where it does not run or does not answer. Blocks."""
    return {name: ask(config.layout.health / f"{name}.json") for name in expected(config)}


def states_of(config: RunConfig, answered: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """Process → `ready`, `starting`, `silent`, `not running` or `does not answer`."""
    return {name: state_of(answer, running_pid(config.layout.pid_file(name))) for name, answer in answered.items()}


def ask(health_file: Path) -> dict[str, Any] | None:
    """A service's own status report; None where it does not run or does not answer."""
    try:
        port = int(json.loads(health_file.read_text())["port"])
        with _DIRECT.open(f"http://127.0.0.1:{port}/status", timeout=_ANSWER_S) as answer:
            status: dict[str, Any] = json.load(answer)
            return status
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


def expected(config: RunConfig) -> list[str]:
    """The processes of the configuration, and the replicas that have joined."""
    counts = {service: config.replicas_of(service) for service in SERVICES}
    configured = [process_name(name, k, count) for name, count in counts.items() for k in range(count)]
    elastic = (service.name for service in SERVICES.values() if service.scaling == "elastic")
    joined = {path.stem for name in elastic for path in config.layout.health.glob(f"{name}-*.json")}
    return configured + sorted(joined - set(configured))


def finished(answered: Mapping[str, Mapping[str, Any] | None]) -> bool:
    """Whether the dispatcher says that the last step and the last held-back round are done."""
    return bool(((answered.get("dispatcher") or {}).get("gauges") or {}).get("finished"))


def states_in_words(states: Mapping[str, str], restarts: Mapping[str, int]) -> str:
    """`7 ready`, or `5 ready, producer starting, groups not running; restarts: producer 2`."""
    ready = Counter(states.values())["ready"]
    others = [f"{name} {state}" for name, state in states.items() if state != "ready"]
    said = ", ".join([f"{ready} ready", *others])
    again = ", ".join(f"{name} {n}" for name, n in restarts.items() if n)
    return f"{said}; restarts: {again}" if again else said


class Standing:
    """Asks again and again while the run is up. `in_words` is the newest answer, for the live view."""

    def __init__(
        self, config: RunConfig, restarts: Callable[[], Mapping[str, int]], note: Callable[[str], None]
    ) -> None:
        self.in_words = ""
        self._config = config
        self._restarts = restarts
        self._note = note
        self._served: set[str] = set()
        self._stalled_since_s: dict[str, float] = {}
        self._said: set[str] = set()

    async def until_finished(self, ends: bool) -> None:
        """Until the run is finished, where it `ends`; else until cancelled."""
        while True:
            answered = await asyncio.to_thread(answers, self._config)
            states = states_of(self._config, answered)
            self._note_stalls(states, time.monotonic())
            coming = {name: "starting" for name in states if name not in self._served}
            self.in_words = states_in_words(states | coming, self._restarts())
            if ends and finished(answered):
                return
            await asyncio.sleep(_ASK_EVERY_S)

    def _note_stalls(self, states: Mapping[str, str], now_s: float) -> None:
        self._served |= {name for name, state in states.items() if state == "ready"}
        stalled = {name: s for name, s in states.items() if name in self._served and s not in ("ready", "starting")}
        self._stalled_since_s = {name: self._stalled_since_s.get(name, now_s) for name in stalled}
        self._said &= stalled.keys()
        due = {
            name: state
            for name, state in stalled.items()
            if name not in self._said and now_s - self._stalled_since_s[name] >= _STALLED_S
        }
        self._said |= due.keys()
        for sentence in stalls(due, {}, {}):
            self._note(sentence)
