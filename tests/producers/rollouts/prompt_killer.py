"""A fault inside the real engine core: vLLM calls it there before each step with the prompts that join the batch."""

import os
import signal
from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

REPEATED = 5
"""A prompt that ends with its last token so many times kills the engine core."""

BEARS = 6
"""More requests in one step kill it with `LoadKiller`."""


class PromptKiller(LogitsProcessor):  # type: ignore[misc]
    """Changes no logits."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        del vllm_config, device, is_pin_memory

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Tensor) -> Tensor:
        return logits

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        for _, _, prompt, _ in batch_update.added if batch_update else ():
            if prompt is not None and len(prompt) >= REPEATED and len(set(prompt[-REPEATED:])) == 1:
                os.kill(os.getpid(), signal.SIGKILL)


class LoadKiller(PromptKiller):
    """Kills the engine core also where more requests are computed in one step than it bears, as a kernel short of
    memory does.
    """

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        super().update_state(batch_update)
        if batch_update and batch_update.batch_size > BEARS:
            os.kill(os.getpid(), signal.SIGKILL)
