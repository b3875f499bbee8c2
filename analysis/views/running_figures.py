"""The figures that `up` shows, in memory that does not grow with the run: it may be up for weeks.

`analysis.views.live_figures` computes the same snapshot from a whole history, for a run of minutes. Here only what is
newest is held, so rollouts by place are not known (the readers' lag tells where records wait), and counts are since
the view began.
"""

from collections import Counter, deque
from typing import Final, TypeVar

from analysis.views.live_figures import RATE_WINDOW_S, RECENT_ROLLOUTS, RECENT_STEPS, Snapshot, pace
from schemas import (
    DeadLetter,
    Event,
    GroupDropped,
    GroupEvaluated,
    GroupReady,
    GroupRequested,
    Ref,
    RolloutScored,
    StepCompleted,
)

_T = TypeVar("_T")

_ROUNDS: Final = 2
_REASONS: Final = 64
_REASON_CHARACTERS: Final = 160
_NOTE_EVERY_S: Final = 10.0


class RunningFigures:
    """Feed it the tail of the log and what follows. `began_s`: when the view began (Unix seconds)."""

    def __init__(self, began_s: float) -> None:
        self._began_s = began_s
        self._passed: deque[float] = deque(maxlen=RECENT_ROLLOUTS)
        self._tokens: deque[tuple[float, int]] = deque()
        self._steps: deque[tuple[int, float]] = deque(maxlen=RECENT_STEPS)
        self._newest: StepCompleted | None = None
        self._reasons: Counter[str] = Counter()
        self._requested: dict[int, set[str]] = {}
        self._evaluated: dict[int, dict[str, tuple[float, int]]] = {}
        self._dead_letters = 0
        self._refusals: Counter[str] = Counter()
        self._unreported = 0
        self._reported_s = 0.0

    def add(self, event: Event, ref: Ref) -> None:
        """Add one event; `ref` is the place of its record."""
        match event:
            case GroupRequested() if event.evaluation is not None:
                _round(self._requested, event.evaluation, set()).add(event.group_id)
            case RolloutScored():
                if event.purpose == "train" and event.passed is not None:
                    self._passed.append(event.passed)
                self._tokens.append((event.time_s, event.generated_tokens))
            case GroupEvaluated():
                passed = [member.passed for member in event.members if member.passed is not None]
                groups = _round(self._evaluated, event.evaluation, {})
                groups.setdefault(event.group_id, (sum(passed), len(passed)))
            case GroupReady() | GroupDropped() if event.time_s >= self._began_s:
                self._reasons["ready" if isinstance(event, GroupReady) else event.reason] += 1
            case StepCompleted():
                # A repeated record of a step says the same; the first counts.
                if self._newest is None or event.step > self._newest.step:
                    self._newest = event
                    if event.time_s >= self._began_s:
                        self._steps.append((event.step, event.time_s))
            case DeadLetter() if event.time_s >= self._began_s:
                self._dead_letters += 1
                self._unreported += 1
                reason = f"{event.stage}: {event.error}"[:_REASON_CHARACTERS]
                if reason in self._refusals or len(self._refusals) < _REASONS:
                    self._refusals[reason] += 1
            case _:
                pass

    def snapshot(self, *, now_s: float, steps: int, lag: dict[str, int]) -> Snapshot:
        """The figures at `now_s` (Unix seconds) of a run of `steps` steps, 0 for no end."""
        while self._tokens and self._tokens[0][0] <= now_s - RATE_WINDOW_S:
            self._tokens.popleft()
        newest = self._newest
        step = newest.step if newest else 0
        steps_per_h, left_s = pace(self._steps, now_s, steps)
        return Snapshot(
            time_s=now_s,
            step=step,
            steps=steps,
            pass_rate=sum(self._passed) / len(self._passed) if self._passed else None,
            held_back=self._held_back(),
            reward=newest.metrics.get("reward") if newest else None,
            tokens_per_s=sum(tokens for _, tokens in self._tokens) / RATE_WINDOW_S,
            staleness=newest.metrics.get("staleness") if newest else None,
            groups_ready=self._reasons["ready"],
            groups_dropped={name: n for name, n in sorted(self._reasons.items()) if name != "ready"},
            queues={},
            lag=lag,
            dead_letters=self._dead_letters,
            steps_per_h=steps_per_h,
            left_s=left_s,
        )

    def notes(self, now_s: float) -> list[str]:
        """Sentences about what came since the last call; dead letters in one at most every ten seconds."""
        if not self._unreported or now_s - self._reported_s < _NOTE_EVERY_S:
            return []
        unreported, self._unreported, self._reported_s = self._unreported, 0, now_s
        reason, times = self._refusals.most_common(1)[0]
        total = f", {self._dead_letters} since the start" if self._dead_letters > unreported else ""
        which = ""
        if times < self._dead_letters:
            which = f"most of them ({times}) " if 2 * times > self._dead_letters else f"for example ({times} of them) "
        return [f"{unreported} dead letter{'s' if unreported > 1 else ''}{total}: {which}{reason}"]

    def _held_back(self) -> tuple[int, float] | None:
        for evaluation in sorted(self._evaluated, reverse=True):
            groups = self._evaluated[evaluation]
            asked = self._requested.get(evaluation)
            if asked is not None and asked <= groups.keys() and (n := sum(count for _, count in groups.values())):
                return evaluation, sum(passed for passed, _ in groups.values()) / n
        return None


def _round(rounds: dict[int, _T], evaluation: int, new: _T) -> _T:
    found = rounds.setdefault(evaluation, new)
    for old in sorted(rounds)[:-_ROUNDS]:
        del rounds[old]
    return found
