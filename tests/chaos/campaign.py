"""A campaign: blows by schedule, then calm, then the verdict: audit, and whether training matches the log to the bit.

verdict = await Campaign(directory, LIGHT).run(schedule(seed=1, count=300, gap_s=0.6))
print(verdict.table()); verdict.findings       # nothing, if delivery holds
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM
from typing import Final

from analysis.audit.result import Audit
from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from schemas.services import SERVICES
from streams import faults
from tests.chaos.pipeline import Pipeline
from tests.chaos.progress import Progress
from tests.chaos.schedule import BROKER, FULL_POINTS, POINTS, Blow
from tests.chaos.shape import GROUPS_PER_BATCH, LEARNER, PARTITIONS, REPLICAS, Shape, heard_as
from tests.chaos.truth import untrue_digests, untrue_weights
from tests.chaos.verdict import Verdict

_LOOK_S: Final = 0.02
_SUCCESSOR_S: Final = 15.0


class Campaign:
    """One campaign in `directory`."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self._directory = directory
        self._shape = shape
        self._blows: Counter[str] = Counter()
        points = POINTS if LEARNER in shape.stand_ins else FULL_POINTS
        # With a row for each, whether the seed aims at it or not.
        self._missed = Counter({f"point {point} in {name}": 0 for name, each in points.items() for point in each})
        self._armed: dict[tuple[str, str], float] = {}
        self._acts: set[asyncio.Task[None]] = set()

    async def run(self, blows: Iterable[Blow]) -> Verdict:
        """One blow after the other; everything has ended on return."""
        began = time.monotonic()
        async with Pipeline(self._directory, self._shape) as pipeline:
            self._pipeline = pipeline
            self._progress = Progress(pipeline.broker.bootstrap, pipeline.config.run.id, PARTITIONS, dict(REPLICAS))
            following = asyncio.create_task(self._progress.follow())
            try:
                await self._progress.until(
                    "for the first steps", lambda: len(self._progress.steps) >= 3, self._shape.warm_s
                )
                for blow in blows:
                    await self._pass_time(blow.after_s)
                    if blow.settled:
                        await self._settle()
                    self._start(blow)
                await self._calm()
                await self._drain()
                untrue = untrue_digests if LEARNER in self._shape.stand_ins else untrue_weights
                findings = await untrue(pipeline, self._progress)
                audit = await asyncio.to_thread(
                    lambda: audit_of(RunLog(pipeline.broker.bootstrap, pipeline.config.run.id))
                )
                findings = [*self._progress.contradictions, *self._faults_of(audit), *findings]
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
                len(self._progress.steps),
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
            if time.monotonic() - since_s > self._shape.point_s:
                (self._pipeline.faults / f"{service}:{point}.armed").unlink(missing_ok=True)
                del self._armed[service, point]
                self._missed[f"point {point} in {service}"] += 1

    def _count(self, blow: str, name: str, at_s: float, since_s: float | None = None) -> None:
        self._blows[blow] += 1
        self._progress.hit(blow, heard_as(name), at_s, since_s)

    def _start(self, blow: Blow) -> None:
        service = blow.target.partition("-")[0]
        match blow.kind:
            case "point":
                faults.arm(self._pipeline.faults, service, blow.detail, "kill", blow.hit)
                self._armed[service, blow.detail] = time.monotonic()
            case "kill" | "term" if blow.target == BROKER:
                self._act(self._end_broker(blow.kind))
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
            case "clock":
                self._act(self._jump(blow))
            case _:
                kinds = "kill, point, term, pause, zombie, network, disk, clock"
                raise ValueError(f"blow {blow.kind!r} is not one of {kinds}")

    def _act(self, act: "asyncio.Future[None] | object") -> None:
        self._acts.add(asyncio.ensure_future(act))  # type: ignore[arg-type]

    async def _end_broker(self, kind: str) -> None:
        if self._pipeline.broker.pid is None:
            return  # the blow before still starts it
        at_s = time.time()
        await asyncio.to_thread(self._pipeline.broker.kill if kind == "kill" else self._pipeline.broker.stop)
        self._hit_everybody(f"{kind} broker", at_s)
        await asyncio.to_thread(self._pipeline.broker.start)

    def _hit_everybody(self, blow: str, at_s: float) -> None:
        self._blows[blow] += 1
        for name in {heard_as(name) for name in self._pipeline.names()}:
            self._progress.hit(blow, name, at_s)

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
        said = f"pause {blow.target.partition('-')[0]}"
        if blow.target == BROKER:
            self._hit_everybody(said, at_s)
        else:
            self._count(said, blow.target, at_s)

    async def _zombie(self, blow: Blow) -> None:
        """The process stands still, a successor takes over, the process continues: it is fenced, or both work alike."""
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

    async def _jump(self, blow: Blow) -> None:
        """The wall clock of one process jumps, and later back."""
        at_s = time.time()
        self._pipeline.clocks.jump(blow.target, float(blow.detail))
        self._count(f"clock {blow.target.partition('-')[0]}", blow.target, at_s)
        await asyncio.sleep(blow.lasts_s)
        self._pipeline.clocks.jump(blow.target, 0.0)

    async def _settle(self) -> None:
        """Until what was armed has struck, and everybody who was hit has been heard of."""
        end_s = time.monotonic() + self._shape.quiet_s
        while self._armed or self._acts or self._missing():
            if time.monotonic() > end_s:
                self._progress.contradictions.append(f"not recovered in {self._shape.quiet_s:g} s: {self._missing()}")
                return
            await self._pass_time(0.1)

    def _missing(self) -> list[str]:
        """Whoever was hit and was not heard of since; the dispatcher has nothing to say where no group ends."""
        return [who for who in self._progress.unrecovered() if not who.startswith("dispatcher")]

    async def _calm(self) -> None:
        """No more blows: what is under way ends, and every service makes progress once more."""
        await self._pass_time(1.0)
        faults.disarm(self._pipeline.faults)
        if self._acts:
            await asyncio.wait(self._acts, timeout=60.0)
        await self._pass_time(0.1)
        before = len(self._progress.steps)
        await self._progress.until(
            "for steps after the last blow", lambda: len(self._progress.steps) > before + 3, self._shape.quiet_s
        )

    async def _drain(self) -> None:
        """Everything stops and starts again without a dispatcher; what was asked for comes to its end."""
        await self._pipeline.stop()
        self._pipeline.serve([service for service in SERVICES if service != "dispatcher"])
        progress = self._progress
        await progress.until("for every group to end", lambda: not progress.open_groups(), self._shape.quiet_s)
        await progress.until(
            "for every batch to be trained", lambda: len(progress.steps) == len(progress.batches), self._shape.quiet_s
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
        yield from (f"nothing came from {who}" for who in self._missing())
        waiting = {where: count for where, count in audit.in_flight_waiting.items() if count}
        left = waiting.pop("for a batch", 0)
        if left >= GROUPS_PER_BATCH * 4:
            yield f"{left} rollouts wait for a batch, which is more than less than a batch"
        yield from (f"{count} rollouts wait {where} after everything was drained" for where, count in waiting.items())


def progress_mark(progress: Progress) -> int:
    """A number that changes with every record."""
    return progress.records.total()
