"""Router decisions as vLLM returns them, made into one row a token of prompt and response.

vLLM records a row for every token that went through the model: `prompt + response - 1`, for the last sampled token
never does. Its rows have a place for every decoder layer; layers without experts are left out here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RouteArray = np.uint8 | np.uint16


def route_dtype(experts: int, top_k: int) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """u1 for up to 256 experts, else u2.

    With 256 experts 255 is both an expert and the sentinel; that stays unambiguous because no token selects one expert
    twice, except with `top_k` 1, which takes u2 then. Raises `ValueError` for more experts than u2 can name.
    """
    if not 1 <= top_k <= experts or experts > 65_535:
        raise ValueError(f"{top_k} of {experts} experts is not 1 <= top_k <= experts <= 65535")
    return np.dtype(np.uint8) if experts <= (255 if top_k == 1 else 256) else np.dtype(np.uint16)


def sentinel(dtype: np.dtype[Any]) -> int:
    """The value that fills all `top_k` entries of a token-layer without a recorded decision."""
    return int(np.iinfo(dtype).max)


def rows(
    recorded: NDArray[np.integer] | None,
    *,
    tokens: int,
    layers: Sequence[int],
    experts: int,
    top_k: int,
) -> NDArray[RouteArray]:
    """Routes `[tokens, len(layers), top_k]` from vLLM's `[up to tokens - 1, decoder layers, top_k]`.

    `layers` are the decoder layers that have experts. Tokens beyond the recorded ones get the sentinel. Raises
    `ValueError` for a shape that does not fit or for an expert that does not exist.
    """
    dtype = route_dtype(experts, top_k)
    result = np.full((tokens, len(layers), top_k), sentinel(dtype), dtype)
    if recorded is None or len(recorded) == 0:
        return result
    if recorded.ndim != 3 or recorded.shape[2] != top_k or recorded.shape[1] <= max(layers, default=-1):
        raise ValueError(f"recorded routes {list(recorded.shape)} do not hold layers {list(layers)} of top {top_k}")
    if len(recorded) > tokens:
        raise ValueError(f"{len(recorded)} recorded routes are more than the {tokens} tokens")
    every = list(layers) == list(range(len(layers)))
    chosen = recorded[:, : len(layers), :] if every else recorded[:, list(layers), :]
    if chosen.size and (chosen.min() < 0 or chosen.max() >= experts):
        raise ValueError(f"a recorded route names expert {chosen.max()} of {experts}")
    result[: len(recorded)] = chosen
    return result
