"""The published files as a backend of vLLM's own weight-transfer interface, for clusters that drive vLLM by it.

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(..., weight_transfer_config=WeightTransferConfig(backend=BACKEND)))
    start_weight_update() → update_weights({"files": [[path, digest], ...]}) → finish_weight_update()

The producer itself does not need it: it swaps weights in one call of its worker extension, which stages them before it
pauses. Here the phases are vLLM's, and staging happens in `update_weights`, inside the pause. Run on the CPU only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from producers.rollouts.engine.errors import WeightsRefused
from producers.rollouts.engine.weight_files import WeightFile, checkpoint_shapes, load_weights, unpublished

BACKEND: Final = "eachprompt"


@dataclass
class FilesInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to meet for: the files are on a disk that the worker reads."""


@dataclass
class FilesUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Whole safetensors files of one version, `(path, digest or None)`; `round_fp8` as in `load_weights`."""

    files: Sequence[tuple[str, str | None]] = field(default_factory=list)
    round_fp8: bool = False

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("a weight update names at least one file")


class FilesWeightTransferEngine(WeightTransferEngine[FilesInitInfo, FilesUpdateInfo]):  # type: ignore[misc]
    """Loads published files into the model, checked as the producer checks them."""

    init_info_cls = FilesInitInfo
    update_info_cls = FilesUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: FilesInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Take the layers' kernels apart, so that weights load as from a checkpoint."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Put them together again."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One version. WeightsRefused, ValueError: before anything in the model was touched."""
        import torch

        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: FilesUpdateInfo) -> None:
        """Read, check, load."""
        directory = Path(self.model_config.model)
        expected = checkpoint_shapes(directory)
        tensors = load_weights(
            [WeightFile(Path(path), digest) for path, digest in update_info.files],
            expected,
            dtype=self.model_config.dtype,
            round_fp8=update_info.round_fp8,
            optional=unpublished(directory, expected),
        )
        loaded = self.model.load_weights(iter(tensors.items()))
        if loaded is not None and not loaded:
            raise WeightsRefused("the model took none of the tensors")

    def shutdown(self) -> None:
        """Nothing to do."""
