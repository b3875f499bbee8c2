"""Keeps the processes of a run alive on one machine, and leaves none behind.

    supervisor = Supervisor(units, policy, stop_s=20)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.keep(stopping))      # GaveUpError when a unit cannot be kept alive

A *unit* is started and stopped as one: one service process, or all ranks of the learner. A unit whose process ended
is restarted by `deploy.local.restarts`: at once where it had been at work, with back-off otherwise. Exit code 2
(the user's configuration) and too many quick failures end the run; what has its cause outside (exit code 75, or a
directory of `storage` that cannot be written) does not, however long it lasts. The units stop in their order and are
killed when `stop_s` is over. If this process itself is killed, the kernel kills its children (PR_SET_PDEATHSIG) and the
orphan reaper their process groups.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM

from deploy.errors import USAGE, DeployError
from deploy.local.causes import cause_of, killed_for_memory
from deploy.local.readiness import until_ready
from deploy.local.restarts import STRUCK, RestartPolicy, Restarts
from deploy.local.storage import storage_obstacle
from streams.processes.child import Child
from streams.processes.memory_kills import memory_kills
from streams.processes.orphan_reaper import OrphanReaper

logger = logging.getLogger(__name__)

EXIT_OUTSIDE = 75
"""Exit code of `streams.runtime.service` for a cause outside it; importing it from there would load Kafka clients."""

_SAY_S = 2.0
_KILLED_S = 10.0
_REAPER_S = 5.0
_MATE_S = 3.0
"""How long the other ranks may take to end when one has ended: they hang in a collective, so waiting longer is idle."""


class GaveUpError(DeployError):
    """A service that cannot be kept alive. The message names it, its exit code and its last line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class ProcessSpec:
    """One process to start."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    pid_file: Path
    health: Path | None = None
    """The file that names the port of its readiness probe; None: it is ready as soon as it runs."""


@dataclass(frozen=True)
class Unit:
    """Processes that are started, restarted and stopped together."""

    service: str
    processes: tuple[ProcessSpec, ...]


@dataclass(frozen=True)
class _End:
    """How a unit ended: the process that ended first, for how long all had been ready, and the cause if outside."""

    name: str
    code: int | None
    cause: str
    log: Path
    served_s: float
    outside: str | None

    def __str__(self) -> str:
        if self.code is None:
            return f"{self.name} could not be started: {self.cause}"
        return f"{self.name} ended with {_code_text(self.code)}: {self.cause} (see {self.log})"


class Supervisor:
    """See the module. `note` is called with each sentence that the person at the screen should read."""

    def __init__(
        self,
        units: Sequence[Unit],
        policy: RestartPolicy,
        *,
        stop_s: float,
        note: Callable[[str], None] = logger.warning,
        storage: Sequence[Path] = (),
    ) -> None:
        self._units = list(units)
        self._policy = policy
        self._stop_s = stop_s
        self._note = note
        self._storage = tuple(storage)
        self._children: dict[str, list[Child]] = {unit.service: [] for unit in units}
        self._killed = asyncio.Event()
        self._memory_kills = 0
        self._reaper: OrphanReaper | None = None
        self.restarts: dict[str, int] = {unit.service: 0 for unit in units}

    async def keep(self, stopping: asyncio.Event) -> None:
        """Starts every unit and keeps it alive until `stopping` is set; everything has ended when this returns.

        GaveUpError: a unit cannot be kept alive. ChildError: a process of an earlier run is still there.
        """
        self._reaper = OrphanReaper.of_groups()
        keepers = [asyncio.create_task(self._keep(unit, stopping), name=unit.service) for unit in self._units]
        waiting = asyncio.create_task(stopping.wait(), name="stopping")
        try:
            await asyncio.wait([*keepers, waiting], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.set()
            waiting.cancel()
            # Shielded: even when this call is cancelled, no process may be left behind.
            await asyncio.shield(self._stop())
            outcomes = await asyncio.gather(*keepers, return_exceptions=True)
            self._reaper.close(_REAPER_S)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def kill(self) -> None:
        """Ends every process at once."""
        self._killed.set()
        for child in self._living():
            child.kill()

    def _living(self) -> list[Child]:
        return [child for children in self._children.values() for child in children if child.alive()]

    async def _keep(self, unit: Unit, stopping: asyncio.Event) -> None:
        restarts = Restarts(self._policy)
        while not stopping.is_set():
            end = await self._live_once(unit, stopping)
            if stopping.is_set():
                return
            if end.code == USAGE:
                raise GaveUpError(str(end), USAGE)
            delay_s = restarts.failed(end.served_s, end.outside is not None, end.code in STRUCK)
            if delay_s is None:
                raise GaveUpError(f"gave up on {unit.service} after {restarts.quick} quick failures: {end}", 1)
            self.restarts[unit.service] += 1
            cause = f"; the cause lies outside ({end.outside})" if end.outside is not None else ""
            if delay_s and not cause and end.served_s >= self._policy.quick_s:
                often = f"{restarts.deaths} times within {self._policy.window_s:g} s"
                cause = f"; it died {often}, each time after it was ready"
            self._note(f"{end}{cause}; starting it again {f'in {delay_s:g} s' if delay_s else 'at once'}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await stopping.wait()

    async def _live_once(self, unit: Unit, stopping: asyncio.Event) -> _End:
        """Starts the unit and waits until all of it has ended; how the first of it did."""
        children = self._children[unit.service]
        children.clear()
        kills = memory_kills() or 0
        sizes = {spec.name: spec.log.stat().st_size if spec.log.exists() else 0 for spec in unit.processes}
        for spec in unit.processes:
            try:
                child = Child.start(spec.argv, log=spec.log, pid_file=spec.pid_file, env=spec.env, name=spec.name)
            except OSError as error:
                # No room for its log or its pid file, or no process to be had.
                await self._abandon(children)
                return _End(spec.name, None, str(error), spec.log, 0.0, str(error.strerror))
            children.append(child)
            self._orphans().add(child.pid)
        ready = asyncio.create_task(_all_ready(unit.processes, children), name=f"{unit.service} becomes ready")
        try:
            first, ended_s = await self._until_ended(children, stopping)
        finally:
            ready.cancel()
        served_s = max(0.0, ended_s - ready.result()) if ready.done() and not ready.cancelled() else 0.0
        outside = None if stopping.is_set() else await self._outside_cause(first, served_s)
        cause = cause_of(first.log, sizes[first.name])
        if first.returncode == -SIGKILL and self._memory_kill_since(kills):
            cause = killed_for_memory(unit.service)
        return _End(first.name, first.returncode, cause, first.log, served_s, outside)

    def _memory_kill_since(self, kills: int) -> bool:
        """Whether the kernel has killed for memory since it had `kills` times; each of its kills explains one end."""
        explained = max(kills, self._memory_kills)
        found = (memory_kills() or 0) > explained
        self._memory_kills = explained + found
        return found

    async def _outside_cause(self, child: Child, served_s: float) -> str | None:
        if child.returncode == EXIT_OUTSIDE:
            return "as its exit code says"
        if served_s >= self._policy.quick_s and child.returncode in STRUCK:
            return None  # it is started again at once
        return await asyncio.to_thread(storage_obstacle, self._storage)

    async def _abandon(self, children: Sequence[Child]) -> None:
        await _end_all(children, _MATE_S, self._killed)
        for child in children:
            self._orphans().remove(child.pid)

    async def _until_ended(self, children: Sequence[Child], stopping: asyncio.Event) -> tuple[Child, float]:
        """Waits until all have ended; returns the one that ended first, and when, by the monotonic clock (seconds)."""
        ends = {asyncio.create_task(child.ended(), name=f"end of {child.name}"): child for child in children}
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        first, ended_s = next(child for end, child in ends.items() if end in done), time.monotonic()
        if not stopping.is_set():
            await _end_all(children, _MATE_S, self._killed)
        await asyncio.gather(*ends)
        for child in children:
            self._orphans().remove(child.pid)
        return first, ended_s

    def _orphans(self) -> OrphanReaper:
        assert self._reaper is not None
        return self._reaper

    async def _stop(self) -> None:
        """Stops the units in order, each with its share of `stop_s` before the next is stopped too; then kills all."""
        deadline = time.monotonic() + self._stop_s
        share_s = self._stop_s / (1 + len(self._units))
        for unit in self._units:
            for child in self._children[unit.service]:
                child.send(SIGTERM)
            await _wait_ended(self._children[unit.service], share_s, self._killed)
        everyone = [child for children in self._children.values() for child in children]
        await _wait_ended(everyone, min(_SAY_S, max(0.0, deadline - time.monotonic())), self._killed)
        left_s = deadline - time.monotonic()
        if (late := [child.name for child in everyone if child.alive()]) and left_s > 1 and not self._killed.is_set():
            # A rank finishes the step that it is in: it may take as long as a step takes.
            self._note(f"waiting for {', '.join(late)} to finish, {left_s:.0f} s at most")
        await _wait_ended(everyone, max(0.0, left_s), self._killed)
        for child in everyone:
            if child.alive() and not self._killed.is_set():
                self._note(f"{child.name} did not stop within {self._stop_s:g} s and is killed: {cause_of(child.log)}")
            child.kill()
        await _wait_ended(everyone, _KILLED_S, asyncio.Event())


async def _all_ready(specs: Sequence[ProcessSpec], children: Sequence[Child]) -> float:
    """Waits until every process is ready; returns when that was, by the monotonic clock (seconds)."""
    for spec, child in zip(specs, children, strict=True):
        if spec.health is not None:
            await until_ready(spec.health, child.pid)
    return time.monotonic()


async def _end_all(children: Sequence[Child], patience_s: float, killed: asyncio.Event) -> None:
    """SIGTERM to each; after `patience_s` seconds, or once `killed` is set, SIGKILL to the groups of those alive."""
    for child in children:
        child.send(SIGTERM)
    await _wait_ended(children, patience_s, killed)
    for child in children:
        child.kill()
    await _wait_ended(children, _KILLED_S, asyncio.Event())


async def _wait_ended(children: Sequence[Child], patience_s: float, killed: asyncio.Event) -> None:
    """Until all have ended, `patience_s` have passed, or `killed` is set."""
    ends = [asyncio.create_task(child.ended()) for child in children if child.alive()]
    if not ends:
        return
    everyone = asyncio.create_task(_gathered(ends))
    killing = asyncio.create_task(killed.wait())
    try:
        await asyncio.wait({everyone, killing}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (everyone, killing, *ends):
            task.cancel()
        await asyncio.gather(everyone, killing, *ends, return_exceptions=True)


async def _gathered(ends: Sequence[asyncio.Task[int]]) -> bool:
    await asyncio.wait(ends)
    return True


def _code_text(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
