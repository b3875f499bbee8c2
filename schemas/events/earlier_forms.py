"""Records of earlier versions whose type said several things, read as the events that say one each.

`WeightsApplied` was also a canary's scores and a refusal, `DeadLetter` also a replay and a purge. `upcast` is the one
place that knows: behind `schemas.decode` nobody sees these forms, and nobody writes them. On the compacted topic
`applied` such a record may be the only one left of its producer's application, which it repeated: that is kept in the
new event's `application`.
"""

import msgspec

from schemas.arrays import NDArray
from schemas.events.base import EventBase
from schemas.events.dead_letters import DeadLetter, DeadLetterPurged, DeadLetterReplayed
from schemas.events.weights import CanaryScored, WeightsApplied, WeightsRefused
from schemas.parts import Count, Finite, Ref, Time


class AnyWeightsApplied(EventBase, frozen=True, kw_only=True, tag="WeightsApplied"):
    """`WeightsApplied` on the wire: with `canary_logprobs` scores, with `refused` the version that was refused."""

    producer_id: str
    version: Count
    time_s: Time
    published_s: Time = 0.0
    fetch_s: Finite = 0.0
    pause_s: Finite = 0.0
    in_flight: Count = 0
    canary_logprobs: NDArray | None = None
    refused: Count | None = None

    def upcast(self) -> WeightsApplied | CanaryScored | WeightsRefused:
        """The event that this record is."""
        application = WeightsApplied(
            producer_id=self.producer_id,
            version=self.version,
            time_s=self.time_s,
            published_s=self.published_s,
            fetch_s=self.fetch_s,
            pause_s=self.pause_s,
            in_flight=self.in_flight,
        )
        if self.refused is not None:
            return WeightsRefused(
                producer_id=self.producer_id, version=self.refused, time_s=self.time_s, application=application
            )
        if self.canary_logprobs is not None:
            return CanaryScored(
                producer_id=self.producer_id,
                version=self.version,
                logprobs=self.canary_logprobs,
                time_s=self.time_s,
                application=application,
            )
        return application


class AnyDeadLetter(EventBase, frozen=True, kw_only=True, tag="DeadLetter"):
    """`DeadLetter` on the wire: with `purged` the note of a purge, else with `replayed` that of a replay."""

    source: Ref
    stage: str
    error: str
    data: bytes
    time_s: Time
    key: bytes | None = None
    headers: dict[str, bytes] = msgspec.field(default_factory=dict)
    attempts: Count = 1
    replayed: Ref | None = None
    purged: bool = False
    ends: tuple[Ref, ...] = ()
    config_digest: str = ""

    def upcast(self) -> DeadLetter | DeadLetterReplayed | DeadLetterPurged:
        """The event that this record is. The note of a purge kept the dead letter's time and had none of its own."""
        if self.purged:
            return DeadLetterPurged(
                source=self.source,
                stage=self.stage,
                error=self.error,
                refused_s=self.time_s,
                time_s=self.time_s,
                key=self.key,
                attempts=self.attempts,
                ends=self.ends,
                replayed=self.replayed,
            )
        if self.replayed is not None:
            return DeadLetterReplayed(source=self.source, stage=self.stage, replayed=self.replayed, time_s=self.time_s)
        return DeadLetter(
            source=self.source,
            stage=self.stage,
            error=self.error,
            data=self.data,
            time_s=self.time_s,
            key=self.key,
            headers=self.headers,
            attempts=self.attempts,
            config_digest=self.config_digest,
        )
