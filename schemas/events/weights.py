"""Published weights, and what producers report of them.

`applied` is compacted. An application is keyed by its producer, so the newest one of each producer stays; scores and
refusals have keys of their own (`report_key`), so that none of them displaces an application, which the dispatcher's
admission and a late joiner need.
"""

from typing import Literal

from schemas.arrays import NDArray
from schemas.events.base import EventBase
from schemas.parts import Canary, Count, Finite, Time, WeightFile


class WeightsPublished(EventBase, frozen=True, kw_only=True):
    """Weights `version` are in the blob store, complete and fsynced, when this is written.

    `full`: safetensors files with every tensor. `delta`: the elements that differ from weights `base_version`, in the
    format of `streams.weights.delta`. `digest` and `base_digest` are of all tensors after and before (see
    `streams.weights.tensors.state_digest`): a delta is refused where the base is another, whatever its version says.
    """

    version: Count
    kind: Literal["full", "delta"]
    precision: Literal["bf16", "fp8", "f32"]
    files: tuple[WeightFile, ...]
    tensors: Count
    parent_step: Count
    time_s: Time
    base_version: Count | None = None
    digest: str | None = None
    base_digest: str | None = None
    canary: Canary | None = None

    def __post_init__(self) -> None:
        if self.kind != "delta":
            return
        if self.base_version is None or self.base_digest is None or self.digest is None:
            raise ValueError(f"weights {self.version} are a delta without base_version, base_digest or digest")
        if self.base_version >= self.version:
            raise ValueError(f"weights {self.version} are a delta on weights {self.base_version}, which are not older")


class WeightsApplied(EventBase, frozen=True, kw_only=True):
    """A producer generates with weights `version` from now on; `pause_s` is how long generation stood still."""

    producer_id: str
    version: Count
    time_s: Time
    published_s: Time = 0.0
    fetch_s: Finite = 0.0
    pause_s: Finite = 0.0
    in_flight: Count = 0


class CanaryScored(EventBase, frozen=True, kw_only=True):
    """A producer scored the canary of weights `version` under these weights.

    `logprobs` f4 `[sequences, tokens - 1]`, the shape of the publication's. `set_digest` is that of the set that was
    scored: a version may be published again with another one; empty in earlier records. `application` is set in
    records of the earlier form only, see `schemas.events.earlier_forms`.
    """

    producer_id: str
    version: Count
    logprobs: NDArray
    time_s: Time
    application: WeightsApplied | None = None
    set_digest: str = ""


class WeightsRefused(EventBase, frozen=True, kw_only=True):
    """A producer cannot use the publication of weights `version`: the learner answers with a full one.

    `application` is set in records of the earlier form only, see `schemas.events.earlier_forms`.
    """

    producer_id: str
    version: Count
    time_s: Time
    application: WeightsApplied | None = None


def report_key(report: WeightsApplied | CanaryScored | WeightsRefused) -> str:
    """The key of a producer's report on `applied`: `<producer>`, `<producer>/canary` or `<producer>/refused`."""
    match report:
        case WeightsApplied():
            return report.producer_id
        case CanaryScored():
            return f"{report.producer_id}/canary"
        case WeightsRefused():
            return f"{report.producer_id}/refused"


def application_in(event: object) -> WeightsApplied | None:
    """The application that `event` reports: itself, or what a record of the earlier form said besides."""
    match event:
        case WeightsApplied():
            return event
        case CanaryScored() | WeightsRefused():
            return event.application
        case _:
            return None
