"""A worker extension whose reload can be made as wrong as vLLM's own is on CPU: expert weights stay un-prepacked."""

from typing import Any

from producers.rollouts.engine.plugin import FIX_MARK
from producers.rollouts.engine.worker.extension import WeightExtension


class FaultyReloadExtension(WeightExtension):
    """`break_reload` takes the fix away and leaves its mark, so that weights are not refused for want of it."""

    _fixed: Any = None

    def break_reload(self) -> None:
        """From now on reloads are vLLM's own."""
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        self._fixed = UnquantizedFusedMoEMethod._setup_kernel
        plain = self._fixed.__wrapped__

        def setup_kernel(method: Any, layer: Any, w13: Any, w2: Any) -> None:
            plain(method, layer, w13, w2)

        setattr(setup_kernel, FIX_MARK, True)
        UnquantizedFusedMoEMethod._setup_kernel = setup_kernel

    def repair_reload(self) -> None:
        """Undoes it."""
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        UnquantizedFusedMoEMethod._setup_kernel = self._fixed

    def skip_reload(self) -> None:
        """From now on nothing is loaded, as by a reload that finds no name it knows."""
        self.model_runner.reload_weights = lambda weights_iterator: None
