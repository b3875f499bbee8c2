"""What is measured: how many rollouts, of which size, in which groups and batches."""

import msgspec


class Shape(msgspec.Struct, frozen=True):
    """The load and the tokens of the tiny model's vocabulary that make a right and a wrong answer.

    `rate`: rollouts a second at which the recording is played, 0 for as fast as they are taken. `tokens`: 0 for
    lengths as recorded, scaled to `record_bytes` in the mean; else every rollout has so many and routes of 60 layers
    and top-8, which go through the blob store.
    """

    rollouts: int
    model: str
    samples: int = 8
    groups_per_batch: int = 64
    outstanding: int = 8192
    record_bytes: int = 4096
    rate: float = 0.0
    tokens: int = 0
    equals: int = 0
    answer: int = 0
    wrong: int = 0
    eos: int = 0
    answer_text: str = ""

    @property
    def batch(self) -> int:
        """Rollouts of one batch."""
        return self.samples * self.groups_per_batch

    @property
    def routes(self) -> tuple[int, int]:
        """MoE layers and top-k of the model that the load pretends to come from."""
        return (60, 8) if self.tokens else (12, 2)


class Arrival(msgspec.Struct, frozen=True):
    """What the learner's side saw: unix times of the first and last rollout, ages in ms on arrival, bytes of routes."""

    rollouts: int
    first_written_s: float
    last_received_s: float
    p50_ms: float
    p99_ms: float
    record_bytes: float = 0.0
    routes_bytes: int = 0
