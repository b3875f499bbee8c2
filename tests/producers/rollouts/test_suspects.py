"""What kills the engine, found against simulated engines of which killers and bearable load are known."""

import math
import random
from dataclasses import dataclass, field

import pytest

from producers.rollouts.load_limit import FORGET_S, QUIET_S, LoadLimit
from producers.rollouts.suspects import NARROWING, SICK, STRAY_S, Suspects

GENERATION_S = 120.0


@dataclass
class Engine:
    """Prompts in flight are generated one after another, or it dies: of a killer, or of more rollouts than `bears`."""

    seats: int
    bears: int
    killers: set[str]
    suspects: Suspects = field(init=False)
    now_s: float = 0.0
    deaths: int = 0
    barren: int = 0
    most_barren: int = 0
    deaths_by_killer: int = 0
    generated: set[str] = field(default_factory=set)
    condemned: set[str] = field(default_factory=set)
    cohorts: int = 0
    most_prompts: int = 1
    search_s: float = 0.0

    def __post_init__(self) -> None:
        self.suspects = Suspects(self.seats)

    def run(self, rollouts: dict[str, str], in_flight: int, chance: random.Random, until_deaths: int = 400) -> None:
        """Generate all of `rollouts`, each with its prompt, or find that the engine is sick."""
        pending, waiting, running = dict(rollouts), dict[str, str](), dict[str, str]()
        while pending or waiting or running:
            assert self.deaths < until_deaths, "an end"
            while pending and len(waiting) + len(running) < in_flight:
                key = next(iter(pending))
                waiting[key] = pending.pop(key)
            admitted = self.suspects.admit(waiting, running, self.now_s)
            self.cohorts += bool(self.suspects and admitted)
            for key in admitted:
                running[key] = waiting.pop(key)
            for prompt in list(waiting.values()):
                if self.suspects.condemned(prompt):
                    self.condemned.add(prompt)
                    for place in (waiting, pending):
                        for each in [each for each, of in place.items() if of == prompt]:
                            del place[each]
                    self.suspects.forget(prompt, self.now_s)
            if not running:
                assert not waiting or self.suspects.admit(dict(waiting), {}, self.now_s), "somebody may go on"
                continue
            computed = dict(list(running.items())[: self.seats])
            if self.killers & set(computed.values()) or len(computed) > self.bears:
                self._die(running, computed)
                if self.suspects.sick:
                    return
                # Rollouts come back in any order.
                back = list(running.items())
                if chance.random() < 0.5:
                    chance.shuffle(back)
                waiting |= dict(back)
                running.clear()
                continue
            for key in chance.sample(list(computed), max(1, len(computed) // 2)):
                self.now_s += (took_s := GENERATION_S / len(computed))
                self.search_s += took_s if self.suspects else 0.0
                self.barren = 0
                prompt = running[key]
                self.suspects.generated(prompt, len(running), self.now_s)
                del running[key]
                self.generated.add(key)

    def _die(self, running: dict[str, str], computed: dict[str, str]) -> None:
        self.deaths += 1
        self.most_prompts = max(self.most_prompts, len(set(running.values())))
        self.barren += 1
        self.most_barren = max(self.most_barren, self.barren)
        self.deaths_by_killer += len(computed) <= self.bears
        self.suspects.died(running, self.now_s)


def rollouts_of(prompts: int, samples: int) -> dict[str, str]:
    return {f"{prompt}.{index}": str(prompt) for prompt in range(prompts) for index in range(samples)}


def search_deaths(prompts: int) -> int:
    """What is promised for one killer among so many prompts in flight."""
    return 2 + max(1, math.ceil(math.log(max(prompts, 2), NARROWING)))


@pytest.mark.parametrize("seed", range(100))
def test_killers_and_nobody_else_are_condemned(seed: int) -> None:
    chance = random.Random(seed)
    prompts, samples = chance.randint(1, 300), chance.choice([1, 1, 2, 8])
    killers = {str(chance.randrange(prompts)) for _ in range(chance.choice([1, 1, 1, 2, 4]))}
    in_flight = chance.randint(1, prompts * samples)
    engine = Engine(chance.choice([16, 64, 256]), 10**9, killers)
    engine.run(rollouts_of(prompts, samples), in_flight, chance)
    if engine.suspects.sick:
        assert len(killers) >= SICK
        return
    assert engine.condemned == killers
    assert engine.generated == {key for key, of in rollouts_of(prompts, samples).items() if of not in killers}
    assert engine.deaths <= search_deaths(engine.most_prompts) * len(killers) + (len(killers) > 1)
    assert engine.cohorts <= 1 + NARROWING * engine.deaths
    assert not engine.suspects and engine.most_barren < 6


def test_one_of_256_is_found_after_four_deaths() -> None:
    for samples in (1, 8):
        engine = Engine(256, 10**9, {"77"})
        engine.run(rollouts_of(256, samples), 256 * samples, random.Random(0))
        assert engine.deaths == 4 and engine.condemned == {"77"}
    engine = Engine(256, 10**9, {"0"})
    engine.run(rollouts_of(1, 8), 8, random.Random(0))
    assert engine.deaths == 2 and engine.condemned == {"0"}


@pytest.mark.parametrize("seed", range(100))
def test_load_condemns_nobody_and_costs_few_deaths(seed: int) -> None:
    chance = random.Random(seed)
    seats, samples = chance.choice([16, 64, 256]), chance.choice([1, 4, 8])
    bears = chance.randint(1, seats - 1)
    engine = Engine(seats, bears, set())
    rollouts = rollouts_of(2000 // samples, samples)
    engine.run(rollouts, chance.randint(bears + 1, 2 * seats), chance)
    assert engine.generated == rollouts.keys() and not engine.condemned and engine.most_barren < 6
    assert engine.deaths <= 2 + math.log2(seats / bears) + 4 * (1 + engine.now_s / 3600)
    # But for the search, and for the last rollouts, which leave the engine half empty: half of what it bears, or more.
    least_s = GENERATION_S * len(rollouts) / bears
    assert engine.now_s - engine.search_s <= 2 * least_s + 10 * GENERATION_S
    assert engine.cohorts <= 1 + NARROWING * engine.deaths
    limit = engine.suspects.limit(engine.now_s)
    assert limit is None or limit >= bears // 2


@pytest.mark.parametrize("seed", range(100))
def test_a_killer_among_a_heavy_load_is_found(seed: int) -> None:
    chance = random.Random(seed)
    seats, samples = chance.choice([64, 256]), chance.choice([1, 4, 8])
    bears = chance.randint(seats // 32, seats - 1)
    prompts = 2000 // samples
    killers = {str(chance.randrange(prompts)) for _ in range(chance.choice([1, 1, 2]))}
    engine = Engine(seats, bears, killers)
    engine.run(rollouts_of(prompts, samples), chance.randint(bears + 1, 2 * seats), chance)
    assert engine.condemned == killers and not engine.suspects
    assert engine.most_barren < 6
    assert engine.deaths_by_killer <= (search_deaths(engine.most_prompts) + 2) * len(killers)
    by_load = engine.deaths - engine.deaths_by_killer
    assert by_load <= (2 + math.log2(seats / bears)) * (1 + len(killers)) + 4 * (1 + engine.now_s / 3600)


@pytest.mark.parametrize("seed", range(50))
def test_a_sick_engine_condemns_nobody(seed: int) -> None:
    chance = random.Random(seed)
    engine = Engine(64, 0, set())
    engine.run(rollouts_of(chance.randint(SICK, 300), chance.choice([1, 8])), 2000, chance)
    assert len(engine.suspects.sick) == SICK and not engine.condemned and engine.deaths <= 4 + SICK


def test_deaths_with_no_prompt_in_common_are_the_loads() -> None:
    suspects = Suspects(64)
    suspects.died({"a.0": "a", "b.0": "b"}, 0.0)
    assert suspects.limit(0.0) is None and not suspects
    suspects.generated("a", 2, 1.0)
    suspects.generated("b", 1, 1.0)
    suspects.died({f"{name}.0": name for name in "cdefgh"}, STRAY_S)
    assert suspects.limit(STRAY_S) == 3 and not suspects
    (finding,) = suspects.findings
    assert finding.startswith("the engine died twice within 600 s, of no prompt in common: 3 rollouts at once")


def test_the_limit_halves_and_rises_and_stays_below_what_killed_twice() -> None:
    limit = LoadLimit(256).lowered(2048, 0.0)
    assert [limit.at(QUIET_S * minutes) for minutes in (0, 1, 2, 7, 8)] == [128, 144, 160, 240, None]
    limit = limit.lowered(160, 120.0)
    assert [limit.at(120.0 + QUIET_S * minutes) for minutes in (0, 8, 59)] == [80, 160, 255]
    limit = limit.lowered(100, 600.0)
    assert [limit.at(600.0 + QUIET_S * minutes) for minutes in (0, 1, 59)] == [50, 56, 159]
    assert limit.at(600.0 + FORGET_S) == 159 and limit.at(600.0 + FORGET_S + QUIET_S) == 165
    assert limit.at(600.0 + 2 * FORGET_S) is None and LoadLimit(256).at(0.0) is None
    again = limit.lowered(100, 600.0 + FORGET_S)
    assert again.killed == (100,), "what killed an hour ago is forgotten"
