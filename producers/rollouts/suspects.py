"""What kills the engine: a prompt, the load, or nothing but itself; and who may be in flight with whom meanwhile."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from producers.rollouts.load_limit import LoadLimit

NARROWING: Final = 16
SICK: Final = 3
"""So many different prompts, each alone, with no rollout in between: it is the engine and none of them."""

STRAY_S: Final = 600.0
"""Two deaths within this time that have no prompt in common: it is the load."""


@dataclass(slots=True)
class _Cohort:
    """A company in which the engine died, and which of its prompts are still to be tried apart."""

    company: int
    untried: set[str]
    survived: int = 0
    condemned: int = 0


class Suspects:
    """Suspicion is by prompt, load is by rollout. Without clock and I/O.

    One death accuses nobody. The prompts in flight at two are suspects: nothing else is generated until each was tried
    in a cohort of a sixteenth of the prompts with which the engine died, then of a sixteenth of that, down to a single
    rollout alone. A prompt that is generated is innocent. One that kills alone is condemned as soon as another
    prompt is generated, or where there is no other: with 256 in flight that is four deaths for one killer.

    Where all suspects of a death were generated apart, it was the load: from then on a `LoadLimit` holds and every
    death lowers it. A company larger than any that was generated is too large and accuses nobody; in a smaller
    one two deaths accuse as ever. Where a prompt is condemned, the limit is again what it was before its deaths.
    """

    def __init__(self, seats: int) -> None:
        self._limit = self._before = LoadLimit(seats)
        self._deaths: dict[str, int] = {}
        self._apart: dict[str, int] = {}
        """Suspects: with how many prompts together each is tried next."""
        self._accused: set[str] = set()
        self._condemned: dict[str, int] = {}
        self._died_alone: dict[str, None] = {}
        self._cohorts: list[_Cohort] = []
        self._survived = 0
        self._stray_s = float("-inf")
        self.findings: list[str] = []
        """Sentences for the log; who logs them clears them."""

    def __len__(self) -> int:
        """Prompts that are under suspicion."""
        return len(self._apart) + len(self._accused)

    @property
    def sick(self) -> list[str]:
        """The prompts, each alone, that prove the engine itself to be at fault; none: it is not."""
        return list(self._died_alone) if len(self._died_alone) >= SICK else []

    def limit(self, now_s: float) -> int | None:
        """Rollouts that may be in flight at once; None: the load has killed nothing."""
        return self._limit.at(now_s)

    def condemned(self, prompt: str) -> int:
        """How often the engine died with it, where it is condemned; else 0."""
        return self._condemned.get(prompt, 0)

    def died(self, running: Mapping[str, str], now_s: float) -> None:
        """The engine died with these rollouts in flight; each with its prompt."""
        prompts = list(dict.fromkeys(running.values()))
        for prompt in prompts:
            self._deaths[prompt] = self._deaths.get(prompt, 0) + 1
        if len(running) == 1:
            self._died_with_one(prompts[0])
            return
        company, searching = len(running), bool(self)
        # With one prompt in flight there is nobody to wrong by trying it in single rollouts at once.
        suspects = [p for p in prompts if searching or len(prompts) == 1 or self._deaths[p] > 1]
        if not searching:
            suspects = self._blame_load(company, prompts, suspects, now_s)
        if not suspects:
            return
        if not searching:
            self._survived = 0
        self._cohorts.append(_Cohort(company, set(suspects)))
        self._apart |= dict.fromkeys(suspects, -(-len(prompts) // NARROWING))

    def generated(self, prompt: str, company: int, now_s: float) -> None:
        """A rollout of it was, with `company` rollouts in flight, itself included."""
        self._survived = max(self._survived, company)
        self._died_alone.clear()
        self._condemn()
        self._leave(prompt, survived=1)
        self._judge_cohorts(now_s)

    def forget(self, prompt: str, now_s: float) -> None:
        """It is given up, for whatever reason."""
        self._condemned.pop(prompt, None)
        self._died_alone.pop(prompt, None)
        self._accused.discard(prompt)
        self._leave(prompt)
        self._judge_cohorts(now_s)

    def admit(self, waiting: Mapping[str, str], running: Collection[str], now_s: float) -> list[str]:
        """Which of the rollouts that wait, each with its prompt, may start now."""
        limit = self.limit(now_s)
        if self and running:
            return []
        if self._accused:
            # Who accompanied the accused least is the best witness that the engine is well.
            witnesses = [key for key, prompt in waiting.items() if prompt not in self._died_alone]
            if witnesses:
                return [min(witnesses, key=lambda key: self._deaths.get(waiting[key], 0))]
            self._condemn()
            self._judge_cohorts(now_s)
        if self._apart:
            return self._next_cohort(waiting, limit)
        free = {key: prompt for key, prompt in waiting.items() if prompt not in self._condemned}
        return list(free if limit is None else islice(free, max(0, limit - len(running))))

    def _next_cohort(self, waiting: Mapping[str, str], limit: int | None) -> list[str]:
        suspects = {key: prompt for key, prompt in waiting.items() if prompt in self._apart}
        if not suspects:
            return []
        smallest = min(self._apart[prompt] for prompt in suspects.values())
        first = dict.fromkeys(prompt for prompt in suspects.values() if self._apart[prompt] == smallest)
        prompts = set(islice(first, smallest))
        keys = (key for key, prompt in suspects.items() if prompt in prompts)
        return list(islice(keys, 1 if smallest == 1 else limit))

    def _died_with_one(self, prompt: str) -> None:
        self._died_alone[prompt] = None
        if self._deaths[prompt] > 1:
            self._apart.pop(prompt, None)
            self._accused.add(prompt)
        elif self:
            self._apart[prompt] = 1

    def _blame_load(self, company: int, prompts: list[str], suspects: list[str], now_s: float) -> list[str]:
        """Lower the limit where the load may have been it; whom the death accuses nevertheless."""
        at_first = max(self._deaths[prompt] for prompt in prompts) == 1
        if at_first:
            # Whatever lowered it until now was the load: who died then has been generated since.
            self._before = self._limit
        if self.limit(now_s) is None:
            stray, self._stray_s = now_s - self._stray_s <= STRAY_S, now_s
            if at_first and stray:
                self._lower(company, f"the engine died twice within {STRAY_S:.0f} s, of no prompt in common", now_s)
            return suspects
        self._lower(company, "the engine died again, which may be its load", now_s)
        if company <= self._survived:
            return suspects
        self._before = self._limit
        return []

    def _lower(self, company: int, why: str, now_s: float) -> None:
        self._limit = self._limit.lowered(company, now_s)
        self.findings.append(
            f"{why}: {self.limit(now_s)} rollouts at once from now on, it died with {min(company, self._limit.seats)}; "
            "a lower producer.max_num_seqs keeps it so"
        )

    def _condemn(self) -> None:
        for prompt in self._accused:
            self._condemned[prompt] = self._deaths.get(prompt, 0)
            self._leave(prompt, condemned=1)
            self._limit, self._stray_s = self._before, float("-inf")
        self._accused.clear()

    def _leave(self, prompt: str, survived: int = 0, condemned: int = 0) -> None:
        self._deaths.pop(prompt, None)
        self._apart.pop(prompt, None)
        for cohort in self._cohorts:
            if prompt in cohort.untried:
                cohort.untried.remove(prompt)
                cohort.survived += survived
                cohort.condemned += condemned

    def _judge_cohorts(self, now_s: float) -> None:
        while self._cohorts and not self._cohorts[-1].untried:
            cohort = self._cohorts.pop()
            if cohort.condemned or not cohort.survived:
                continue
            # All others were accused for the same load; a killer among them will be accused again.
            self._cohorts.clear()
            self._deaths |= dict.fromkeys(self._apart, 1)
            self._apart.clear()
            why = "the engine died of its load: each prompt that was in flight was generated apart"
            self._lower(cohort.company, why, now_s)
            self._before = self._limit
