"""The whole run's records that analysis is tested on: what the command prints of them is tested here."""

from tests.analysis.conftest import simulated

__all__ = ["simulated"]
