"""Numbers that are of the right type and mean infinity or nothing: `inf` hours, a deadline of a nanosecond.

TOML has `inf` and `nan`. An infinite retention overflows at the broker, one of 1e-9 hours was rounded to none, a
deadline of 1e-9 seconds is over before it begins, and a weight of `inf` makes rewards NaN. The learner checks its own
section: there an infinite bound is one that does not bind.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from deploy.errors import ConfigError

_OWN: Final = "learner"
_UNITS: Final[Mapping[str, tuple[float, float, str]]] = {
    "_s": (0.001, 1e8, "seconds"),
    "_h": (0.1, 1e6, "hours"),
}
"""Ending of a setting's name → least and largest, and the unit; 0 is left to the setting itself."""


def check_magnitudes(tables: Mapping[str, Any]) -> None:
    """ConfigError: the first number that is not finite, or a time that nobody can mean."""
    for key, value in _numbers(tables, ""):
        if not math.isfinite(value):
            if key.partition(".")[0] != _OWN:
                raise ConfigError(f"{key} is {value}; allowed: a finite number")
            continue
        for ending, (least, largest, unit) in _UNITS.items():
            if key.endswith(ending) and value != 0 and not least <= value <= largest:
                raise ConfigError(f"{key} is {value:g}; allowed: {least:g} to {largest:,.0f} {unit}")


def _numbers(holder: Any, key: str) -> Iterator[tuple[str, float]]:
    if isinstance(holder, Mapping):
        for name, value in holder.items():
            yield from _numbers(value, f"{key}.{name}" if key else name)
    elif isinstance(holder, list | tuple):
        for index, value in enumerate(holder):
            yield from _numbers(value, f"{key}[{index}]")
    elif isinstance(holder, int | float) and not isinstance(holder, bool):
        yield key, holder
