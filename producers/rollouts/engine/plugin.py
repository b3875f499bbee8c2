"""The `vllm.general_plugins` entry point: vLLM calls `register` in each of its processes before it loads a model.

Fixes what vLLM 0.30.0 gets wrong on CPU, and adds the one question to the engine core that weight spans need.
"""

from contextlib import suppress
from functools import wraps
from typing import Any

from streams.processes.amx import amx_state

FIX_MARK = "prepacks_after_reload"


def register() -> None:
    """Applies the fixes; calling it again changes nothing."""
    mask_broken_amx()
    fix_expert_reload()
    count_output_tokens()
    register_weight_transfer()


def mask_broken_amx() -> None:
    """Hides AMX from vLLM where it is broken. oneDNN needs `streams.processes.amx.apply_environment` besides, before
    torch.
    """
    if amx_state() == "broken":
        import torch

        torch.cpu._is_amx_tile_supported = lambda: False


def fix_expert_reload() -> None:
    """Prepacks expert weights again after every reload on CPU.

    vLLM prepacks them for its grouped product when it builds a layer's kernel, and skips that step when the kernel is
    there already: after `reload_weights` the kernel reads plain weights as packed ones and every output is wrong.
    """
    from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    plain = UnquantizedFusedMoEMethod._setup_kernel
    if hasattr(plain, FIX_MARK):
        return

    @wraps(plain)
    def setup_kernel(self: Any, layer: Any, w13: Any, w2: Any) -> None:
        reload = self.moe_kernel is not None
        plain(self, layer, w13, w2)
        if reload and self.unquantized_backend == UnquantizedMoeBackend.CPU:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    setattr(setup_kernel, FIX_MARK, True)
    UnquantizedFusedMoEMethod._setup_kernel = setup_kernel


def expert_reload_is_fixed() -> bool:
    """Whether `fix_expert_reload` is in force in this process."""
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    return hasattr(UnquantizedFusedMoEMethod._setup_kernel, FIX_MARK)


def count_output_tokens() -> None:
    """Lets the front end ask the engine core how many tokens each unfinished request has sampled.

    While the scheduler is paused this is exact, which neither the front end's own count (outputs still on their way)
    nor the worker's (it forgets finished requests and never saw waiting ones) would be.
    """
    from vllm.v1.engine.core import EngineCore

    def output_tokens(self: Any) -> dict[str, int]:
        return {key: request.num_output_tokens for key, request in self.scheduler.requests.items()}

    EngineCore.eachprompt_output_tokens = output_tokens


def register_weight_transfer() -> None:
    """Makes `WeightTransferConfig(backend="eachprompt")` known; a vLLM without that interface goes without."""
    try:
        from vllm.distributed.weight_transfer import WeightTransferEngineFactory
    except ImportError:
        return
    # The factory refuses a name that it has, and offers no way to ask for it. The class is imported when it is used.
    with suppress(ValueError):
        WeightTransferEngineFactory.register_engine(
            "eachprompt", "producers.rollouts.engine.worker.weight_transfer", "FilesWeightTransferEngine"
        )
