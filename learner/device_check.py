"""Checks, without torch, that this machine has what the settings need: a run that cannot train is refused at once.

The learner checks again with the device that torch finds: it may run on another machine than the command.
"""

import ctypes
import importlib.util
from pathlib import Path
from typing import Final, Literal

from learner.errors import ModelError
from learner.settings import LearnerSettings

Device = Literal["cuda", "cpu"]

FLASH: Final = "flash_attention_2"


def check_device(settings: LearnerSettings, device: Device | None = None) -> None:
    """ModelError, one sentence: precision or attention cannot train here. `device`: as torch found it, else guessed."""
    if settings.precision.compute == "fp8":
        require_transformer_engine(device or likely_device())
    if settings.attention in (FLASH, "flex_attention"):
        require_attention(settings.attention, settings.precision.compute, device or likely_device())


def require_attention(attention: str, precision: str, device: str) -> None:
    """ModelError, one sentence, where `learner.attention` cannot train here."""
    if attention in (FLASH, "flex_attention") and device != "cuda":
        raise ModelError(
            f"attention {attention!r} trains on CUDA, and this process runs on the {device.upper()}; use packed, sdpa "
            "or eager"
        )
    if attention == FLASH and precision == "f32":
        raise ModelError(f"attention {FLASH!r} computes in 16 bits, and precision is 'f32'; use precision bf16")
    if attention == FLASH and importlib.util.find_spec("flash_attn") is None:
        raise ModelError(f"attention {FLASH!r} needs the package flash-attn, which is not installed")


def require_transformer_engine(device: str) -> None:
    """ModelError, one sentence, where `learner.precision = "fp8"` cannot run."""
    if device != "cuda":
        raise ModelError(
            f"precision 'fp8' trains through transformer-engine on CUDA, and this process runs on the "
            f"{device.upper()}; use bf16 or f32"
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise ModelError(
            "precision 'fp8' needs transformer-engine, which is not installed (extra [cuda]); use bf16 or f32"
        )


def likely_device() -> Device:
    """The device that torch would find; "cuda" where only torch can tell (ROCm): the learner checks again."""
    found = importlib.util.find_spec("torch")
    version: dict[str, object] = {}
    if found is not None and found.origin is not None:
        # The module in which torch records its build; it imports nothing.
        exec(Path(found.origin).with_name("version.py").read_text(encoding="utf-8"), version)
    if version.get("hip") is not None:
        return "cuda"
    return "cuda" if version.get("cuda") is not None and devices() else "cpu"


def devices() -> int:
    """Number of CUDA devices that the driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value
