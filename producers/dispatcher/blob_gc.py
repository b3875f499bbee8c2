"""Garbage collection of the blob store: what no record on the log can refer to any more is deleted, by age.

The dispatcher does it, because a run has one of it. Routes go a day after the topics' retention. Weights go then too,
but never those of the last two full publications or of a later version: their topic is compacted, not expired, and
every producer that starts needs them, however long the run stood still.
"""

import asyncio
import logging
import re
from typing import Final

from schemas.events import Event, WeightsPublished
from streams.runtime.service_context import ServiceContext

logger = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0
_HOUR_S: Final = 3600.0
_MARGIN_S: Final = 24 * _HOUR_S
"""A blob is older than the record that names it, and clocks differ."""

_ANCHORS: Final = 2
"""Full publications that stay with all that came after them: one that proves to be damaged is not the last."""

_WEIGHTS: Final = re.compile(r"weights/v(\d+)/.+")


class NeededBlobs:
    """Which blobs are outlived by no retention. Feed it everything on `weights`, in order."""

    def __init__(self) -> None:
        self._newest = -1
        self._last: list[int] = []

    def on_event(self, event: Event) -> None:
        """Take in a publication; other events are passed over."""
        if isinstance(event, WeightsPublished) and event.kind == "full":
            self._newest = max(self._newest, event.version)
            self._last = [*(version for version in self._last if version != event.version), event.version][-_ANCHORS:]

    def may_go(self, name: str) -> bool:
        """Whether the blob `name`, relative to the store's root, may be deleted once it is old. Unknown names stay."""
        if name.startswith("routes/"):
            return True
        found = _WEIGHTS.fullmatch(name)
        # A learner that went back to an older checkpoint publishes lower versions again: both chains stay.
        return found is not None and len(self._last) == _ANCHORS and int(found[1]) < min(self._newest, *self._last)


async def collect_regularly(service: ServiceContext, retention_h: float, needed: NeededBlobs) -> None:
    """Now and once an hour until the service is asked to stop. A store that fails is tried again in an hour."""
    while not service.stopping.is_set():
        await asyncio.to_thread(_collect, retention_h * _HOUR_S + _MARGIN_S, needed, service)
        await service.until_stopped(_EVERY_S)


def _collect(age_s: float, needed: NeededBlobs, service: ServiceContext) -> None:
    try:
        deleted = service.blobs.delete_older_than(age_s, needed.may_go, service.stopping.is_set)
    except OSError as error:
        logger.warning("old blobs are not deleted, which is tried again in an hour: %s", error)
    else:
        if deleted:
            logger.info("deleted %d blobs older than %.0f hours", deleted, age_s / _HOUR_S)
