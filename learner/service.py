"""The learner as a service: one process a rank, replica `ordinal` of `replicas` is rank `ordinal`."""

import asyncio
import os

from learner.errors import ModelError
from learner.settings import LearnerSettings
from streams.amx import apply_environment
from streams.errors import ConfigurationError
from streams.scope import Scope


async def main(scope: Scope, settings: LearnerSettings) -> None:
    """Train on every batch of the run until asked to stop; after `max_steps` idle until then.

    ConfigurationError: a model or setting that cannot work. LearnerError: this rank failed, or another one did; the
    supervisor starts all of them again and they go on from the newest checkpoint.
    """
    if scope.context.replicas != settings.ranks:
        raise ConfigurationError(
            f"learner ranks is {settings.ranks} and {scope.context.replicas} learner processes were started"
        )
    # Both have to be in the environment before torch is imported, and with it the rest of this package.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if settings.precision == "bf16":
        await asyncio.to_thread(apply_environment)
    from learner.training import Training

    try:
        await Training(scope, settings).run()
    except ModelError as error:
        raise ConfigurationError(str(error)) from error
