"""The learner as a service: one process per rank; replica `ordinal` of `replicas` is rank `ordinal`."""

import asyncio
import os
from typing import TYPE_CHECKING

from learner.errors import ForeignCheckpointError, ModelError
from learner.ranks.serial_thread import SerialThread
from learner.settings import LearnerSettings
from streams.errors import ConfigurationError
from streams.processes.amx import apply_environment
from streams.runtime.service_context import ServiceContext

if TYPE_CHECKING:
    from learner.training.loop import Training


def _training() -> "type[Training]":
    from learner.training.loop import Training

    return Training


async def main(service: ServiceContext, settings: LearnerSettings) -> None:
    """Train on every batch of the run until asked to stop; after `max_steps`, idle until then.

    ConfigurationError: a model or setting that cannot work. LearnerError: this rank failed, or another one did; the
    supervisor restarts all of them, and they resume from the newest checkpoint.
    """
    if service.run_context.replicas != settings.ranks:
        raise ConfigurationError(
            f"learner ranks is {settings.ranks} and {service.run_context.replicas} learner processes were started"
        )
    # Both must be in the environment before the rest of this package is imported, since that imports torch.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if settings.precision.compute == "bf16":
        await asyncio.to_thread(apply_environment)
    # In a thread, so that a SIGTERM during torch's import is handled at once.
    thread = SerialThread("import")
    training = await thread.run(_training)
    thread.close()
    try:
        await training(service, settings).run()
    except (ModelError, ForeignCheckpointError) as error:
        raise ConfigurationError(str(error)) from error
