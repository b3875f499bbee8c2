"""Length-aware packing against packing that does not look: the slowest rank's cost, micro-batches and waiting.

    python benchmarks/packing.py [--seed 0] [--batches 20] [--sequences 128] [--ranks 8] [--token-budget 32768]

Batches are drawn from length distributions; each is divided by `consumers.batches.packing.plan`, round-robin in the
order of arrival, and round-robin in the order of length. Costs are those of Qwen3-30B-A3B (`consumers.batches.cost`).
Columns, means over the batches: `slowest` is the slowest rank's cost over the mean rank's; `step` is the cost of a step
whose ranks wait for each other after every micro-batch, over the mean rank's cost; `micro` micro-batches per rank;
`fill` used share of the token budget; `ms` time to plan.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

from consumers.batches.cost import cost_of_model
from consumers.batches.packing import plan

Divided = list[list[list[int]]]
Cost = tuple[float, float]

MODEL: Final = {
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "vocab_size": 151936,
}


def lengths_of(name: str, count: int, longest: int, chosen: random.Random) -> list[int]:
    """`count` sequence lengths in tokens from the named distribution, none above `longest`."""
    match name:
        case "lognormal":
            drawn = [chosen.lognormvariate(math.log(longest / 16), 1.0) for _ in range(count)]
        case "reasoning":
            # Most answers are of medium length; one in ten runs into the limit.
            drawn = [longest if chosen.random() < 0.1 else chosen.gammavariate(2.0, longest / 12) for _ in range(count)]
        case "bimodal":
            drawn = [chosen.gauss(longest / 3 if chosen.random() < 0.3 else longest / 40, 50) for _ in range(count)]
        case "uniform":
            drawn = [chosen.uniform(1, longest) for _ in range(count)]
        case _:
            raise ValueError(f"distribution {name!r} is not one of lognormal, reasoning, bimodal, uniform")
    return [min(longest, max(1, int(length))) for length in drawn]


def round_robin(order: Sequence[int], lengths: Sequence[int], ranks: int, budget: int) -> Divided:
    """Every `ranks`-th sequence of `order` on a rank, its micro-batches filled one after another."""
    divided: Divided = []
    for rank in range(ranks):
        micro: list[list[int]] = [[]]
        used = 0
        for i in order[rank::ranks]:
            if used + lengths[i] > budget:
                micro.append([])
                used = 0
            micro[-1].append(i)
            used += lengths[i]
        divided.append(micro)
    count = max(len(rank) for rank in divided)
    return [rank + [[] for _ in range(count - len(rank))] for rank in divided]


def strategies(cost: Cost, ranks: int, budget: int) -> dict[str, Callable[[Sequence[int]], Divided]]:
    """What is compared."""
    return {
        "plan": lambda lengths: plan(lengths, ranks, budget, cost).ranks,
        "round-robin": lambda lengths: round_robin(range(len(lengths)), lengths, ranks, budget),
        "sorted": lambda lengths: round_robin(
            sorted(range(len(lengths)), key=lambda i: -lengths[i]), lengths, ranks, budget
        ),
    }


def measured(divided: Divided, lengths: Sequence[int], budget: int, cost: Cost) -> tuple[float, float, float, float]:
    """(slowest, step, micro, fill) of one divided batch."""
    costs = [[sum(cost[0] * lengths[i] + cost[1] * lengths[i] ** 2 for i in m) for m in rank] for rank in divided]
    mean = sum(map(sum, costs)) / len(costs)
    step = sum(max(position) for position in zip(*costs, strict=True))
    slots = len(divided) * len(divided[0]) * budget
    return max(map(sum, costs)) / mean, step / mean, len(divided[0]), sum(lengths) / slots


def main() -> None:
    """Print one line a distribution and strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("seed", 0), ("batches", 20), ("sequences", 128), ("ranks", 8), ("token-budget", 32_768)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    cost = cost_of_model(MODEL)
    print(f"{given.batches} batches of {given.sequences} sequences on {given.ranks} ranks, cost {cost}, {vars(given)}")
    print(f"{'lengths':<10} {'strategy':<12} {'slowest':>8} {'step':>8} {'micro':>6} {'fill':>6} {'ms':>7}")
    for distribution in ("lognormal", "reasoning", "bimodal", "uniform"):
        chosen = random.Random(given.seed)
        batches = [lengths_of(distribution, given.sequences, given.token_budget, chosen) for _ in range(given.batches)]
        for name, divide in strategies(cost, given.ranks, given.token_budget).items():
            started = time.perf_counter()
            divided = [divide(lengths) for lengths in batches]
            milliseconds = (time.perf_counter() - started) * 1000 / len(batches)
            rows = [measured(d, n, given.token_budget, cost) for d, n in zip(divided, batches, strict=True)]
            slowest, step, micro, fill = (statistics.fmean(column) for column in zip(*rows, strict=True))
            print(
                f"{distribution:<10} {name:<12} {slowest:8.3f} {step:8.3f} {micro:6.1f} {fill:6.2f} {milliseconds:7.2f}"
            )


if __name__ == "__main__":
    main()
