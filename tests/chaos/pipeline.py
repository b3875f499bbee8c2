"""The pipeline under fire: real Kafka, the real services as processes of their own, each behind its own proxy.

Every service runs as `eachprompt run SERVICE`; in the light shape a recorded load stands in for the producer's engine
and a digest for the learner's model. The real supervisor restarts what ends, without back-off.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import psutil

from deploy.cli.commands.demo import DEMO
from deploy.config.layout import process_name
from deploy.config.run import RunConfig, load, read, toml_text
from deploy.local.processes import service_units
from deploy.local.restarts import RestartPolicy
from deploy.local.session import create_run_topics
from deploy.local.supervisor import ProcessSpec, Supervisor, Unit
from schemas.services import SERVICES
from streams import faults
from streams.broker import BrokerSettings
from streams.broker.kafka import KafkaBroker
from streams.processes.child import Child, running_pid
from tests.chaos.clocks import Clocks
from tests.chaos.disk import SmallDisk
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import BROKER, ENGINE
from tests.chaos.shape import Shape

ROOT: Final = Path(__file__).parents[2]
_AT_ONCE: Final = RestartPolicy(first_s=0.02, max_s=0.02, quick_s=1e-6, quick_failures=1_000_000)


class Pipeline:
    """Use as an async context: everything runs inside, nothing is left after."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.directory = directory
        self._shape = shape
        self.faults = directory / "faults"
        self.broker = KafkaBroker(BrokerSettings(kind="kafka", heap_mib=512), directory)
        self.proxies: dict[str, Proxy] = {}
        self.ends: Counter[str] = Counter()
        self._stopping = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._intruders: list[Child] = []
        self.disk = SmallDisk(directory / "disk", shape.disk_mib)
        self.clocks = Clocks(directory / "clocks")

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def _start(self) -> None:
        # Blobs and checkpoints lie on a disk of their own, which can be filled.
        self.disk.open()
        for name in ("blobs", "checkpoints"):
            (self.disk.path / name).mkdir(exist_ok=True)
            (self.directory / name).symlink_to(self.disk.path / name)
        await asyncio.to_thread(self.broker.start)
        host, _, port = self.broker.bootstrap.partition(":")
        self.config = self._configure()
        await asyncio.to_thread(create_run_topics, self.config, self.broker.bootstrap)
        self.faults.mkdir(parents=True, exist_ok=True)
        for name in self.names():
            self.proxies[name] = Proxy(host, int(port))
            await self.proxies[name].open()
        self.serve(tuple(SERVICES))

    async def _close(self) -> None:
        await self.stop()
        for intruder in self._intruders:
            intruder.kill()
            intruder.wait(5)
        for proxy in self.proxies.values():
            await proxy.close()
        await asyncio.to_thread(self.broker.stop)
        self.disk.close()

    def names(self) -> list[str]:
        """The processes' names."""
        counts = {service: self.config.replicas_of(service) for service in SERVICES}
        return [process_name(service, k, count) for service, count in counts.items() for k in range(count)]

    def serve(self, services: Sequence[str]) -> None:
        """Run these services and keep them alive until `stop`."""
        self._stopping = asyncio.Event()
        units = [unit for service in services for unit in self._units(service)]
        supervisor = Supervisor(units, _AT_ONCE, stop_s=20.0, note=self._note)
        self._keeping = asyncio.create_task(supervisor.keep(self._stopping))

    async def stop(self) -> None:
        """SIGTERM to every service, in order, and wait for their ends."""
        self._stopping.set()
        if self._keeping is not None:
            await self._keeping
            self._keeping = None

    def check(self) -> None:
        """Raises what ended the supervisor, if anything did."""
        if self._keeping is not None and self._keeping.done():
            self._keeping.result()

    def _units(self, service: str) -> list[Unit]:
        """How the processes of a service are started, and which of them live and die together."""
        return [
            Unit(unit.service, tuple(self._behind_proxy(service, spec) for spec in unit.processes))
            for unit in service_units(self.config, service)
        ]

    def pid(self, name: str) -> int | None:
        """The process that is `name`: a service's, the broker's, or the engine core's below the producer."""
        if name == BROKER:
            return self.broker.pid
        if name == ENGINE:
            return _engine_core(self.pid("producer"))
        return running_pid(self.config.layout.pid_file(name))

    def send(self, name: str, number: signal.Signals) -> bool:
        """Signal a process; False where it does not run just now."""
        pid = self.pid(name)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def intrude(self, name: str) -> Child:
        """A second instance of a service, which fences the first."""
        units = self._units(name.partition("-")[0])
        (spec,) = [spec for unit in units for spec in unit.processes if spec.name == name]
        log = spec.log.with_name(f"{name}-intruder.log")
        child = Child.start(spec.argv, log=log, env=spec.env, name=f"{name} intruder")
        self._intruders.append(child)
        return child

    async def is_ready(self, name: str, pid: int) -> bool:
        """Whether process `pid` is the one that serves as `name` and says that it is ready."""
        path = self.config.layout.health / f"{name}.json"
        try:
            said = json.loads(path.read_text())
            if said["pid"] != pid:
                return False
            async with asyncio.timeout(2.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", said["port"])
                writer.write(b"GET /ready HTTP/1.0\r\n\r\n")
                status = await reader.readline()
                writer.close()
        except (OSError, ValueError, TimeoutError):
            return False
        return b" 200 " in status

    def _behind_proxy(self, service: str, spec: ProcessSpec) -> ProcessSpec:
        bootstrap = f"127.0.0.1:{self.proxies[spec.name].port}"
        argv = (*spec.argv, "--set", f'broker.bootstrap_servers="{bootstrap}"')
        if (module := self._shape.stand_ins.get(service)) is not None:
            argv = (sys.executable, "-m", module, str(self.directory), "0", "1", bootstrap)
        env = {**spec.env, faults.VARIABLE: str(self.faults), **self.clocks.environment(spec.name, ROOT)}
        return dataclasses.replace(spec, argv=argv, env=env)

    def _configure(self) -> RunConfig:
        tables = read(DEMO)
        for section, values in self._shape.tables.items():
            tables[section] = {**tables.get(section, {}), **values}
        tables["broker"] = {"kind": "external", "bootstrap_servers": self.broker.bootstrap}
        (self.directory / "run.toml").write_text(toml_text(tables, "A run under fire."), encoding="utf-8")
        return load(None, directory=self.directory)

    def _note(self, said: str) -> None:
        if "ended with signal 9" in said:
            return
        name, _, rest = said.partition(" ended with ")
        what = rest.partition(" (see ")[0].rpartition(" ERROR ")[2]
        self.ends[f"{name.partition('-')[0]}: {what[:160]}"] += 1


def _engine_core(producer: int | None) -> int | None:
    """vLLM's engine core below the producer, once it has given itself its name."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(producer).children(recursive=True) if producer is not None else ():
            with contextlib.suppress(psutil.Error):
                if "EngineCore" in " ".join(child.cmdline()):
                    return int(child.pid)
    return None
