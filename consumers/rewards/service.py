"""The reward consumers as a service: at least once; replicas may come and go, up to the partitions of `rollouts`."""

from pathlib import Path
from typing import Final

from consumers.rewards.detokenise import Detokeniser
from consumers.rewards.pool import VerifierPool
from consumers.rewards.score import RewardWorker
from consumers.rewards.settings import RewardSettings
from consumers.rewards.verifiers import VerifierError, is_pooled
from schemas import RolloutCompleted
from schemas.services import SERVICES
from streams.errors import ConfigurationError
from streams.runtime.service_context import ServiceContext
from streams.stages.worker import WorkerSpec, run_worker

REWARDS: Final = SERVICES["rewards"]


async def main(service: ServiceContext, settings: RewardSettings) -> None:
    """Serve until the service is asked to stop."""
    detokeniser = Detokeniser(Path(settings.model), settings.special_tokens == "keep")
    async with VerifierPool(settings.pool_size, settings.timeout_s) as pool:
        if pooled := [name for name in settings.prewarm if is_pooled(name)]:
            try:
                await pool.warm(pooled)
            except VerifierError as error:
                raise ConfigurationError(f"rewards.prewarm: {error}") from None
        spec = WorkerSpec(REWARDS.name, REWARDS.input, settings.max_in_flight, (RolloutCompleted,), elastic=True)
        await run_worker(service, spec, RewardWorker(settings, detokeniser, pool, service.gauge))
