"""A whole run's records, made of real events through the real codec: what audit, summary and report are tested on."""

import random
from collections import defaultdict
from dataclasses import dataclass, field

from schemas import (
    Event,
    GroupEvaluated,
    GroupReady,
    Member,
    Purpose,
    Ref,
    RolloutScored,
    RolloutTimings,
    WeightsApplied,
    WeightSpan,
    decode,
    encode,
)
from schemas.digests import sequence_digest, step_digest
from tests.builders import (
    batch_planned,
    group_dropped,
    group_ready,
    group_requested,
    planned_sequence,
    rollout_completed,
    rollout_scored,
    step_completed,
    weights_published,
)

PARTITIONS = 2
START_S = 1_700_000_000.0


@dataclass
class SyntheticRun:
    """Records of every topic in log order, and the clock they were made by."""

    records: list[tuple[Ref, bytes]] = field(default_factory=list)
    ends: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    now_s: float = START_S

    def write(self, topic: str, event: Event, partition: int = 0) -> Ref:
        """Appends a record; its reference."""
        ref = Ref(topic, partition, self.ends[topic, partition])
        self.ends[topic, partition] += 1
        self.records.append((ref, encode(event)))
        return ref


@dataclass
class _Group:
    name: str
    partition: int
    scored: list[RolloutScored]


def simulate(steps: int, groups: int = 4, samples: int = 4, every: int = 2, seed: int = 0) -> SyntheticRun:
    """A run in which the pass rate rises: `groups` ready groups a step, a held-back round every `every` steps."""
    run, rng = SyntheticRun(), random.Random(seed)
    visits = 0
    for step in range(steps + 1):
        skill = 0.4 + 0.55 * step / max(1, steps)
        if step % every == 0 or step == steps:
            for k in range(6):
                group = _generate(run, rng, f"held{k}.{step}", 2, skill, step, evaluation=step)
                _evaluate(run, group, step)
        if step == steps:
            break
        ready: list[GroupReady] = []
        while len(ready) < groups:
            group = _generate(run, rng, f"p{visits}.0", samples, skill, step, evaluation=None)
            visits += 1
            if (found := _close(run, group)) is not None:
                ready.append(found)
        _train(run, step, ready, rng)
    return run


def _generate(
    run: SyntheticRun, rng: random.Random, name: str, samples: int, skill: float, version: int, evaluation: int | None
) -> _Group:
    partition = rng.randrange(PARTITIONS)
    purpose: Purpose = "train" if evaluation is None else "evaluate"
    asked_s = run.now_s
    request = run.write(
        "prompts",
        group_requested(
            name, samples=samples, time_s=asked_s, deadline_s=asked_s + 60, purpose=purpose, evaluation=evaluation,
            version=version,
        ),
        partition,
    )  # fmt: skip
    scored = []
    for index in range(samples):
        run.now_s += 0.01 * rng.random()
        tokens = rng.randint(4, 40)
        rollout = run.write(
            "rollouts",
            rollout_completed(
                name, index, prompt=range(4), response=range(tokens), request=request, samples=samples,
                deadline_s=asked_s + 60, spans=(WeightSpan(0, version),),
                timings=RolloutTimings(
                    received_s=asked_s + 0.01, started_s=asked_s + 0.02, first_token_s=asked_s + 0.03,
                    finished_s=run.now_s,
                ),
                requested_s=asked_s, time_s=run.now_s, purpose=purpose, evaluation=evaluation,
            ),
            partition,
        )  # fmt: skip
        passed = float(rng.random() < skill)
        score = rollout_scored(
            name, index, rollout=rollout, samples=samples, deadline_s=asked_s + 60, reward=passed, passed=passed,
            time_s=run.now_s + 0.005, prompt_tokens=4, response_tokens=tokens, oldest_version=version,
            newest_version=version, purpose=purpose, evaluation=evaluation, requested_s=asked_s,
        )  # fmt: skip
        run.write("scores", score, partition)
        scored.append(score)
    return _Group(name, partition, scored)


def _members(group: _Group) -> tuple[Member, ...]:
    return tuple(
        Member(
            rollout_id=score.rollout_id, rollout=score.rollout, reward=score.reward, passed=score.passed,
            prompt_tokens=4, response_tokens=score.response_tokens, oldest_version=score.oldest_version,
            newest_version=score.newest_version,
        )
        for score in group.scored
    )  # fmt: skip


def _evaluate(run: SyntheticRun, group: _Group, evaluation: int) -> None:
    run.now_s += 0.01
    event = GroupEvaluated(
        group_id=group.name, prompt_id="held", task="sums", evaluation=evaluation, members=_members(group),
        time_s=run.now_s,
    )  # fmt: skip
    run.write("groups", event, group.partition)


def _close(run: SyntheticRun, group: _Group) -> GroupReady | None:
    run.now_s += 0.01
    rewards = {score.reward for score in group.scored}
    mean = sum(score.reward for score in group.scored) / len(group.scored)
    if len(rewards) == 1:
        dropped = group_dropped(group.name, *_members(group), prompt_id="p", time_s=run.now_s, reward_mean=mean)
        run.write("groups", dropped, group.partition)
        return None
    ready = group_ready(
        group.name, *_members(group), prompt_id="p", reward_mean=mean, time_s=run.now_s, deadline_s=run.now_s + 60
    )
    run.write("groups", ready, group.partition)
    return ready


def _train(run: SyntheticRun, batch: int, ready: list[GroupReady], rng: random.Random) -> None:
    sequences = tuple(
        planned_sequence(
            member.rollout_id,
            member.rollout,
            reward=member.reward,
            response_tokens=member.response_tokens,
            oldest_version=member.oldest_version,
        )
        for group in ready
        for member in group.members
    )
    run.now_s += 0.05
    planned = batch_planned(
        batch, groups=tuple(group.group_id for group in ready), sequences=sequences,
        ranks=((tuple(range(len(sequences))),),), token_budget=4096, time_s=run.now_s,
    )  # fmt: skip
    ref = run.write("batches", planned)
    run.now_s += 0.5
    fade = 1 - batch / 50
    metrics = {
        "reward": sum(sequence.reward for sequence in sequences) / len(sequences),
        "entropy": 0.3 * fade, "entropy/high": 0.9 * fade, "entropy/low": 0.1 * fade, "staleness": 0.4,
        "staleness_max": float(min(1, batch)), "replay/k3_off": 4e-4 * fade * (1 + rng.random()),
        "replay/k3_on": 1e-4 * fade * (1 + rng.random()), "replay/flip_share": 0.03,
    }  # fmt: skip
    tokens = sum(sequence.response_tokens for sequence in sequences)
    bodies = dict(run.records)
    digests = [sequence_digest(each, decode(bodies[each.rollout])) for each in sequences]  # type: ignore[arg-type]
    step = step_completed(
        batch + 1, batch=batch, batch_ref=ref, version=batch + 1, metrics=metrics, time_s=run.now_s, tokens=tokens,
        sequences=len(sequences), wall_s=0.4, waited_s=0.1, trained_digest=step_digest(digests),
        config_digest="sha256:00",
    )  # fmt: skip
    run.write("steps", step)
    run.write("weights", weights_published(batch + 1, tensors=1, time_s=run.now_s + 0.02))
    applied = WeightsApplied(
        producer_id="producer-0", version=batch + 1, time_s=run.now_s + 0.05, published_s=run.now_s + 0.02, pause_s=0.01
    )
    run.write("applied", applied)
