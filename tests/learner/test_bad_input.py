"""Two ranks of the service on a log with every kind of bad record: each is rejected in one sentence and becomes a dead
letter, the rest is trained on, every rollout has one disposition, and a process that resumes makes the same weights.

The proof that nothing was trained on a refused rollout: the weights are, bit for bit, those of a second run whose
batches never held it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from analysis.history.read import audit_of
from analysis.history.run_log import RunLog
from schemas import (
    BatchPlanned,
    DeadLetter,
    Member,
    NDArray,
    PlannedSequence,
    Ref,
    RolloutCompleted,
    Routes,
    Sampling,
    StepCompleted,
    WeightsPublished,
    encode,
)
from streams.log.clients import Writer
from streams.record import Output
from tests.builders import batch_planned, group_ready, planned_sequence
from tests.learner.service_run import GROUP, Run, completed, end

BUDGET = 60
"""Tokens of a micro-batch here; the test's model takes sequences of 64."""

Corrupt = Callable[[RolloutCompleted], RolloutCompleted]


def routes_of(rollout: RolloutCompleted, change: Callable[[np.ndarray[Any, Any]], Any], **fields: Any) -> Routes:
    """The rollout's routes with their array changed."""
    assert rollout.routes is not None and rollout.routes.data is not None
    array = np.ascontiguousarray(change(rollout.routes.data.numpy().copy()))
    changed = {"shape": array.shape, "data": NDArray.of(array), **fields}
    return msgspec.structs.replace(rollout.routes, **changed)


def with_routes(change: Callable[[np.ndarray[Any, Any]], Any], **fields: Any) -> Corrupt:
    def corrupt(rollout: RolloutCompleted) -> RolloutCompleted:
        # A writer that does not check: `replace` would look at the number of tokens.
        msgspec.structs.force_setattr(rollout, "routes", routes_of(rollout, change, **fields))
        return rollout

    return corrupt


def with_logprob(value: float) -> Corrupt:
    def corrupt(rollout: RolloutCompleted) -> RolloutCompleted:
        array = rollout.logprobs.numpy().copy()
        array[1] = value
        msgspec.structs.force_setattr(rollout, "logprobs", NDArray.of(array))
        return rollout

    return corrupt


def with_mask(*entries: int) -> Corrupt:
    def corrupt(rollout: RolloutCompleted) -> RolloutCompleted:
        msgspec.structs.force_setattr(rollout, "loss_mask", NDArray.of(np.array(entries, np.uint8)))
        return rollout

    return corrupt


def with_tokens(prompt: int, response: int, token: int = 5) -> Corrupt:
    def corrupt(rollout: RolloutCompleted) -> RolloutCompleted:
        return msgspec.structs.replace(
            rollout,
            prompt_ids=NDArray.of(np.full(prompt, 5, dtype=np.uint32)),
            response_ids=NDArray.of(np.full(response, token, dtype=np.uint32)),
            logprobs=NDArray.of(np.full(response, -3.4, dtype=np.float32)),
            routes=None,
        )

    return corrupt


def drawn(**sampling: Any) -> Corrupt:
    return lambda rollout: msgspec.structs.replace(rollout, sampling=Sampling(max_tokens=8, **sampling))


def one_expert(number: int) -> Callable[[np.ndarray[Any, Any]], Any]:
    def change(array: np.ndarray[Any, Any]) -> Any:
        array[0, 0] = (number, 1)
        return array

    return change


BAD: tuple[tuple[str, Corrupt], ...] = (
    ("routes are of 3 layers and top-2 of 4 experts, the model has 2 and top-2 of 4",
     with_routes(lambda array: np.concatenate([array, array[:, :1]], axis=1))),
    ("routes are of 2 layers and top-3 of 4 experts, the model has 2 and top-2 of 4",
     with_routes(lambda array: np.concatenate([array, array[..., :1]], axis=2))),
    ("has routes for tokens 0 to 4 of 5", with_routes(lambda array: array[:-1])),
    ("routes are of 2 layers and top-2 of 8 experts", with_routes(lambda array: array, experts=8)),
    ("routes name expert 4 of 4", with_routes(one_expert(4))),
    ("routes name one expert twice for one token", with_routes(one_expert(1))),
    ("has a log-prob that is not finite", with_logprob(float("nan"))),
    ("has a log-prob that is not finite", with_logprob(float("inf"))),
    ("has a log-prob that is not finite", with_logprob(float("-inf"))),
    ("70 tokens are more than the 64 that the model takes", with_tokens(3, 67)),
    ("62 tokens are more than the 60 of a micro-batch (batches.token_budget)", with_tokens(3, 59)),
    ("token id 32 is not below the vocabulary's 32", with_tokens(3, 2, token=32)),
    ("0 prompt and 5 response tokens", with_tokens(0, 5)),
    ("3 prompt and 0 response tokens", with_tokens(3, 0)),
    ("has a loss_mask u1[1] for 2 response tokens", with_mask(1)),
    ("has a loss_mask with 2; allowed are 0 (given) and 1 (sampled)", with_mask(1, 2)),
    ("by which none of its 2 response tokens was sampled", with_mask(0, 0)),
    ("has log-prob -3.4 for response token 1, which its loss_mask says was not sampled", with_mask(1, 0)),
    ("sampled with temperature 0, top_p 1, top_k 0", drawn(temperature=0.0)),
    ("sampled with temperature 1, top_p 0.9, top_k 0", drawn(top_p=0.9)),
)  # fmt: skip
"""Each bad record, with the sentence that rejects it."""

