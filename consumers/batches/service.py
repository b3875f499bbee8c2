"""The batcher as a service: one processor over all partitions of `groups`, so there is one replica."""

import json
from pathlib import Path
from typing import Final

from consumers.batches.batcher import Batcher
from consumers.batches.cost import cost_of_model
from consumers.batches.settings import BatchSettings
from schemas import BatchPlanned
from schemas.services import SERVICES
from streams.errors import ConfigurationError
from streams.log.tail import Tail
from streams.runtime.service_context import ServiceContext
from streams.stages.processor import ProcessorSpec
from streams.stages.runner import run_processor

BATCHES: Final = SERVICES["batches"]
_TAIL_RECORDS: Final = 512
"""Groups dropped after the last batch are behind it on the topic; seldom more than this many: the dispatcher admits
(max_staleness + 1) · groups_per_batch groups at a time."""


async def main(service: ServiceContext, settings: BatchSettings) -> None:
    """Serve until the service is asked to stop. Exactly once: batches and offsets are one transaction."""
    cost = cost_of(settings)
    admitted = (settings.max_staleness + 1) * settings.groups_per_batch
    spec = ProcessorSpec(
        stage=BATCHES.name,
        input=BATCHES.input,
        side_inputs=BATCHES.follows,
        own_outputs=Tail(
            BATCHES.output, newest=_TAIL_RECORDS + 4 * admitted, holding=lambda e: isinstance(e, BatchPlanned)
        ),
        tasks="one",
    )
    await run_processor(service, spec, lambda partition: Batcher(settings, cost))


def cost_of(settings: BatchSettings) -> tuple[float, float]:
    """(a, b) as given, of the model, or one per token. ConfigurationError: no usable `config.json`."""
    if settings.cost is not None:
        return settings.cost
    if settings.model is None:
        return (1.0, 0.0)
    path = Path(settings.model) / "config.json"
    try:
        return cost_of_model(dict(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise ConfigurationError(f"batches.model {settings.model}: there is no {path}") from None
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"batches.model {settings.model}: {path} is no model configuration: {error}") from None
