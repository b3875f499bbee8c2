"""Virtual machines that name AMX tiles in the CPU flags and cannot run them.

Some hypervisors pass `amx_tile` through and leave CPUID leaf 0x1D empty. oneDNN then builds an empty tile configuration
and any bf16 matrix product ends the process with SIGILL. Whether that is so is found out once, by such a product in a
child process; the result is passed to every further process in the environment. Imports neither torch nor vLLM: the
fix has to be in the environment before torch is imported.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal, cast, get_args

from streams.errors import StreamsError

AmxState = Literal["absent", "working", "broken"]

VERDICT_VARIABLE = "EACHPROMPT_AMX"
ONEDNN_VARIABLE = "ONEDNN_MAX_CPU_ISA"
ONEDNN_WITHOUT_AMX = "AVX512_CORE_BF16"

_PRODUCT = "import torch; a = torch.ones(512, 512, dtype=torch.bfloat16); assert (a @ a)[0, 0] == 512"


class AmxProbeError(StreamsError):
    """Whether AMX works could not be found out."""


def amx_state(cpuinfo: Path = Path("/proc/cpuinfo"), timeout_s: float = 120) -> AmxState:
    """What AMX is worth on this machine; the first call may block for a torch import in a child process.

    Raises `AmxProbeError` when the child neither finished its product nor died of it (no torch, or the deadline).
    """
    known = os.environ.get(VERDICT_VARIABLE)
    if known in get_args(AmxState):
        return cast(AmxState, known)
    state: AmxState = _probe(timeout_s) if names_amx(cpuinfo) else "absent"
    os.environ[VERDICT_VARIABLE] = state
    return state


def apply_environment() -> AmxState:
    """Takes AMX away from oneDNN where it is broken; call it before torch is imported. Returns the verdict."""
    state = amx_state()
    if state == "broken":
        os.environ[ONEDNN_VARIABLE] = ONEDNN_WITHOUT_AMX
    return state


def names_amx(cpuinfo: Path) -> bool:
    """Whether the kernel's description of the CPU (not there on other systems than Linux) names `amx_tile`."""
    try:
        text = cpuinfo.read_text()
    except FileNotFoundError:
        return False
    return any("amx_tile" in line.split() for line in text.splitlines() if line.startswith("flags"))


def verdict(returncode: int, complaint: str) -> AmxState:
    """What the child's end says; raises `AmxProbeError` when it says nothing about AMX."""
    if returncode == 0:
        return "working"
    if returncode in (-signal.SIGILL, -signal.SIGSEGV):
        return "broken"
    raise AmxProbeError(f"the test of AMX ended with exit code {returncode}: {complaint.strip()[-300:] or 'no output'}")


def _probe(timeout_s: float) -> AmxState:
    # A cap that is already set would let the product pass and hide from vLLM's own kernels that tiles do not work.
    environment = {name: value for name, value in os.environ.items() if name != ONEDNN_VARIABLE}
    try:
        child = subprocess.run(
            [sys.executable, "-c", _PRODUCT], env=environment, capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise AmxProbeError(f"the test of AMX did not end within {timeout_s:g} s") from error
    return verdict(child.returncode, child.stderr)
