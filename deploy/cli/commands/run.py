"""`eachprompt run SERVICE`: one service in this process, started by the supervisor, a pod or a person."""

import argparse
import os
import sys
from typing import Any, Final

from deploy.cli.main import add_config_arguments
from deploy.config.identity import check_identity
from deploy.config.kept import adopt
from deploy.config.run import RunConfig, load
from deploy.errors import ConfigError
from deploy.services import main_of
from schemas.services import SERVICES

_ORDINAL_HELP: Final = (
    "which replica or rank this is (default 0, or $RANK); rewards: a number that is not in use adds one to a run that "
    "is up, and SIGTERM takes it away"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The service, its ordinal and the configuration."""
    parser.add_argument("service", choices=tuple(SERVICES), help="which service")
    parser.add_argument("--ordinal", type=int, metavar="K", help=_ORDINAL_HELP)
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)
    add_config_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves until stopped. The learner without an ordinal or $RANK starts all its ranks and waits for them."""
    service: str = arguments.service
    config = load(arguments.config, directory=arguments.dir, overrides=arguments.set)
    check_identity(config)
    replicas = config.replicas_of(service)
    declared = SERVICES[service]
    ordinal = arguments.ordinal
    if ordinal is None and declared.scaling == "ranks" and "RANK" not in os.environ and replicas > 1:
        return _run_ranks(config, service)
    if ordinal is None:
        ordinal = int(os.environ.get("RANK", "0")) if declared.scaling == "ranks" else 0
    if declared.scaling == "elastic":
        if ordinal < 0:
            raise ConfigError(f"--ordinal is {ordinal}; allowed: a number of at least 0 that no other {service} has")
        # A replica that joins has files of its own beside those of the configured replicas.
        replicas = max(replicas, ordinal + 1)
    if not 0 <= ordinal < replicas:
        raise ConfigError(
            f"--ordinal is {ordinal}; allowed: 0 to {replicas - 1}, for {service} has {replicas} processes"
        )
    if declared.uses_torch:
        from streams.processes.amx import apply_environment

        apply_environment()
    settings = config.service(service)
    context = _context(config, ordinal, replicas, bootstrap_of(config, kept_up=arguments.supervised))

    from streams.runtime.service import run_service

    main = main_of(service)
    code = run_service(service, context, lambda context: main(context, settings))
    if declared.scaling == "ranks":
        # All that is left is tearing down torch and its process groups: it takes a second or two, for which the other
        # ranks and the restarted process would wait, and hangs where a thread waits in a collective for one that ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def bootstrap_of(config: RunConfig, kept_up: bool = False) -> str:
    """Where the run's broker listens. ConfigError: it is a local one that is not up.

    A service does not start it as a tool does: the broker would end with that service, while the others need it.
    `kept_up`: the supervisor that started the service also restarts the broker, on the same port.
    """
    from streams.broker.endpoint import find_endpoint, last_endpoint

    if config.broker.kind == "external":
        return config.broker.bootstrap_servers
    endpoint = last_endpoint(config.directory) if kept_up else find_endpoint(config.directory)
    if endpoint is None:
        raise ConfigError(
            f"the broker of {config.directory} is not up, and a service alone does not start it; allowed: "
            f"`eachprompt up --dir {config.directory}` before it, or a cluster as broker.bootstrap_servers"
        )
    return endpoint.bootstrap


def _context(config: RunConfig, ordinal: int, replicas: int, bootstrap: str) -> Any:
    from deploy.config.digest import config_digest, trained_settings
    from streams.context import RunContext

    return RunContext(
        run=config.run.id,
        directory=config.directory,
        bootstrap=bootstrap,
        partitions=config.run.partitions,
        blob_uri=config.blobs.uri or config.layout.blob_uri,
        ordinal=ordinal,
        replicas=replicas,
        inline_max_bytes=config.blobs.inline_max_bytes,
        seed=config.run.seed,
        drain_s=config.run.drain_s,
        otlp_endpoint=config.tracing.otlp_endpoint or None,
        config_digest=config_digest(trained_settings(config)),
    )


def _run_ranks(config: RunConfig, service: str) -> int:
    """All ranks as children of this process, until it is stopped; one that fails ends them all."""
    import asyncio

    from deploy.local.processes import service_units
    from deploy.local.restarts import RestartPolicy
    from deploy.local.run_lock import run_lock
    from deploy.local.supervisor import Supervisor
    from streams.processes.amx import apply_environment

    bootstrap_of(config)
    config.service(service)
    if not config.layout.config.is_file():
        with run_lock(config.layout.lock):
            adopt(config)
    apply_environment()

    async def serve() -> None:
        stopping = asyncio.Event()
        policy = RestartPolicy(first_s=1.0, max_s=1.0, quick_s=float("inf"), quick_failures=1)
        supervisor = Supervisor(
            service_units(config, service), policy, stop_s=config.supervisor.stop_s, note=_to_stderr
        )
        import signal

        def on_signal() -> None:
            supervisor.kill() if stopping.is_set() else stopping.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, on_signal)
        await supervisor.keep(stopping)

    asyncio.run(serve())
    return 0


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
