"""Published weights as the log records them: the newest publication of each version, and who applied it."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from analysis.history.records import clock
from analysis.history.run_log import RunLog
from schemas import CanaryScored, NDArray, WeightsPublished, application_in
from streams.weights import chain_to


@dataclass
class WeightVersions:
    """Publications by version; by (version, producer id) who applied them, and the producers' canary log-probs."""

    events: dict[int, WeightsPublished] = field(default_factory=dict)
    applied: set[tuple[int, str]] = field(default_factory=set)
    scored: dict[tuple[int, str], NDArray] = field(default_factory=dict)

    def ranges(self) -> str:
        """The published versions as text: `1 to 5, 8`."""
        versions = sorted(self.events)
        borders = [0, *(n for n, (a, b) in enumerate(pairwise(versions), 1) if b != a + 1), len(versions)]
        runs = [versions[first:end] for first, end in pairwise(borders)]
        return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)

    def made_of(self, version: int) -> list[int] | None:
        """The publications a late joiner reads for `version`; None where one of them is no longer on the log."""
        try:
            return [event.version for event in chain_to(version, self.events)]
        except KeyError:
            return None

    def drift(self, version: int) -> float | None:
        """The largest mean |Δ log p| of any producer's canary at `version`; None where no producer scored it."""
        canary = self.events[version].canary
        measured = [logprobs.numpy() for (scored, _), logprobs in self.scored.items() if scored == version]
        if canary is None or not measured:
            return None
        own, judged = canary.logprobs.numpy(), canary.compared()
        return max(
            float(np.abs(own - other)[judged].mean())
            if other.shape == own.shape and np.isfinite(other[judged]).all()
            else 1e300
            for other in measured
        )

    def report_row(self, version: int) -> dict[str, Any]:
        """One version as plain values, for tables and JSON."""
        event = self.events[version]
        drift = self.drift(version)
        return {
            "version": version,
            "kind": event.kind,
            "base_version": event.base_version,
            "precision": event.precision,
            "bytes": sum(file.blob.size for file in event.files),
            "tensors": event.tensors,
            "published": clock(event.time_s),
            "canary_drift": None if drift is None else round(drift, 5),
            "applied_by": sorted(producer for applied, producer in self.applied if applied == version),
        }


def read_weight_versions(log: RunLog) -> WeightVersions:
    """Read `weights` and `applied` to their present ends. StreamsError: the broker cannot be read."""
    found = WeightVersions()
    for event, _ in log.events("weights"):
        if isinstance(event, WeightsPublished):
            found.events[event.version] = event
    for event, _ in log.events("applied"):
        if (applied := application_in(event)) is not None:
            found.applied.add((applied.version, applied.producer_id))
        if isinstance(event, CanaryScored):
            found.scored[event.version, event.producer_id] = event.logprobs
    return found
