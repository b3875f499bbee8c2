"""The verifiers a prompt may name; the reward consumers implement each of them."""

from typing import Final

VERIFIERS: Final = ("exact_match", "math_verify", "reasoning_gym")
