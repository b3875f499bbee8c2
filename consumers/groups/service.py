"""The aggregator as a service: one fold and one transaction line per partition of `scores`."""

from consumers.groups.aggregate import Aggregator
from consumers.groups.settings import GroupSettings
from streams.fold import FoldSpec, run_fold
from streams.recall import Recall
from streams.scope import Scope


async def main(scope: Scope, settings: GroupSettings) -> None:
    """Serve until the service is asked to stop. Exactly once: outputs and offsets are one transaction."""
    spec = FoldSpec(
        stage="groups",
        input="scores",
        recall=Recall(topic="groups", horizon_s=settings.remember_s),
        shard="partition",
    )
    await run_fold(scope, spec, lambda partition: Aggregator(settings))
