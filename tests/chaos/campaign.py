"""A campaign: blows by schedule, then calm, then the verdict: audit, and whether training matches the log to the bit.

verdict = await Campaign(directory).run(schedule(seed=1, count=300, gap_s=0.6))
print(verdict.table()); verdict.findings       # nothing, if delivery holds
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Final

from deploy.audit import Audit
from deploy.auditing import audit_of
from deploy.runlog import RunLog
from deploy.sharing import SERVICES
from schemas import BatchPlanned
from streams import faults
from streams.blobs import BlobStore
from streams.fetch import RecordFetcher
from streams.log import Log, LogSettings
from tests.chaos.pipeline import GROUPS_PER_BATCH, PARTITIONS, REPLICAS, Pipeline
from tests.chaos.progress import Progress
from tests.chaos.schedule import BROKER, Blow
from tests.chaos.stepper import State, fingerprint, trained
from tests.chaos.verdict import Verdict

_POINT_S: Final = 8.0
"""An armed point that is not reached within this long is taken back: its window was not passed."""
_WARM_S: Final = 60.0
_QUIET_S: Final = 90.0
_LOOK_S: Final = 0.02
_SUCCESSOR_S: Final = 15.0


class Campaign:
    """One campaign in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blows: Counter[str] = Counter()
        self._missed: Counter[str] = Counter()
        self._armed: dict[tuple[str, str], float] = {}
        self._acts: set[asyncio.Task[None]] = set()

    async def run(self, blows: Iterable[Blow]) -> Verdict:
        """One blow after the other; everything has ended on return."""
        began = time.monotonic()
        async with Pipeline(self._directory) as pipeline:
            self._pipeline = pipeline
            self._progress = Progress(pipeline.broker.bootstrap, pipeline.config.run.id, PARTITIONS, dict(REPLICAS))
            following = asyncio.create_task(self._progress.follow())
            try:
                await self._progress.until("for the first steps", lambda: len(self._progress.steps) >= 3, _WARM_S)
                for blow in blows:
                    await self._pass_time(blow.after_s)
                    self._start(blow)
                await self._calm()
                await self._drain()
                audit = await asyncio.to_thread(
                    lambda: audit_of(RunLog(pipeline.broker.bootstrap, pipeline.config.run.id))
                )
                findings = [*self._progress.contradictions, *self._faults_of(audit), *await self._untrue_steps()]
                await pipeline.stop()
            finally:
                following.cancel()
            return Verdict(
                self._blows,
                self._missed,
                self._progress.recoveries,
                pipeline.ends,
                audit,
                findings,
                time.monotonic() - began,
                self._progress.records,
                self._progress.repeated_steps,
            )

    async def _pass_time(self, seconds: float) -> None:
        """Waits, and meanwhile takes note of the fault points that were reached."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            self._note_fired()
            self._pipeline.check()
            for act in [act for act in self._acts if act.done()]:
                self._acts.discard(act)
                act.result()
            await asyncio.sleep(min(_LOOK_S, left_s))

    def _note_fired(self) -> None:
        for service, point, at_s in faults.fired(self._pipeline.faults):
            self._armed.pop((service, point), None)
            # With two replicas it is not known here which one died: either's progress may be the other's.
            name = service if service not in REPLICAS else f"{service}-0"
            self._count(f"point {point} in {service}", name, at_s)
        for (service, point), since_s in list(self._armed.items()):
            if time.monotonic() - since_s > _POINT_S:
                (self._pipeline.faults / f"{service}:{point}.armed").unlink(missing_ok=True)
                del self._armed[service, point]
                self._missed[f"{point} in {service}"] += 1

    def _count(self, blow: str, name: str, at_s: float, since_s: float | None = None) -> None:
        self._blows[blow] += 1
        self._progress.hit(blow, name, at_s, since_s)

    def _start(self, blow: Blow) -> None:
        service = blow.target.partition("-")[0]
        match blow.kind:
            case "point":
                faults.arm(self._pipeline.faults, service, blow.detail, "kill", blow.hit)
                self._armed[service, blow.detail] = time.monotonic()
            case "kill" if blow.target == BROKER:
                self._act(self._kill_broker())
            case "kill":
                at_s = time.time()
                if self._pipeline.send(blow.target, SIGKILL):
                    self._count(f"kill {service}", blow.target, at_s)
            case "term":
                self._act(self._terminate(blow.target))
            case "pause":
                self._act(self._pause(blow))
            case "zombie":
                self._act(self._zombie(blow))
            case "network":
                self._act(self._network(blow))
            case "disk":
                self._act(self._fill_disk(blow))
            case _:
                raise ValueError(f"blow {blow.kind!r} is not one of kill, point, term, pause, zombie, network, disk")

    def _act(self, act: "asyncio.Future[None] | object") -> None:
        self._acts.add(asyncio.ensure_future(act))  # type: ignore[arg-type]

    async def _kill_broker(self) -> None:
        at_s = time.time()
        await asyncio.to_thread(self._pipeline.broker.kill)
        for name in self._pipeline.names():
            self._progress.hit("kill broker", name, at_s)
        self._blows["kill broker"] += 1
        await asyncio.to_thread(self._pipeline.broker.start)

    async def _terminate(self, name: str) -> None:
        pid, at_s = self._pipeline.pid(name), time.time()
        if pid is None or not self._pipeline.send(name, SIGTERM):
            return
        await self._progress.until(
            f"for {name} to end after SIGTERM", lambda: self._pipeline.pid(name) not in (pid, None), 30.0
        )
        self._count(f"term {name.partition('-')[0]}", name, at_s, time.time())

    async def _pause(self, blow: Blow) -> None:
        if not self._pipeline.send(blow.target, SIGSTOP):
            return
        await asyncio.sleep(blow.lasts_s)
        at_s = time.time()
        self._pipeline.send(blow.target, SIGCONT)
        for name in self._pipeline.names() if blow.target == BROKER else [blow.target]:
            self._progress.hit(f"pause {blow.target.partition('-')[0]}", name, at_s)
        self._blows[f"pause {blow.target.partition('-')[0]}"] += 1

    async def _zombie(self, blow: Blow) -> None:
        """The process stands still, a successor takes over, the process goes on: it is fenced, or both work alike."""
        pid = self._pipeline.pid(blow.target)
        if pid is None or not self._pipeline.send(blow.target, SIGSTOP):
            return
        at_s = time.time()
        successor = self._pipeline.intrude(blow.target)
        self._count(f"zombie {blow.target.partition('-')[0]}", blow.target, at_s, at_s + 0.001)
        end_s = time.monotonic() + _SUCCESSOR_S
        while time.monotonic() < end_s and not await self._pipeline.is_ready(blow.target, successor.pid):
            await asyncio.sleep(0.1)
        await asyncio.sleep(blow.lasts_s)
        self._pipeline.send(blow.target, SIGCONT)
        await asyncio.sleep(3.0)
        await asyncio.to_thread(successor.stop, 10.0)

    async def _network(self, blow: Blow) -> None:
        proxy, at_s = self._pipeline.proxies[blow.target], time.time()
        match blow.detail:
            case "stall":
                proxy.stall()
            case "reset":
                proxy.reset()
            case "throttle":
                proxy.throttle(50_000.0)
            case "refuse":
                proxy.refuse()
            case _:
                raise ValueError(f"network fault {blow.detail!r} is not one of stall, reset, throttle, refuse")
        if blow.detail != "reset":
            await asyncio.sleep(blow.lasts_s)
            at_s = time.time()
            proxy.go_on()
        self._count(f"network {blow.detail} {blow.target.partition('-')[0]}", blow.target, at_s)

    async def _fill_disk(self, blow: Blow) -> None:
        """Blob store and checkpoints have no room for a while."""
        disk = self._pipeline.disk
        if not disk.mounted:
            return
        await asyncio.to_thread(disk.fill)
        await asyncio.sleep(blow.lasts_s)
        at_s = time.time()
        disk.free()
        self._count("disk full", blow.target, at_s)

    async def _calm(self) -> None:
        """No more blows: what is under way ends, and every service makes progress once more."""
        await self._pass_time(1.0)
        faults.disarm(self._pipeline.faults)
        if self._acts:
            await asyncio.wait(self._acts, timeout=60.0)
        await self._pass_time(0.1)
        before = len(self._progress.steps)
        await self._progress.until(
            "for steps after the last blow", lambda: len(self._progress.steps) > before + 3, _QUIET_S
        )

    async def _drain(self) -> None:
        """Everything stops and starts again without a dispatcher; what was asked for comes to its end."""
        await self._pipeline.stop()
        self._pipeline.serve([service for service in SERVICES if service != "dispatcher"])
        progress = self._progress
        await progress.until("for every group to end", lambda: not progress.open_groups(), _QUIET_S)
        await progress.until(
            "for every batch to be trained", lambda: len(progress.steps) == len(progress.batches), _QUIET_S
        )
        await self._settled()
        self._note_fired()

    async def _settled(self) -> None:
        """Until no stage writes any more: the last stragglers are scored and disposed of."""
        seen, quiet_since = progress_mark(self._progress), time.monotonic()
        while time.monotonic() - quiet_since < 2.0:
            await asyncio.sleep(0.1)
            if (now := progress_mark(self._progress)) != seen:
                seen, quiet_since = now, time.monotonic()

    def _faults_of(self, audit: Audit) -> Iterator[str]:
        progress = self._progress
        yield from (f"{finding.rollout}: {finding.what}" for finding in audit.findings)
        yield from (f"trained twice: {name}" for name in audit.trained_twice_ids)
        yield from (f"group {name} was asked for {n} times" for name, n in progress.requested.items() if n > 1)
        yield from (f"request number {number} is there {n} times" for number, n in progress.sequences.items() if n > 1)
        missing = set(range(len(progress.sequences))) - progress.sequences.keys()
        yield from (f"request number {number} is missing" for number in sorted(missing))
        yield from (f"group {name} ended {n} times" for name, n in progress.closed.items() if n > 1)
        yield from (f"group {name} never ended" for name in progress.open_groups())
        yield from (f"batch {number} is there {n} times" for number, n in progress.batches.items() if n > 1)
        yield from (f"nothing came from {who}" for who in progress.unrecovered() if not who.startswith("dispatcher"))
        waiting = {where: count for where, count in audit.in_flight_waiting.items() if count}
        left = waiting.pop("for a batch", 0)
        if left >= GROUPS_PER_BATCH * 4:
            yield f"{left} rollouts wait for a batch, which is more than less than a batch"
        yield from (f"{count} rollouts wait {where} after everything was drained" for where, count in waiting.items())

    async def _untrue_steps(self) -> list[str]:
        """Training again from the log alone, without interruption, must give every step's weights."""
        config = self._pipeline.config
        log = Log(LogSettings(self._pipeline.broker.bootstrap, config.run.id, PARTITIONS), "verifier")
        run_log = RunLog(self._pipeline.broker.bootstrap, config.run.id)
        events = await asyncio.to_thread(lambda: [event for event, _ in run_log.events("batches")])
        plans = [event for event in events if isinstance(event, BatchPlanned)]
        state, blobs, untrue = State(), BlobStore(config.layout.blob_uri), []
        async with RecordFetcher(log, "rollouts") as fetcher:
            for plan in plans:
                records = await fetcher.fetch([sequence.rollout for sequence in plan.sequences], 30.0)
                weights = trained(state.weights, plan, records, blobs)
                state = State(state.step + 1, 0, weights)
                said = self._progress.steps.get(state.step)
                if said is None or said.metrics["weights"] != fingerprint(weights):
                    untrue.append(f"step {state.step} says {said and said.metrics}, the log {fingerprint(weights)}")
        return untrue


def progress_mark(progress: Progress) -> int:
    """A number that changes with every record."""
    return progress.records.total()
