"""The loss, its gradient and its metrics over 1, 2 and 4 real gloo ranks are those of one process."""

from pathlib import Path
from typing import Any

import pytest

from tests.learner.conftest import run_ranks

METRICS_THAT_MOVE = {"loss", "ratio", "clip_fraction", "entropy/high", "rollout_k3", "ratio_max", "kl_ref"}
CORRECTION = {"correction/weight", "correction/rejected", "correction/clipped", "correction/ratio_max"}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_change_nothing(world: int, zygote: Any, tmp_path: Path) -> None:
    for said in run_ranks(zygote, world, tmp_path, ["objectives"]):
        assert len(said["objectives"]) == 8
        for found in said["objectives"]:
            assert found["gradient_size"] > 1e-3, found
            assert found["loss"] < 1e-9 and found["gradient"] < 1e-9 and found["metrics"] < 1e-9, found
            assert found["same_metrics"] and set(found["names"]) >= METRICS_THAT_MOVE | CORRECTION, found
