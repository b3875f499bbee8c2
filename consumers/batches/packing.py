"""Length-aware packing of a batch over ranks and micro-batches. Pure and deterministic.

    plan([900, 400, 300, 200], ranks=2, token_budget=1000, cost=(1.0, 0.0)).ranks
    # [[[0]], [[1, 2, 3]]]

Dividing costs over ranks is multiway number partitioning and filling micro-batches is bin packing, both NP-hard. Used:
longest-processing-time-first (Graham 1969) and the largest differencing method (Karmarkar and Karp 1982), the better of
the two refined by moves and swaps; then first-fit decreasing (Johnson 1973) for the least number of micro-batches.
"""

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_REFINEMENTS: Final = 48
_TOLERANCE: Final = 1e-12

Home = list[int]
"""The sequences of one rank, or of one micro-batch."""


@dataclass(frozen=True)
class Plan:
    """Which rank trains which sequences in which micro-batch.

    `ranks[r][m]` are indices into `lengths`; every rank has the same number of micro-batches, so that collectives pair
    up. `loads[r]` is Σ a·n + b·n² of rank r, `fill` the used share of ranks × micro-batches × token budget, `imbalance`
    the slowest load over the mean load (1.0 is perfect), `empty` the number of micro-batches without any sequence.
    """

    ranks: list[list[list[int]]]
    loads: tuple[float, ...]
    fill: float
    imbalance: float
    empty: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches per rank."""
        return len(self.ranks[0])


def plan(lengths: Sequence[int], ranks: int, token_budget: int, cost: tuple[float, float] = (1.0, 0.0)) -> Plan:
    """Divide sequences of `lengths` tokens over `ranks`, each micro-batch within `token_budget` tokens.

    A sequence of n tokens costs a·n + b·n², `cost` = (a, b). Minimised in this order: the slowest rank's cost (at most
    4/3 − 1/(3·ranks) of the optimum, in practice within a percent), the number of micro-batches (at most 11/9 of the
    optimum + 1 for the chosen division), and the padding, that is how far the micro-batches at the same position of
    different ranks are apart in cost, for which the faster ranks wait at each collective (micro-batches of a rank are
    evened out and ordered costliest first).

    A micro-batch is empty only where a rank has fewer sequences than micro-batches and none can be lent to it without
    making the slowest rank slower: always when there are fewer sequences than ranks.

    Raises ValueError for a sequence longer than `token_budget` or shorter than 1 (its index and length), for fewer
    than 1 rank, and for a cost that is negative or zero.
    """
    _check(lengths, ranks, token_budget, cost)
    if not lengths:
        return Plan([[] for _ in range(ranks)], (0.0,) * ranks, 0.0, 1.0, 0)
    costs = [cost[0] * n + cost[1] * n * n for n in lengths]
    homes = _divide(costs, ranks)
    micro_batches = max(_needed(home, lengths, costs, token_budget) for home in homes)
    if any(len(home) < micro_batches for home in homes):
        lent = _lend(homes, costs, micro_batches)
        if max(_needed(home, lengths, costs, token_budget) for home in lent) <= micro_batches:
            homes = lent
    filled = [_fill(home, lengths, costs, token_budget, micro_batches) for home in homes]
    loads = tuple(_loads(homes, costs))
    return Plan(
        ranks=filled,
        loads=loads,
        fill=sum(lengths) / (ranks * micro_batches * token_budget),
        imbalance=max(loads) * ranks / math.fsum(loads),
        empty=sum(not micro for rank in filled for micro in rank),
    )


def _check(lengths: Sequence[int], ranks: int, token_budget: int, cost: tuple[float, float]) -> None:
    if ranks < 1:
        raise ValueError(f"ranks {ranks} is not at least 1")
    a, b = cost
    if not (a >= 0 and b >= 0 and 0 < a + b < math.inf):
        raise ValueError(f"cost {cost} is not two finite numbers of at least 0, one of them above 0")
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sequence {index} has {length} tokens and not at least 1")
        if length > token_budget:
            raise ValueError(f"sequence {index} has {length} tokens, more than the token budget of {token_budget}")


def _divide(costs: list[float], ranks: int) -> list[Home]:
    """Sequences of each rank, the slowest rank's cost as low as the heuristics get it."""
    if ranks == 1:
        return [list(range(len(costs)))]
    divided = [_refined(homes, costs) for homes in (_longest_first(costs, ranks), _differencing(costs, ranks))]
    return min(divided, key=lambda homes: max(_loads(homes, costs)))


def _loads(homes: list[Home], costs: list[float]) -> list[float]:
    return [math.fsum(costs[i] for i in home) for home in homes]


def _longest_first(costs: list[float], ranks: int) -> list[Home]:
    homes: list[Home] = [[] for _ in range(ranks)]
    lightest = [(0.0, rank) for rank in range(ranks)]
    for i in _dearest_first(range(len(costs)), costs):
        load, rank = heapq.heappop(lightest)
        homes[rank].append(i)
        heapq.heappush(lightest, (load + costs[i], rank))
    return homes


def _differencing(costs: list[float], ranks: int) -> list[Home]:
    """Largest differencing: join the two most uneven partial divisions, heavy side to light side, until one is left."""
    empty: list[tuple[float, Home]] = [(0.0, []) for _ in range(ranks - 1)]
    heap = [(-costs[i], order, [(costs[i], [i]), *empty]) for order, i in enumerate(range(len(costs)))]
    heapq.heapify(heap)
    order = len(heap)
    while len(heap) > 1:
        _, _, uneven = heapq.heappop(heap)
        _, _, other = heapq.heappop(heap)
        joined = [(x + y, left + right) for (x, left), (y, right) in zip(uneven, reversed(other), strict=True)]
        joined.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], order, joined))
        order += 1
    return [home for _, home in heap[0][2]]


