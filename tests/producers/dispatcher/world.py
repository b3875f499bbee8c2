"""A small world around the dispatcher: prompts, and the events that the other services would write."""

import random
from collections.abc import Sequence

from producers.dispatcher.dispatch import Dispatch
from producers.dispatcher.settings import DispatcherSettings
from producers.dispatcher.sources import JsonlSource, Prompt
from schemas import (
    BatchPlanned,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Member,
    Ref,
    WeightsApplied,
)
from tests.builders import batch_planned, group_dropped, group_ready, step_completed, weights_published


def prompts(count: int, task: str = "t") -> list[Prompt]:
    return [
        Prompt.of(task=task, verifier="exact_match", reference=str(i), text=f"{task}{i}=", origin=f"line {i}")
        for i in range(count)
    ]


def configured(**values: object) -> DispatcherSettings:
    return DispatcherSettings(**({"source": JsonlSource(path="unused")} | values))  # type: ignore[arg-type]


def ready(request: GroupRequested, tokens: int = 5) -> GroupReady:
    member = Member(rollout_id="r", rollout=Ref("rollouts", 0, 0), response_tokens=tokens)
    return group_ready(
        request.group_id, member, prompt_id=request.prompt_id, task=request.task, deadline_s=request.deadline_s
    )


def dropped(request: GroupRequested) -> GroupDropped:
    return group_dropped(request.group_id, prompt_id=request.prompt_id, task=request.task)


def evaluated(request: GroupRequested) -> GroupEvaluated:
    assert request.evaluation is not None
    return GroupEvaluated(
        group_id=request.group_id, prompt_id=request.prompt_id, task=request.task, members=(), time_s=0,
        evaluation=request.evaluation,
    )  # fmt: skip


def planned(batch: int, groups: Sequence[str]) -> BatchPlanned:
    return batch_planned(batch, groups=tuple(groups))


def applied(producer: str, version: int) -> WeightsApplied:
    return WeightsApplied(producer_id=producer, version=version, time_s=0)


def started(dispatch: Dispatch) -> Dispatch:
    dispatch.rebuilt()
    return dispatch


def of(requests: Sequence[GroupRequested], purpose: str) -> list[GroupRequested]:
    return [request for request in requests if request.purpose == purpose]


class World:
    """Everything that other services would write, by topic, as a log."""

    def __init__(self, rng: random.Random, groups_per_batch: int) -> None:
        self.rng = rng
        self.size = groups_per_batch
        self.log: dict[str, list[Event]] = {"prompts": [], "groups": [], "batches": [], "steps": [], "weights": []}
        self.open: list[GroupRequested] = []
        self.complete: list[GroupRequested] = []
        self.untrained: list[int] = []
        self.slots = 0

    def request(self, requests: Sequence[GroupRequested]) -> None:
        self.log["prompts"] += requests
        self.open += requests
        self.slots += len(of(requests, "train"))

    def step(self) -> list[Event]:
        """One thing happens; what was written."""
        events: list[Event] = []
        if self.open and self.rng.random() < 0.7:
            request = self.open.pop(self.rng.randrange(len(self.open)))
            if request.purpose == "evaluate":
                events = [evaluated(request)]
            elif self.rng.random() < 0.4:
                events = [dropped(request)]
                self.slots -= 1
            else:
                events = [ready(request)]
                self.complete.append(request)
            self.log["groups"] += events
        elif len(self.complete) >= self.size:
            batch, self.complete = self.complete[: self.size], self.complete[self.size :]
            number = len(self.log["batches"])
            events = [planned(number, [request.group_id for request in batch])]
            self.log["batches"] += events
            self.untrained.append(number)
        elif self.untrained:
            number = self.untrained.pop(0)
            events = [step_completed(number), weights_published(number + 1)]
            self.log["steps"].append(events[0])
            self.log["weights"].append(events[1])
            self.slots -= self.size
        return events

    def replayed(self) -> list[Event]:
        """The whole log; each topic in its order, the topics interleaved in any way."""
        rest = {name: list(events) for name, events in self.log.items() if events}
        merged: list[Event] = []
        while rest:
            name = self.rng.choice(sorted(rest))
            merged.append(rest[name].pop(0))
            if not rest[name]:
                del rest[name]
        return merged
