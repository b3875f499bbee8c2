"""A run on a broker: its topics, and scopes of services in it."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas import Event, decode
from streams.blobs.store import BlobStore
from streams.broker import Broker
from streams.context import RunContext
from streams.log.clients import Log
from streams.log.reader import Reader
from streams.record import Output, Record
from streams.runtime.service_context import ServiceContext
from tests.builders import context_of
from tests.run_logs import log_at, new_run, write

PARTITIONS = 2

Found = list[tuple[Event, Record]]


ROOT = Path(__file__).parents[2]
CONTEXT = ("run", "bootstrap", "partitions", "blob_uri", "seed", "drain_s", "inline_max_bytes")
SERVICES = {
    "dispatcher": ("producers.dispatcher.service", "producers.dispatcher.settings:DispatcherSettings"),
    "producer": ("producers.rollouts.service", "producers.rollouts.settings:ProducerSettings"),
}
PROGRAM = """
import importlib, json, sys
from pathlib import Path
import msgspec
from streams.context import RunContext
from streams.runtime.service import run_service

if __name__ == "__main__":
    name, module, kind, settings, context = sys.argv[1:]
    main = importlib.import_module(module).main
    where, _, kind = kind.partition(":")
    settings = msgspec.json.decode(settings, type=getattr(importlib.import_module(where), kind))
    context = json.loads(context)
    context["directory"] = Path(context["directory"])
    code = run_service(name, RunContext(**context), lambda service: main(service, settings))
    heavy = [name for name in ("torch", "vllm", "transformers", "reasoning_gym") if name in sys.modules]
    print("imported", *heavy, file=sys.stderr)
    sys.exit(code)
"""


@dataclass(frozen=True)
class Run:
    """One run's topics on the broker, and what a test does with them."""

    context: RunContext

    @property
    def log(self) -> Log:
        """Clients of this run."""
        return log_at(self.context.bootstrap, self.context.run, self.context.partitions)

    @asynccontextmanager
    async def service(self, name: str) -> AsyncIterator[ServiceContext]:
        """A service's service; asked to stop, and its tasks awaited, at the end of the block."""
        async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
            service = ServiceContext(name, self.context, self.log, BlobStore(self.context.blob_uri), tasks)
            try:
                yield service
            finally:
                service.stopping.set()

    def launch(self, service: str, settings: dict[str, object]) -> "subprocess.Popen[str]":
        """A service in a process of its own, as `eachprompt run` has it; its log is `<dir>/<service>.log`."""
        module, kind = SERVICES[service]
        context = {name: getattr(self.context, name) for name in CONTEXT} | {"directory": str(self.context.directory)}
        arguments = [service, module, kind, json.dumps(settings), json.dumps(context)]
        with self.log_of(service).open("a") as log:
            return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=log, text=True, cwd=ROOT)

    def log_of(self, service: str) -> Path:
        """What the launched service wrote to its standard error."""
        return self.context.directory / f"{service}.log"

    async def write(self, *outputs: Output) -> None:
        """Put events on the log."""
        await write(self.log, *outputs)

    async def read(
        self, *topics: str, until: Callable[[list[tuple[Event, Record]]], bool], within_s: float = 60.0
    ) -> list[tuple[Event, Record]]:
        """Everything on `topics` from the start, once `until` holds of it."""
        found: Found = []
        positions: dict[tuple[str, int], int | None] = {
            (topic, partition): None for topic in topics for partition in self.log.partitions(topic)
        }
        async with Reader(self.log, positions) as reader:
            end_s = time.monotonic() + within_s
            while not until(found):
                assert time.monotonic() < end_s, f"only {len(found)} records on {topics} after {within_s} s"
                found += [(decode(record.value), record) for record in await reader.poll(0.1)]
        return found


@pytest.fixture
def run(log_broker: Broker, tmp_path: Path) -> Run:
    """A fresh run with all its topics."""
    return Run(context_of(new_run(log_broker, PARTITIONS), tmp_path, seed=11, drain_s=5.0))
