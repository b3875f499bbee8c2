"""The recording as a load: the same order of arrival, spread of lengths and ends of responses, at any size and rate.

Groups interleave as they were recorded, and the recording starts again (with new groups) where it ends. Lengths are all
multiplied by the one factor that makes the mean record as large as wanted. The time axis is compressed to the
wanted rate. Which responses are right is not as recorded: every second member of a group is, so that every group has
variance and every rollout must reach the learner.
"""

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks.delivery.recording import Recording, read
from benchmarks.delivery.shape import Shape
from schemas import EngineInfo, NDArray, Ref, RolloutCompleted, RolloutTimings, Routes, Sampling, WeightSpan, encode

EXPERTS: Final = 128
_SENTINEL: Final = 255
_SHORTEST: Final = 3
_PROBED: Final = 4
_PROBES: Final = (4.0, 8.0)


class Due(NamedTuple):
    """One rollout of the load: what it is made of."""

    template: RolloutCompleted
    response: NDArray
    group_id: str
    member: int

    def event(self, now_s: float) -> RolloutCompleted:
        """As requested and finished now."""
        return msgspec.structs.replace(
            self.template,
            rollout_id=f"{self.group_id}.{self.member}",
            group_id=self.group_id,
            prompt_id=self.group_id[:-2],
            index=self.member,
            response_ids=self.response,
            requested_s=now_s,
            time_s=now_s,
        )


class Played:
    """Rollouts of the recording, ready to be given ids and a time."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._responses: dict[bool, dict[int, NDArray]] = {False: {}, True: {}}
        self._recording: Recording = read()
        if self._recording.samples != shape.samples:
            raise ValueError(f"the recording has groups of {self._recording.samples} and not of {shape.samples}")
        factor = 1.0 if shape.tokens else self._factor()
        self._events = [self._event(row, factor) for row in range(1 if shape.tokens else self._recording.rollouts)]

    def __iter__(self) -> Iterator[tuple[float, "Due"]]:
        """(seconds after the start at which it is due, rollout), `shape.rollouts` in whole groups."""
        recording, shape = self._recording, self._shape
        pace = recording.rollouts / recording.duration_s / shape.rate if shape.rate else 0.0
        arrival_s = (recording.arrival_ms.numpy() / 1e3 * pace).tolist()
        rows = list(zip(arrival_s, recording.group.numpy().tolist(), recording.index.numpy().tolist(), strict=True))
        groups = recording.rollouts // recording.samples
        wanted = shape.rollouts // recording.samples
        for turn in itertools.count():
            if turn * groups >= wanted:
                return
            for row, (due_s, group, index) in enumerate(rows):
                if (number := turn * groups + group) < wanted:
                    event = self._events[row % len(self._events)]
                    response = self._responses[index % 2 == 1][event.response_ids.shape[0]]
                    yield due_s + turn * recording.duration_s * pace, Due(event, response, f"{number:016x}.0", index)

    def _factor(self) -> float:
        """A record's size is linear in its length: two probes say which factor gives the wanted mean."""
        rows = range(0, self._recording.rollouts, _PROBED)
        sizes = [np.mean([len(encode(self._event(row, factor))) for row in rows]) for factor in _PROBES]
        slope = (sizes[1] - sizes[0]) / (_PROBES[1] - _PROBES[0])
        return float(_PROBES[0] + (self._shape.record_bytes - sizes[0]) / slope)

    def _event(self, row: int, factor: float) -> RolloutCompleted:
        recording, shape = self._recording, self._shape
        prompt = int(recording.prompt_tokens.numpy()[row])
        length = int(recording.response_tokens.numpy()[row])
        response = shape.tokens - prompt if shape.tokens else max(_SHORTEST, round(length * factor))
        for right in (False, True):
            self._responses[right].setdefault(response, self._response(response, right))
        inline = None if shape.tokens else NDArray.of(routes(prompt + response, *shape.routes))
        return RolloutCompleted(
            rollout_id="", group_id="", prompt_id="", index=0, attempt=0, producer_id="producer-0",
            request=Ref("prompts", 0, 0), task="sums", samples=shape.samples, verifier="exact_match",
            reference={"answer": shape.answer_text, "after": "="}, deadline_s=4e9,
            prompt_ids=NDArray.of(np.full(prompt, shape.answer, dtype="u4")),
            response_ids=self._responses[False][response],
            logprobs=NDArray.of(np.full(response, -0.5, dtype="f4")), spans=(WeightSpan(0, 0),),
            sampling=Sampling(max_tokens=2 * response),
            finish_reason="stop" if recording.stopped.numpy()[row] else "length",
            engine=EngineInfo(name="recorded", version="1", model="tiny"),
            timings=RolloutTimings(received_s=0, started_s=0, first_token_s=0, finished_s=0), requested_s=0.0,
            time_s=0.0, routes=None if inline is None else on_the_log(inline),
        )  # fmt: skip

    def _response(self, tokens: int, right: bool) -> NDArray:
        shape = self._shape
        response = np.full(tokens, shape.answer, dtype="u4")
        response[-_SHORTEST:] = (shape.equals, shape.answer if right else shape.wrong, shape.eos)
        return NDArray.of(response)


def routes(tokens: int, layers: int, top_k: int) -> npt.NDArray[np.uint8]:
    """Routes `[tokens, layers, top_k]` that a learner accepts: no expert twice for one token."""
    first = np.random.default_rng(0).integers(0, EXPERTS, (tokens, layers, 1), dtype=np.uint8)
    return (first + np.arange(0, top_k, dtype=np.uint8)) % np.uint8(EXPERTS)


def on_the_log(data: NDArray) -> Routes:
    """`data` inline."""
    tokens, layers, top_k = data.shape
    return Routes(experts=EXPERTS, shape=(tokens, layers, top_k), dtype="u1", sentinel=_SENTINEL, data=data)
