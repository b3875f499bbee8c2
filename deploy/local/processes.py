"""The processes of a run: command lines, environments, and which of them are restarted together."""

import os
import sys
from typing import Any, Final

from deploy.config.layout import process_name
from deploy.config.run import RunConfig
from deploy.local.supervisor import ProcessSpec, Unit
from schemas.services import SERVICES

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def units(config: RunConfig) -> list[Unit]:
    """Every service as the supervisor starts it, in the order in which they are stopped."""
    return [unit for service in SERVICES for unit in service_units(config, service)]


def service_units(config: RunConfig, service: str) -> list[Unit]:
    """A service's replicas, a unit each; the learner's ranks are one unit: none can work without the others."""
    count = config.replicas_of(service)
    threads = _threads(config.service(service) if SERVICES[service].uses_torch else None)
    processes = []
    for ordinal in range(count):
        env = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
        env |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Without compiled modules torch and vLLM take three times as long to import, at every start of a service.
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if SERVICES[service].scaling == "ranks":
            # The ranks agree on their rendezvous address through the run directory: a port chosen here could be taken
            # by another program before they listen.
            env |= {"RANK": str(ordinal), "LOCAL_RANK": str(ordinal), "WORLD_SIZE": str(count)}
        name = process_name(service, ordinal, count)
        layout = config.layout
        processes.append(
            ProcessSpec(
                name,
                _argv(config, service, ordinal),
                env,
                layout.log(name),
                layout.pid_file(name),
                health=layout.health / f"{name}.json",
            )
        )
    if SERVICES[service].scaling == "ranks":
        return [Unit(service, tuple(processes))]
    return [Unit(process.name, (process,)) for process in processes]


def _argv(config: RunConfig, service: str, ordinal: int) -> tuple[str, ...]:
    directory = str(config.directory)
    # -P: the working directory must not shadow an installed package.
    command = (sys.executable, "-P", "-m", "deploy.cli.main", "run", service, "--dir", directory)
    return (*command, "--ordinal", str(ordinal), "--supervised")


def _threads(settings: Any) -> int:
    """CPU threads of one process: its `threads` setting, or 1 for services without one, which compute little."""
    return int(getattr(settings, "threads", None) or 1)