def _refined(homes: list[Home], costs: list[float]) -> list[Home]:
    """Improved by moving a sequence off the slowest rank, or swapping it for a cheaper one of another rank."""
    homes = [sorted(home, key=lambda i: (costs[i], i)) for home in homes]
    loads = _loads(homes, costs)
    floor = max(math.fsum(costs) / len(homes), max(costs))
    for _ in range(_REFINEMENTS):
        slow = max(range(len(homes)), key=loads.__getitem__)
        if loads[slow] <= floor * (1 + _TOLERANCE):
            break
        exchanges = [
            (max(loads[slow] - shift, loads[rank] + shift), rank, give, take)
            for rank in range(len(homes))
            if rank != slow
            for shift, give, take in _best_exchange(homes[slow], homes[rank], costs, loads[slow] - loads[rank])
        ]
        if not exchanges:
            break
        peak, rank, give, take = min(exchanges)
        if peak >= loads[slow] * (1 - _TOLERANCE):
            break
        homes[slow] = sorted({*homes[slow], *take} - {*give}, key=lambda i: (costs[i], i))
        homes[rank] = sorted({*homes[rank], *give} - {*take}, key=lambda i: (costs[i], i))
        loads = _loads(homes, costs)
    return homes


def _best_exchange(
    slow: Home, other: Home, costs: list[float], gap: float
) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """The exchange (cost shifted, given, taken) that comes nearest to halving the gap between two ranks; [] if none.

    `other` is ordered by cost. Any shift above 0 and below the gap makes the pair's higher load lower.
    """
    found: list[tuple[float, float, tuple[int, ...], tuple[int, ...]]] = []
    prices = [costs[j] for j in other]
    for i in slow:
        if costs[i] < gap:
            found.append((abs(costs[i] - gap / 2), costs[i], (i,), ()))
        at = bisect_left(prices, costs[i] - gap / 2)
        for j in other[max(0, at - 1) : at + 1]:
            shift = costs[i] - costs[j]
            if 0 < shift < gap:
                found.append((abs(shift - gap / 2), shift, (i,), (j,)))
    return [min(found)[1:]] if found else []


def _lend(homes: list[Home], costs: list[float], micro_batches: int) -> list[Home]:
    """Cheap sequences of long lists moved to ranks with fewer than `micro_batches`, the slowest rank never slower."""
    lent = [list(home) for home in homes]
    loads = _loads(lent, costs)
    ceiling = max(loads)
    for needy, home in enumerate(lent):
        while len(home) < micro_batches:
            donor = max(range(len(lent)), key=lambda rank: len(lent[rank]))
            cheapest = min(lent[donor], key=lambda i: (costs[i], i))
            if len(lent[donor]) <= micro_batches or loads[needy] + costs[cheapest] > ceiling:
                break
            lent[donor].remove(cheapest)
            home.append(cheapest)
            loads[donor] -= costs[cheapest]
            loads[needy] += costs[cheapest]
    return lent


def _dearest_first(home: Sequence[int], costs: list[float]) -> list[int]:
    return sorted(home, key=lambda i: (-costs[i], i))


def _needed(home: Home, lengths: Sequence[int], costs: list[float], budget: int) -> int:
    """The least number of micro-batches that the heuristics fit a rank's sequences into."""
    most = len(_first_fit(home, lengths, costs, budget))
    least = -(-sum(lengths[i] for i in home) // budget)
    between = range(least, most)
    return least + bisect_left(between, True, key=lambda n: _evened(home, lengths, costs, budget, n) is not None)


def _first_fit(home: Home, lengths: Sequence[int], costs: list[float], budget: int) -> list[Home]:
    micro: list[Home] = []
    room: list[int] = []
    for i in _dearest_first(home, costs):
        at = next((m for m, left in enumerate(room) if left >= lengths[i]), None)
        if at is None:
            micro.append([i])
            room.append(budget - lengths[i])
        else:
            micro[at].append(i)
            room[at] -= lengths[i]
    return micro


def _evened(home: Home, lengths: Sequence[int], costs: list[float], budget: int, count: int) -> list[Home] | None:
    """`count` micro-batches of about the same cost, or None where this greedy choice overflows the budget."""
    micro: list[Home] = [[] for _ in range(count)]
    room = [budget] * count
    load = [0.0] * count
    for i in _dearest_first(home, costs):
        fitting = [m for m in range(count) if room[m] >= lengths[i]]
        if not fitting:
            return None
        at = min(fitting, key=load.__getitem__)
        micro[at].append(i)
        room[at] -= lengths[i]
        load[at] += costs[i]
    return micro


def _fill(home: Home, lengths: Sequence[int], costs: list[float], budget: int, count: int) -> list[list[int]]:
    """Exactly `count` micro-batches, costliest first, empty ones last and only where sequences run out."""
    used = min(count, len(home))
    micro = _evened(home, lengths, costs, budget, used)
    if micro is None:
        micro = _first_fit(home, lengths, costs, budget)
        while len(micro) < used:
            costliest = max((m for m in micro if len(m) > 1), key=lambda m: math.fsum(costs[i] for i in m))
            micro.remove(costliest)
            micro += [costliest[:1], costliest[1:]]
    micro.sort(key=lambda m: (-math.fsum(costs[i] for i in m), min(m)))
    return [sorted(m) for m in micro] + [[] for _ in range(count - used)]
