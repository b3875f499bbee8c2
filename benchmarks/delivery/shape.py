"""What is measured: how many rollouts, in which groups and batches."""

import msgspec


class Shape(msgspec.Struct, frozen=True):
    """The load and the tokens of the tiny model's vocabulary that make a right and a wrong answer."""

    rollouts: int
    model: str
    samples: int = 8
    groups_per_batch: int = 64
    outstanding: int = 8192
    equals: int = 0
    answer: int = 0
    wrong: int = 0
    eos: int = 0
    answer_text: str = ""

    @property
    def batch(self) -> int:
        """Rollouts of one batch."""
        return self.samples * self.groups_per_batch


class Arrival(msgspec.Struct, frozen=True):
    """What the learner's side saw: unix times of the first and last rollout, and ages in ms on arrival."""

    rollouts: int
    first_written_s: float
    last_received_s: float
    p50_ms: float
    p99_ms: float
