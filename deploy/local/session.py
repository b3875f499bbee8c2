"""A run on this machine from start to stop: broker, topics, supervised services, Ctrl-C at any moment.

    async with Session(config, note=print) as session:      # the broker is up and the topics are there
        await session.serve(until=watcher.done)             # the services run until then
        audit = audit_of(...)                               # the broker still answers

The first SIGINT, SIGTERM or SIGHUP (unless that is ignored, as under nohup) stops everything in order: services, then
the broker. The second kills at once.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from deploy.config.run import RunConfig
from deploy.errors import StoppedError
from deploy.local.processes import units
from deploy.local.restarts import STRUCK, RestartPolicy, Restarts
from deploy.local.storage import storage_obstacle
from deploy.local.supervisor import GaveUpError, Supervisor, Unit
from schemas import TOPICS
from streams.broker import Broker, BrokerError, open_broker
from streams.log.admin import TopicSpec, create_topics
from streams.processes.amx import apply_environment

logger = logging.getLogger(__name__)
T = TypeVar("T")

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BROKER_STOP_S: Final = 10.0
_BROKER_LOOK_S: Final = 0.1
_HOUR_MS: Final = 3_600_000
_DEAD_LETTER_MARGIN_BYTES: Final = 2 << 20


class Session:
    """See the module. `stopping` is set once the user, or an error, ends the run."""

    def __init__(self, config: RunConfig, *, note: Callable[[str], None] = logger.warning) -> None:
        self.config = config
        self.stopping = asyncio.Event()
        self.interrupted = False
        self._note = note
        self._broker: Broker | None = None
        self._supervisor: Supervisor | None = None
        self._policy = RestartPolicy(
            first_s=config.supervisor.backoff_first_s,
            max_s=config.supervisor.backoff_max_s,
            quick_s=config.supervisor.quick_failure_s,
            quick_failures=config.supervisor.quick_failures,
        )

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            # Whoever started it with nohup wants it to outlive the terminal.
            if signal.getsignal(number) != signal.SIG_IGN:
                loop.add_signal_handler(number, self._on_signal)
        try:
            await self._start_broker()
            await asyncio.to_thread(create_run_topics, self.config, self.bootstrap)
            self._check_interrupted()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    @property
    def bootstrap(self) -> str:
        """Where the broker listens."""
        assert self._broker is not None
        return self._broker.bootstrap

    @property
    def broker_kind(self) -> str:
        """`kafka`, `embedded` or `external`."""
        assert self._broker is not None
        return self._broker.kind

    @property
    def _storage(self) -> tuple[Path, ...]:
        """Directories that may be file systems of their own, each of which may be full."""
        root = self.config.directory
        return (root, root / "broker", root / "blobs", root / "checkpoints")

    @property
    def restarts(self) -> dict[str, int]:
        """Service → how often it was restarted."""
        return {} if self._supervisor is None else dict(self._supervisor.restarts)

    async def serve(
        self, until: Coroutine[Any, Any, T] | None = None, *, services: Sequence[Unit] | None = None
    ) -> T | None:
        """Runs all services until `until` is done (its result) or the run is stopped; they have ended on return.

        `services` replaces the run's own units, for measurements.
        GaveUpError: a service or the broker cannot be kept alive. StoppedError: the user stopped it before `until`.
        """
        await asyncio.to_thread(apply_environment)
        self._supervisor = Supervisor(
            units(self.config) if services is None else services,
            self._policy,
            stop_s=self.config.supervisor.stop_s,
            note=self._note,
            storage=self._storage,
        )
        keeping = asyncio.create_task(self._supervisor.keep(self.stopping), name="services")
        broker = asyncio.create_task(self._keep_broker(), name="broker")
        watching = asyncio.create_task(until or self._until_stopped(), name="until")
        try:
            await asyncio.wait({keeping, broker, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = watching.done()
            self.stopping.set()
            watching.cancel()
            outcomes = await asyncio.gather(keeping, broker, watching, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome
        if until is not None and not finished:
            raise StoppedError("stopped before the run was done")
        return watching.result() if until is not None else None

    def _on_signal(self) -> None:
        # What is to happen comes first: a note that cannot be shown must not keep the run from being stopped.
        if not self.stopping.is_set():
            self.interrupted = True
            self.stopping.set()
            self._note("stopping (once more to kill at once)")
        elif not self.interrupted:
            self.interrupted = True
            self._note("already ending (once more to kill at once)")
        else:
            if self._supervisor is not None:
                self._supervisor.kill()
            if self._broker is not None:
                asyncio.get_running_loop().run_in_executor(None, self._broker.stop, 0.0)
            self._note("killing everything")

    def _check_interrupted(self) -> None:
        if self.interrupted:
            raise StoppedError("stopped while starting")

    async def _until_stopped(self) -> None:
        await self.stopping.wait()

    async def _start_broker(self) -> None:
        """Starts it in a thread; if the user stops the run meanwhile, stops the broker, which makes the start fail."""
        self._broker = open_broker(self.config.broker.build(), self.config.directory)
        starting = asyncio.create_task(asyncio.to_thread(self._broker.start, self.config.supervisor.broker_s))
        stopped = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        while not starting.done():
            await asyncio.to_thread(self._broker.stop, 0.0)
            await asyncio.wait({starting}, timeout=_BROKER_LOOK_S)
        stopped.cancel()
        failed = starting.exception()
        self._check_interrupted()
        if failed is not None:
            raise failed

    async def _keep_broker(self) -> None:
        """Restarts a local broker that ended, as the supervisor restarts services. GaveUpError: too often."""
        assert self._broker is not None
        restarts = Restarts(self._policy)
        loop = asyncio.get_running_loop()
        log = self.config.layout.log("broker")
        served_s, ended = 0.0, f"the broker ended (see {log})"
        ready_s: float | None = loop.time()
        while self._broker.kind != "external" and not self.stopping.is_set():
            if ready_s is not None:
                while await asyncio.to_thread(self._broker.alive):
                    if await self._stopped_within(_BROKER_LOOK_S):
                        return
                served_s, ended = loop.time() - ready_s, f"the broker ended (see {log})"
            obstacle = None
            if served_s < self._policy.quick_s:
                obstacle = await asyncio.to_thread(storage_obstacle, self._storage)
            delay_s = restarts.failed(served_s, obstacle is not None, self._broker.exit_code in STRUCK)
            if delay_s is None:
                raise GaveUpError(f"gave up on the broker after {restarts.quick} quick failures: {ended}", 1)
            cause = f"; the cause lies outside ({obstacle})" if obstacle is not None else ""
            self._note(f"{ended}{cause}; starting it again {f'in {delay_s:g} s' if delay_s else 'at once'}")
            if await self._stopped_within(delay_s):
                return
            try:
                await asyncio.to_thread(self._broker.start, self.config.supervisor.broker_s)
                ready_s = loop.time()
            except (BrokerError, OSError) as error:
                ready_s, served_s, ended = None, 0.0, f"the broker did not start: {error}"

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()
        return self.stopping.is_set()

    async def _close(self) -> None:
        loop = asyncio.get_running_loop()
        if self._broker is not None:
            await asyncio.shield(asyncio.to_thread(self._broker.stop, _BROKER_STOP_S))
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def quiet_clients() -> None:
    """Silences what Kafka's clients log of conditions that they recover from: moving leaders, slow event loops."""
    for name in ("aiokafka", "kafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def create_run_topics(config: RunConfig, bootstrap: str) -> list[str]:
    """Makes the run's topics that are missing; their full names. AdminError: one exists and differs."""
    return create_topics(bootstrap, topic_specs(config), replication=config.run.replication)


def topic_specs(config: RunConfig) -> list[TopicSpec]:
    """The catalogue's topics as this run has them."""
    retention_ms = int(config.run.retention_h * _HOUR_MS) or -1
    limit = {"max.message.bytes": str(config.broker.message_max_bytes)} if config.broker.kind == "external" else {}
    # The largest record that a topic takes must fit into a dead letter, with its headers and error.
    dead_letter_limit = {"max.message.bytes": str(config.broker.message_max_bytes + _DEAD_LETTER_MARGIN_BYTES)}
    return [
        TopicSpec(
            topic.on(config.run.id),
            config.run.partitions if topic.sharded else 1,
            topic.cleanup,
            None if topic.cleanup == "compact" else retention_ms,
            dead_letter_limit if topic.name == "dead-letters" else limit,
        )
        for topic in TOPICS.values()
    ]
