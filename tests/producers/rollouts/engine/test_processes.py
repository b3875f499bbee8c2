"""Nothing of an engine survives its owner, however and whenever that ends."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from producers.rollouts.engine.process import EngineProcesses, engine_environment
from producers.rollouts.engine.settings import EngineSettings

MARKED_SLEEPER = (
    "import os, subprocess, sys; "
    "subprocess.Popen(['sleep', '300'], start_new_session=True); "
    "print('ready', flush=True); sys.stdin.read()"
)

OWNER = """
import asyncio, sys
from producers.rollouts.engine.engine import RolloutEngine
from producers.rollouts.engine.settings import EngineSettings

if __name__ == "__main__":
    asyncio.run(RolloutEngine(EngineSettings(model=sys.argv[1])).start())
"""


def ended(processes: list[psutil.Process], within_s: float) -> bool:
    gone, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive and len(gone) == len(processes)


def is_spawned(process: psutil.Process) -> bool:
    """Whether it is an interpreter that another started; one that ends while it is looked at is none."""
    try:
        return "multiprocessing.spawn" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def marked_child(processes: EngineProcesses) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", MARKED_SLEEPER],
        env={"EACHPROMPT_ENGINE": processes.mark, "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    return child


def test_closing_kills_what_is_marked_and_nothing_else() -> None:
    processes, other = EngineProcesses(), EngineProcesses()
    mine, others = marked_child(processes), marked_child(other)
    grandchildren = psutil.Process(mine.pid).children()
    try:
        assert len(grandchildren) == 1
        assert processes.close(20)
        assert mine.wait(20) == -signal.SIGKILL
        assert ended(grandchildren, 20)
        assert others.poll() is None
    finally:
        assert other.close(20)
        for child in (mine, others):
            child.communicate()


@pytest.mark.engine
def test_an_owner_killed_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    script = tmp_path / "owner.py"
    script.write_text(OWNER)
    owner = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert owner.stdout is not None
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    try:
        # The engine core is a second interpreter; until it is there, nothing but the reaper and a tracker is.
        while not any(is_spawned(process) for process in family):
            assert owner.poll() is None and time.monotonic() < deadline, "the engine core never started"
            select.select([owner.stdout], [], [], 0.05)
            family = psutil.Process(owner.pid).children(recursive=True)
    finally:
        owner.kill()
        owner.communicate()
    assert ended(family, 20)


@pytest.mark.engine
def test_the_mark_outlives_the_title_that_the_engine_core_gives_itself(tmp_path: Path) -> None:
    """setproctitle writes over the environment unless told not to; the reaper then found no engine core to kill."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", "vocab_size": 64}))
    save_file({"lm_head.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    program = (
        "import setproctitle, sys; setproctitle.setproctitle('VLLM::EngineCore'); print(flush=True); sys.stdin.read()"
    )
    variables = {**os.environ, **engine_environment(EngineSettings(model=str(tmp_path)), "some-mark")}
    child = subprocess.Popen(
        [sys.executable, "-c", program], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"\n"
        assert b"some-mark" in Path(f"/proc/{child.pid}/environ").read_bytes()
    finally:
        child.communicate()
