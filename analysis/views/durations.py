"""Lengths of time as a person says them."""


def in_words(seconds: float) -> str:
    """`45 s`, `12 min`, `24 h`, `9 days`: one unit, and never more digits than tell something."""
    seconds = max(0.0, seconds)
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds / 86_400:.3g} days"
