"""Settings of a rollout engine, checked before anything starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from producers.rollouts.engine.errors import EngineSettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How to run vLLM. Raises `EngineSettingsError` for a value that cannot work.

    Prefix caching is off: cached keys and values outlive the weights that computed them.
    """

    model: str
    """Directory of a Hugging Face checkpoint (config.json and safetensors)."""
    precision: Literal["bf16", "fp8"] = "bf16"
    """`fp8`: weights in 128x128 e4m3 blocks; on CPU rounded through them and computed in bf16."""
    kv_cache_dtype: Literal["auto", "fp8"] = "fp8"
    max_model_len: int = 1024
    """Longest prompt and response together, in tokens."""
    max_num_seqs: int = 256
    """Requests computed in one step."""
    max_num_batched_tokens: int = 2048
    """Tokens computed in one step; on CPU at least `max_model_len`, since a prompt is computed whole there."""
    kv_cache_bytes: int = 256 << 20
    """On CPU; on CUDA vLLM takes `gpu_memory_utilization` (an entry of `extra`)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda` is a configuration that was only checked, not run."""
    tensor_parallel: int = 1
    threads: int = 1
    """OpenMP threads of the engine on CPU; one leaves the other core of a small machine to the learner."""
    seed: int = 0
    enforce_eager: bool = True
    """No compilation: for tiny models it costs more at start than it saves."""
    logprobs_mode: Literal["processed_logprobs", "raw_logprobs"] = "processed_logprobs"
    """`processed`: of the distribution that was sampled, after temperature and truncation."""
    return_routes: bool = True
    start_timeout_s: float = 300
    call_timeout_s: float = 60
    """For one answer of the engine to a control call."""
    request_timeout_s: float = 1800
    """For one generation, waiting included."""
    stop_timeout_s: float = 15
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of vLLM's AsyncEngineArgs."""

    def __post_init__(self) -> None:
        if not (Path(self.model) / "config.json").is_file():
            raise EngineSettingsError(f"model {self.model!r} is not a directory with a config.json")
        if not any(Path(self.model).glob("*.safetensors")):
            raise EngineSettingsError(f"model {self.model!r} has no *.safetensors file")
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes", "threads"):
            if getattr(self, name) < 1:
                raise EngineSettingsError(f"{name} {getattr(self, name)} is not at least 1")
        for name in ("start_timeout_s", "call_timeout_s", "request_timeout_s", "stop_timeout_s"):
            if not getattr(self, name) > 0:
                raise EngineSettingsError(f"{name} {getattr(self, name)} is not above 0")
        if self.tensor_parallel != 1 and self.device == "cpu":
            raise EngineSettingsError(f"tensor_parallel {self.tensor_parallel} needs device cuda; on cpu it is 1")
        if self.extra.get("data_parallel_size", 1) != 1:
            raise EngineSettingsError("data_parallel_size in extra must be 1: run one producer a replica instead")
        if self.device == "cpu" and self.extra.get("enable_chunked_prefill"):
            # vLLM 0.30 rewinds the generator of a seeded request after each chunk but the last, which a CPU generator
            # cannot do: the engine core ends with "CPU Generator does not use offset".
            raise EngineSettingsError("enable_chunked_prefill in extra must stay off on cpu: it ends the engine")
        if self.extra.get("enable_prefix_caching"):
            raise EngineSettingsError("enable_prefix_caching in extra must stay off: cached keys outlive their weights")

    @property
    def rounds_weights(self) -> bool:
        """Whether weights are rounded through FP8 blocks on their way in, because there are no FP8 kernels."""
        return self.precision == "fp8" and self.device == "cpu"

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's `AsyncEngineArgs`."""
        arguments: dict[str, Any] = {
            "model": self.model,
            "skip_tokenizer_init": True,
            "dtype": "bfloat16",
            "kv_cache_dtype": self.kv_cache_dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": max(self.max_num_batched_tokens, self.max_num_seqs),
            "enforce_eager": self.enforce_eager,
            "enable_prefix_caching": False,
            "enable_return_routed_experts": self.return_routes,
            "logprobs_mode": self.logprobs_mode,
            # First come, first served among equals; the canary's few sequences go first.
            "scheduling_policy": "priority",
            "seed": self.seed,
            "tensor_parallel_size": self.tensor_parallel,
            "disable_log_stats": True,
            "worker_extension_cls": "producers.rollouts.engine.worker.extension.WeightExtension",
        }
        if self.device == "cpu":
            arguments |= {
                "kv_cache_memory_bytes": self.kv_cache_bytes,
                "distributed_executor_backend": "uni",
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(arguments["max_num_batched_tokens"], self.max_model_len),
            }
        elif self.precision == "fp8":
            arguments["quantization"] = "fp8_per_block"
        return arguments | dict(self.extra)
