"""How many bits a delta cannot do without: what its size is measured against."""

import math
from collections.abc import Mapping

import numpy as np

from streams.weights.delta import Patch
from streams.weights.tensors import Bits


def entropy_bits(patches: Mapping[str, Patch]) -> tuple[float, float]:
    """(positions, values): the information a delta cannot do without, in bits.

    Positions: Σ N·H(k/N) over tensors with k of N elements changed, each equally likely. Values: empirical entropy of
    the new values as symbols, pooled over the tensors of a dtype.
    """
    positions = 0.0
    pooled: dict[str, list[Bits]] = {}
    for patch in patches.values():
        size, changed = math.prod(patch.shape), len(patch.positions)
        share = changed / size
        if 0 < share < 1:
            positions -= size * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
        pooled.setdefault(patch.dtype, []).append(patch.values)
    values = 0.0
    for arrays in pooled.values():
        joined = np.concatenate(arrays)
        _, counts = np.unique(joined, return_counts=True)
        values -= float((counts * np.log2(counts / len(joined))).sum())
    return positions, values