HALF = len(BAD) // 2


@dataclass
class Written:
    """What was written to the log, by rollout id: expected rejection, the record's place and bytes, tokens sampled."""

    due: dict[str, str] = field(default_factory=dict)
    records: dict[str, tuple[Ref, bytes]] = field(default_factory=dict)
    sampled: dict[str, int] = field(default_factory=dict)
    plans: list[BatchPlanned] = field(default_factory=list)


class Log:
    """Writes rollouts, their group and the plan of a batch, as the stages before the learner would."""

    def __init__(self, run: Run, writer: Writer, without_bad: bool) -> None:
        self._run = run
        self._writer = writer
        self._without_bad = without_bad
        self.written = Written()

    async def batch(self, bad: Sequence[tuple[str, Corrupt]], good: int, ranks: Any = None) -> None:
        """The next batch: the `bad` records and then `good` ones, two sequences a micro-batch, dealt to two ranks."""
        number = len(self.written.plans)
        wanted: list[tuple[str, Corrupt | None]] = [*bad, *[("", None)] * good]
        sequences: list[PlannedSequence] = []
        micros = defaultdict[int, list[int]](list)
        for index, (sentence, corrupt) in enumerate(wanted):
            if corrupt is None:
                event = completed(index, number)
            elif self._without_bad:
                continue
            else:
                # Three prompt and two response tokens, as the sentences expect.
                event = corrupt(completed(5 * (index + 20), number))
                self.written.due[event.rollout_id] = sentence
            micros[index // 2].append(len(sequences))
            sequences.append(await self._planned(event, index))
        dealt = [[tuple(micros[place]) for place in sorted(micros) if place % 2 == rank] for rank in range(2)]
        await self._plan(number, sequences, ranks or dealt)

    async def junk(self, ranks: Any) -> None:
        """A plan of the first batch's rollouts under the next number, which a writer that does not check made."""
        plan = msgspec.structs.replace(self.written.plans[0], batch=len(self.written.plans))
        msgspec.structs.force_setattr(plan, "sequences", plan.sequences[:4])
        msgspec.structs.force_setattr(plan, "ranks", ranks)
        await self._writer.write(Output("batches", plan))

    async def _planned(self, event: RolloutCompleted, index: int) -> PlannedSequence:
        ref = await self._writer.write(Output("rollouts", event, key=GROUP))
        self.written.records[event.rollout_id] = (ref, encode(event))
        self.written.sampled[event.rollout_id] = event.sampled_tokens
        return planned_sequence(
            event.rollout_id,
            ref,
            advantage=1.0 if index % 2 else -1.0,
            reward=float(index % 2),
            prompt_tokens=event.prompt_ids.shape[0],
            response_tokens=event.response_ids.shape[0],
        )

    async def _plan(self, number: int, sequences: list[PlannedSequence], ranks: Any) -> None:
        members = tuple(Member(rollout_id=each.rollout_id, rollout=each.rollout) for each in sequences)
        group = f"{GROUP}.{number}"
        ready = group_ready(group, *members, prompt_id="g")
        await self._writer.write(Output("groups", ready, key=group))
        plan = batch_planned(
            number, groups=(group,), sequences=tuple(sequences), ranks=tuple(map(tuple, ranks)), token_budget=BUDGET
        )
        await self._writer.write(Output("batches", plan))
        self.written.plans.append(plan)


async def write(run: Run, without_bad: bool = False) -> Written:
    """Five batches; `without_bad` plans and writes only what can be trained on, in the same places."""
    async with Writer(run.log) as writer:
        log = Log(run, writer, without_bad)
        await log.batch((), 8)
        await log.batch(BAD[:HALF], 2)
        await log.batch(BAD[HALF:], 5)
        await log.batch((), 0)
        for wrong in DEALT:
            await log.junk(wrong)
        # Planned for three ranks, as before a restart with two.
        await log.batch((), 6, ranks=(((0, 1),), ((2, 3),), ((4, 5),)))
        return log.written


DEALT: tuple[tuple[tuple[tuple[int, ...], ...], ...], ...] = (
    (((0, 1),), ((2, 3, 4),)),
    (((0, 1),), ((2, 3, 1),)),
    (((0, 1),), ((3,),)),
)
"""Ranks that do not fit four sequences: one is unknown, one comes twice, one is left out."""
EMPTY = 3
LAST = 5
"""Weights after the last batch."""


async def digests(run: Run) -> dict[int, set[str | None]]:
    """Digests of the published weights by version; more than one where two processes differ."""
    found: dict[int, set[str | None]] = defaultdict(set)
    for event in await run.events("weights"):
        if isinstance(event, WeightsPublished):
            found[event.version].add(event.digest)
    return found


async def train_with_restarts(run: Run) -> None:
    """Ranks that stop at a checkpoint before any bad record, ranks killed at the end, ranks that do it again."""
    run.settings |= {"max_steps": 1, "checkpoint_every": 100}
    with run.ranks() as children:
        await run.published(1, children)
        assert await end(children) == [0, 0], run.complaint(0)
    run.settings["max_steps"] = None
    with run.ranks() as children:
        await run.published(LAST, children)
    run.settings["max_steps"] = LAST
    before = len(await run.events("weights"))
    with run.ranks() as children:
        # Whatever was published once is published again.
        await run.records("weights", before + LAST - 1, children)
        assert await end(children) == [0, 0], run.complaint(0)


async def test_bad_records_are_rejected_and_nothing_is_trained_on_them(run: Run) -> None:
    written = await write(run)
    await train_with_restarts(run)
    steps = [event for event in await run.events("steps") if isinstance(event, StepCompleted)]
    assert sorted(step.step for step in steps) == [1, *sorted([*range(2, LAST + 1)] * 2)]
    check_refusals(written, steps)
    await check_dead_letters(run, written)
    await check_audit(run, written)
    published = await digests(run)
    assert {version: len(found) for version, found in published.items()} == dict.fromkeys(range(1, LAST + 1), 1)
    # The empty batch changes nothing; each of the others does.
    assert published[EMPTY] == published[EMPTY + 1] and len(set.union(*published.values())) == LAST - 1
    for wrong in range(len(DEALT)):
        assert f"skipped batches/0@{EMPTY + 1 + wrong}: " in run.complaint(0)
    assert run.complaint(0).count("batch 4 does not place each of its 4 sequences once") >= len(DEALT)

    other = await run.another("without", max_steps=LAST)
    await write(other, without_bad=True)
    with other.ranks() as children:
        await other.published(LAST, children)
        assert await end(children) == [0, 0], other.complaint(0)
    assert await digests(other) == published


def check_refusals(written: Written, steps: Sequence[StepCompleted]) -> None:
    """Both processes reject the same rollouts for the same reasons, and train on all the others."""
    rejected: dict[int, dict[str, str]] = {}
    for step in steps:
        plan = written.plans[step.batch]
        refused = {each.rollout_id: each.reason for each in step.rejected}
        assert rejected.setdefault(step.step, refused) == refused
        left = [each for each in plan.sequences if each.rollout_id not in refused]
        assert (step.sequences, step.tokens) == (len(left), sum(written.sampled[each.rollout_id] for each in left))
    for number, refused in rejected.items():
        assert refused.keys() == {each.rollout_id for each in written.plans[number - 1].sequences} & written.due.keys()
        for rollout_id, reason in refused.items():
            assert written.due[rollout_id] in reason and "\n" not in reason, reason


async def check_dead_letters(run: Run, written: Written) -> None:
    """One dead letter for each bad record, with its bytes and its key."""
    dead_letters = [event for event in await run.events("dead-letters") if isinstance(event, DeadLetter)]
    kept = {(each.source, bytes(each.data)): each for each in dead_letters}
    # A process that had prefetched when it ended wrote some, which its successor re-publishes: same place and bytes.
    assert kept.keys() == {written.records[name] for name in written.due}
    for name, sentence in written.due.items():
        kept_record = kept[written.records[name]]
        assert kept_record.stage == "learner" and sentence in kept_record.error and kept_record.key == GROUP.encode()


async def check_audit(run: Run, written: Written) -> None:
    audit = await asyncio.to_thread(audit_of, RunLog(run.context.bootstrap, run.context.run), digests=True)
    refused = len(written.due)
    assert audit.clean and not audit.findings and audit.in_flight == 0, audit
    assert audit.produced == len(written.records) and audit.steps_verified == LAST
    assert {name: count for name, count in audit.dispositions.items() if count} == {
        "invalid": refused,
        "trained": audit.produced - refused,
    }
