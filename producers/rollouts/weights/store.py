"""The weights that a producer holds on its disk, whole: what the engine loads, and what the next delta applies to."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from producers.rollouts.engine.errors import WeightsRefused
from schemas.events import WeightsPublished
from streams.blobs.store import BlobStore
from streams.errors import BlobError
from streams.weights import Held, WeightsError, apply_deltas, chain_to, fetch_anchor

logger = logging.getLogger(__name__)


class WeightStore:
    """One version at a time, in a directory of its own below `cache`. Blocking: give it a thread.

    A version is made beside the one before it, which goes when the new one is whole: a delta that fails costs nothing.
    """

    def __init__(self, blobs: BlobStore, cache: Path) -> None:
        self._blobs = blobs
        self._cache = cache
        self._made = 0
        self.held: Held | None = None

    def clear(self) -> None:
        """Forget everything, a predecessor's files included."""
        shutil.rmtree(self._cache, ignore_errors=True)
        self.held = None

    def bring(self, event: WeightsPublished, usable: Mapping[int, WeightsPublished]) -> Held:
        """The files of `event`'s version, verified: deltas on what is held where they lead there, else from an anchor.

        `usable`: what it may be made of, by version. WeightsRefused: a base is not to be had, or a delta is not what it
        says. BlobError: a file is missing or corrupt. OSError: the store, or this machine's disk.
        """
        held = self.held
        try:
            chain = chain_to(event.version, usable, None if held is None else (held.version, held.digest))
            if held is not None and not chain:
                return held
            try:
                return self._follow(chain, held)
            except (WeightsError, BlobError) as error:
                if chain[0].kind == "full":
                    raise
                logger.warning("weights %d are made anew from an anchor: %s", event.version, error)
            return self._follow(chain_to(event.version, usable), None)
        except KeyError as missing:
            raise WeightsRefused(
                f"weights {event.version} are a delta, and its base {missing} is neither held nor made from an anchor"
            ) from missing
        except WeightsError as error:
            raise WeightsRefused(str(error)) from error

    def _follow(self, chain: list[WeightsPublished], held: Held | None) -> Held:
        anchor = None
        if chain[0].kind == "full":
            anchor = held = fetch_anchor(self._blobs, chain[0], self._directory(chain[0].version))
            chain = chain[1:]
        assert held is not None
        if chain:
            try:
                held = apply_deltas(self._blobs, held, chain, self._directory(chain[-1].version))
            finally:
                if anchor is not None:
                    anchor.remove()
        if self.held is not None:
            self.held.remove()
        self.held = held
        return held

    def _directory(self, version: int) -> Path:
        # Numbered: the same version may be made twice, the second time while the first is still held.
        self._made += 1
        return self._cache / f"v{version}-{self._made}"
