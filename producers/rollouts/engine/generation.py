"""One finished generation, and which weights computed which of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from producers.rollouts.engine.routes import RouteArray
from schemas import WeightSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What one request produced. Times are Unix seconds: handed to the engine, first token, last token."""

    response_ids: NDArray[np.uint32]
    """`[response tokens]`, the stop token included."""
    logprobs: NDArray[np.float32]
    """`[response tokens]`, of each sampled token under the weights of its span. Not finite after overflow."""
    routes: NDArray[RouteArray] | None
    """`[prompt + response tokens, moe_layers, top_k]`, see `producers.rollouts.engine.routes`."""
    spans: tuple[WeightSpan, ...]
    finish_reason: Literal["stop", "length"]
    started_s: float
    first_token_s: float
    finished_s: float


@dataclass(slots=True)
class SpanLog:
    """Weight versions of a request in flight, written at every update while nothing is computed."""

    version: int
    spans: list[WeightSpan] = field(init=False)

    def __post_init__(self) -> None:
        self.spans = [WeightSpan(0, self.version)]

    def update(self, tokens: int, version: int) -> None:
        """From response token number `tokens` on, `version` computes. Raises `ValueError` when tokens were lost."""
        if tokens < self.spans[-1].first_token:
            raise ValueError(f"{tokens} response tokens at version {version} are fewer than {self.spans[-1]} had seen")
        if tokens == self.spans[-1].first_token:
            self.spans.pop()
        self.spans.append(WeightSpan(tokens, version))

    def close(self, tokens: int) -> tuple[WeightSpan, ...]:
        """The spans of a response of so many tokens: without those that began after its last one."""
        return spans_within(self.spans, tokens)


def spans_within(spans: Sequence[WeightSpan], tokens: int) -> tuple[WeightSpan, ...]:
    """Spans that hold at least one of the first `tokens` tokens; always at least the first span."""
    return tuple(span for position, span in enumerate(spans) if position == 0 or span.first_token < tokens)
