"""What runs inside vLLM's worker: weights are staged while generation continues, and swapped in while it is paused."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from producers.rollouts.engine.errors import WeightsRefused
from producers.rollouts.engine.plugin import expert_reload_is_fixed
from producers.rollouts.engine.weight_files import WeightFile, checkpoint_shapes, load_weights, unpublished


class WeightExtension:
    """Mixed into vLLM's worker class by `worker_extension_cls`; its methods are called by `collective_rpc`."""

    model_runner: Any
    model_config: Any
    _staged: dict[str, Tensor] | None = None
    _expected: dict[str, tuple[int, ...]] | None = None

    def prepare_weights(self, files: list[tuple[str, str | None]], round_fp8: bool) -> str:
        """Loads and checks `(path, digest)` files into memory. Returns "" or the sentence that refuses them.

        A sentence and not an exception, so that every worker's verdict reaches the front end in the same form.
        """
        self._staged = None
        if not expert_reload_is_fixed():
            return "the vLLM plugin of eachprompt is not registered in the worker: install the package (make setup)"
        directory = Path(self.model_config.model)
        if self._expected is None:
            self._expected = checkpoint_shapes(directory)
        announced = [WeightFile(Path(path), digest) for path, digest in files]
        try:
            self._staged = load_weights(
                announced,
                self._expected,
                dtype=self.model_config.dtype,
                round_fp8=round_fp8,
                optional=unpublished(directory, self._expected),
            )
        except WeightsRefused as error:
            return str(error)
        return ""

    def apply_weights(self) -> float:
        """Puts the staged weights into the model; only while generation is paused. Returns the seconds it took.

        RuntimeError: the model does not hold them afterwards.
        """
        assert self._staged is not None, "apply_weights needs prepare_weights before it"
        began = time.perf_counter()
        with _without_reload_warnings():
            self.model_runner.reload_weights(weights_iterator=iter(self._staged.items()))
        if missed := not_held(dict(self.model_runner.get_model().named_parameters()), self._staged):
            raise RuntimeError(
                f"after the reload the model does not hold {len(missed)} of the tensors that it was given, "
                f"{missed[0]} among them"
            )
        self._staged = None
        return time.perf_counter() - began

    def discard_weights(self) -> None:
        """Forgets what was staged."""
        self._staged = None

    def moe_layers(self) -> list[int]:
        """Indices of the decoder layers that have experts, in order."""
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        modules = self.model_runner.get_model().modules()
        return sorted({int(module.layer_id) for module in modules if isinstance(module, MoERunner)})


def not_held(parameters: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Names of given tensors that the model has in the same shape (norms, embeddings, head) and holds other values of.

    A reload that loads nothing, or an earlier version, or one layer's weights into another, moves log-probs by less
    than rounding does where steps are small or layers are many, so the canary cannot see it. What is fused, prepacked
    or quantized has another shape and is left to the canary.
    """
    held = {name: parameters[name] for name in given.keys() & parameters.keys()}
    return sorted(
        name
        for name, parameter in held.items()
        if parameter.shape == given[name].shape
        and not torch.equal(parameter.to(given[name].dtype), given[name].to(parameter.device))
    )


@contextmanager
def _without_reload_warnings() -> Iterator[None]:
    # vLLM warns of layers without weights (rotary embeddings) and of expert weights that it loads under another name;
    # that everything is there was checked before.
    loggers = [
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise"),
        logging.getLogger("vllm.v1.worker.gpu_model_runner"),
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
