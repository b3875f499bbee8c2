"""The pipeline under fire: real Kafka, the real services as processes of their own, each behind its own proxy.

dispatcher, rewards (2), groups (2) and batches run as `eachprompt run SERVICE`; a recorded load stands in for the
producer's engine and a digest for the learner's model. The real supervisor restarts what ends, without back-off.
"""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

from deploy import toml
from deploy.commands.demo import DEMO
from deploy.config import RunConfig, load, read
from deploy.layout import process_name
from deploy.processes import service_units
from deploy.restarts import RestartPolicy
from deploy.session import create_run_topics
from deploy.sharing import SERVICES
from deploy.supervisor import ProcessSpec, Supervisor, Unit
from streams import faults
from streams.broker import BrokerSettings
from streams.broker.kafka import KafkaBroker
from streams.child import Child, running_pid
from tests.chaos.disk import SmallDisk
from tests.chaos.proxy import Proxy

ROOT: Final = Path(__file__).parents[2]
REPLICAS: Final = {"rewards": 2, "groups": 2}
PARTITIONS: Final = 4
_DISK_MIB: Final = 1024
GROUPS_PER_BATCH: Final = 8

_STAND_INS: Final = {"producer": "tests.chaos.load", "learner": "tests.chaos.stepper"}
_TABLES: Final[dict[str, dict[str, Any]]] = {
    "run": {
        "id": "chaos",
        "steps": 0,
        "groups_per_batch": GROUPS_PER_BATCH,
        "samples": 4,
        "max_staleness": 3,
        "ranks": 1,
        "partitions": PARTITIONS,
        "drain_s": 3.0,
    },
    "replicas": REPLICAS,
    "blobs": {"inline_max_bytes": 16},
    "dispatcher": {"evaluate_every": 50, "evaluate_samples": 1, "group_timeout_s": 60.0},
}
_AT_ONCE: Final = RestartPolicy(first_s=0.02, max_s=0.02, quick_s=1e-6, quick_failures=1_000_000)


class Pipeline:
    """Use as an async context: everything runs inside, nothing is left after."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.faults = directory / "faults"
        self.broker = KafkaBroker(BrokerSettings(kind="kafka", heap_mib=512), directory)
        self.proxies: dict[str, Proxy] = {}
        self.ends: Counter[str] = Counter()
        self._stopping = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._intruders: list[Child] = []
        self.disk = SmallDisk(directory / "disk", _DISK_MIB)

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
        self.serve(SERVICES)

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
        return [process_name(s, k, REPLICAS.get(s, 1)) for s in SERVICES for k in range(REPLICAS.get(s, 1))]

    def serve(self, services: Sequence[str]) -> None:
        """Run these services and keep them alive until `stop`."""
        self._stopping = asyncio.Event()
        units = [Unit(spec.name, (spec,)) for service in services for spec in self.specs(service)]
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

    def specs(self, service: str) -> list[ProcessSpec]:
        """How each process of a service is started."""
        processes = [spec for unit in service_units(self.config, service) for spec in unit.processes]
        return [self._behind_proxy(service, ordinal, spec) for ordinal, spec in enumerate(processes)]

    def pid(self, name: str) -> int | None:
        """The process that serves as `name`."""
        return running_pid(self.config.layout.pid_file(name))

    def send(self, name: str, number: signal.Signals) -> bool:
        """Signal a process; False where it does not run just now."""
        pid = self.broker.pid if name == "broker" else self.pid(name)
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def intrude(self, name: str) -> Child:
        """A second instance of a service, which fences the first."""
        service, _, ordinal = name.partition("-")
        spec = self.specs(service)[int(ordinal or 0)]
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

    def _behind_proxy(self, service: str, ordinal: int, spec: ProcessSpec) -> ProcessSpec:
        bootstrap = f"127.0.0.1:{self.proxies[spec.name].port}"
        argv = (*spec.argv, "--set", f'broker.bootstrap_servers="{bootstrap}"')
        if service in _STAND_INS:
            argv = (sys.executable, "-m", _STAND_INS[service], str(self.directory), str(ordinal), "1", bootstrap)
        env = {**spec.env, faults.VARIABLE: str(self.faults), "PYTHONPATH": str(ROOT)}
        return dataclasses.replace(spec, argv=argv, env=env)

    def _configure(self) -> RunConfig:
        tables = read(DEMO)
        for section, values in _TABLES.items():
            tables[section] = {**tables.get(section, {}), **values}
        tables["broker"] = {"kind": "external", "bootstrap_servers": self.broker.bootstrap}
        (self.directory / "run.toml").write_text(toml.dumps(tables, comment="A run under fire."), encoding="utf-8")
        return load(None, directory=self.directory)

    def _note(self, said: str) -> None:
        if "ended with signal 9" in said:
            return
        name, _, rest = said.partition(" ended with ")
        what = rest.partition(" (see ")[0].rpartition(" ERROR ")[2]
        self.ends[f"{name.partition('-')[0]}: {what[:160]}"] += 1
