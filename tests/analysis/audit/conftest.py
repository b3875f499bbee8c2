"""The records of a finished run."""

import pytest

from tests.analysis.audit.audited_run import Records, Simulate


@pytest.fixture(scope="module")
def records(simulated: Simulate) -> Records:
    found: Records = simulated(steps=3).records
    return found
