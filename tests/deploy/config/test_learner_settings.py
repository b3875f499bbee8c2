"""Learner settings that cannot train: one line and exit code 2 before anything starts, and no torch to judge them."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.cli.main import main
from learner.device_check import check_device
from learner.errors import ModelError
from learner.settings import LearnerSettings

WRONG: list[tuple[list[str], str]] = [
    (
        ["old_policy=rollout"],
        "learner old_policy 'rollout' has no proximal entropies, and objective 'espo' needs them: use "
        "old_policy 'proximal' or objective grpo, dapo, gspo, cispo or gmpo",
    ),
    (
        ["objective.beta=1"],
        "learner.objective.beta is 1, but there is no such key; allowed are alpha, boundaries, clip_high, clip_low, "
        "epsilon, epsilon_floor, ratio, top_fraction",
    ),
    (["objective.alpha='much'"], 'learner.objective.alpha is "much"; allowed: a number of at least 0'),
    (
        ["objective.alpha=inf"],
        "learner.objective: espo: alpha is inf, allowed is a finite number, 0 or more",
    ),
    (["objective.alpha=true"], "learner.objective.alpha is true; allowed: a number of at least 0"),
    (["objective.boundaries=0.8"], "learner.objective.boundaries is 0.8; allowed: a list, each item a number"),
    (
        ["objective.ratio='token'"],
        'learner.objective.ratio is "token"; allowed: "group" or "group_times_token"',
    ),
    (
        ["objective.top_fraction=1.5"],
        "learner.objective.top_fraction is 1.5; allowed: a number above 0 and up to 1",
    ),
    (["objective.alpha=nan"], "learner.objective.alpha is nan; allowed: a number of at least 0"),
    (
        ["objective=grpo", "objective.max_tokens=2.5"],
        "learner.objective.max_tokens is 2.5; allowed: an integer of at least 1",
    ),
    (
        ["objective=gspo", "objective.clip_high=-1"],
        "learner.objective.clip_high is -1; allowed: a number of at least 0",
    ),
    (
        ["objective={kind = 'custom', import = 'loss'}"],
        "learner.objective: import is 'loss'; allowed: module:function, such as my_losses:loss",
    ),
    (
        ["correction.cap=2"],
        "learner.correction.cap is 2, but there is no such key; allowed are high, level, low",
    ),
    (["correction.low='none'"], 'learner.correction.low is "none"; allowed: a number of at least 0'),
    (
        ["correction=mis", "correction.low=3"],
        "learner.correction: mis: low is 3.0 and high is 2.0, allowed is 0 ≤ low ≤ high",
    ),
    (
        ["correction=geo", "correction.level='token'"],
        "learner.correction: geo: level is 'token', allowed is 'sequence'",
    ),
    (
        ["correction=none", "correction.low=0"],
        "learner.correction.low is 0, but there is no such key; it takes none",
    ),
    (["optimizer.learning_rate=inf"], "learner.optimizer: learning_rate is inf, allowed is a finite number"),
    (
        ["parallel.collective_timeout_s=inf"],
        "learner.parallel: collective_timeout_s is inf, allowed is a finite number",
    ),
    (
        ["precision=fp8"],
        "learner: precision 'fp8' trains through transformer-engine on CUDA, and this process runs on the CPU; use "
        "bf16 or f32",
    ),
    (
        ["attention=flash_attention_2", "precision=bf16"],
        "learner: attention 'flash_attention_2' trains on CUDA, and this process runs on the CPU; use packed, sdpa or "
        "eager",
    ),
    (
        ["attention=flex_attention"],
        "learner: attention 'flex_attention' trains on CUDA, and this process runs on the CPU; use packed, sdpa or "
        "eager",
    ),
    (
        ["attention=flash"],
        'learner.attention is "flash"; allowed: "eager" or "flash_attention_2" or "flex_attention" or "packed" or '
        '"sdpa"',
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), WRONG, ids=[" ".join(given) for given, _ in WRONG])
def test_a_learner_that_cannot_train_is_not_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    sentence: str,
) -> None:
    # A machine with a GPU must come to the same.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    directory = tmp_path / "run"
    given = [argument for override in overrides for argument in ("--set", f"learner.{override}")]
    # Should it start after all, it is to end soon.
    assert main(["demo", "--dir", str(directory), "--steps", "1", "--deadline", "20", *given]) == 2
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"eachprompt: {sentence}"] and said.out == ""
    assert not directory.exists()


def test_what_torch_finds_has_the_last_word() -> None:
    settings = LearnerSettings(model="m", attention="flex_attention")
    check_device(settings, "cuda")
    with pytest.raises(ModelError, match="runs on the CPU"):
        check_device(settings, "cpu")


def test_the_machine_is_judged_without_torch() -> None:
    """In an interpreter of its own: here torch may be imported already."""
    program = (
        "import sys, deploy.config.preflight, learner.device_check\n"
        "learner.device_check.likely_device()\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
