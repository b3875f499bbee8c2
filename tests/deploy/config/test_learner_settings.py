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
        ["old=rollout"],
        "learner old 'rollout' has no proximal entropies, and objective 'espo' needs them: use old 'proximal' or "
        "objective grpo, dapo, gspo, cispo or gmpo",
    ),
    (
        ["objective_settings={beta = 1}"],
        "learner objective_settings holds 'beta'; objective 'espo' allows alpha, top_fraction, boundaries, ratio, "
        "epsilon, epsilon_floor, clip_low, clip_high",
    ),
    (["objective_settings={alpha = 'much'}"], "learner objective_settings.alpha is 'much'; allowed: a number"),
    (
        ["objective_settings={alpha = inf}"],
        "learner objective_settings: espo: alpha is inf, allowed is a finite number, 0 or more",
    ),
    (["objective_settings={alpha = true}"], "learner objective_settings.alpha is True; allowed: a number"),
    (
        ["objective_settings={boundaries = 0.8}"],
        "learner objective_settings.boundaries is 0.8; allowed: a list of numbers",
    ),
    (
        ["objective_settings={ratio = 'token'}"],
        "learner objective_settings.ratio is 'token'; allowed: 'group' or 'group_times_token'",
    ),
    (
        ["objective_settings={top_fraction = 1.5}"],
        "learner objective_settings: espo: top_fraction is 1.5, allowed is above 0 to 1",
    ),
    (
        ["objective_settings={alpha = nan}"],
        "learner objective_settings: espo: alpha is nan, allowed is a finite number, 0 or more",
    ),
    (
        ["objective=grpo", "objective_settings={max_tokens = 2.5}"],
        "learner objective_settings.max_tokens is 2.5; allowed: an integer",
    ),
    (
        ["objective=gspo", "objective_settings={clip_high = -1}"],
        "learner objective_settings: gspo: clip_high is -1, allowed is 0 or more",
    ),
    (
        ["correction_settings={cap = 2}"],
        "learner correction_settings holds 'cap'; correction 'tis' allows low, high, level",
    ),
    (["correction_settings={low = 'none'}"], "learner correction_settings.low is 'none'; allowed: a number"),
    (
        ["correction=mis", "correction_settings={low = 3}"],
        "learner correction_settings: mis: low is 3 and high is 2.0, allowed is 0 ≤ low ≤ high",
    ),
    (
        ["correction=geo", "correction_settings={level = 'token'}"],
        "learner correction_settings: geo: level is 'token', allowed is 'sequence'",
    ),
    (
        ["correction=none", "correction_settings={low = 0}"],
        "learner correction 'none' takes no settings and was given {'low': 0}",
    ),
    (["learning_rate=inf"], "learner learning_rate is inf, allowed is a finite number"),
    (["collective_timeout_s=inf"], "learner collective_timeout_s is inf, allowed is a finite number"),
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
