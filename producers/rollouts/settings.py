"""The rollout producer's section of the configuration."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from producers.rollouts.engine.errors import EngineSettingsError
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.kv_cache import CacheDtype, cache_dtype
from streams.errors import ConfigurationError

Meta = msgspec.Meta


class ProducerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine and how its prompts, weights and rollouts travel."""

    model: Annotated[str, Meta(min_length=1, description="directory of a Hugging Face checkpoint: weights version 0")]
    precision: Annotated[
        Literal["bf16", "fp8"], Meta(description="fp8: weights in 128x128 e4m3 blocks; on CPU rounded through them")
    ] = "bf16"
    kv_cache_dtype: Annotated[
        CacheDtype | None,
        Meta(description="of cached keys and values; auto: the model's; left out: fp8 where machine and model can"),
    ] = None
    device: Annotated[Literal["cpu", "cuda"], Meta(description="what vLLM runs on")] = "cpu"
    tensor_parallel: Annotated[int, Meta(ge=1, description="GPUs that share each layer; 1 on CPU")] = 1
    threads: Annotated[int, Meta(ge=1, description="OpenMP threads of the engine on CPU")] = 1
    max_model_len: Annotated[int, Meta(ge=2, description="prompt and response together, in tokens")] = 1024
    max_num_seqs: Annotated[int, Meta(ge=1, description="rollouts computed in one step of the engine")] = 256
    max_num_batched_tokens: Annotated[int, Meta(ge=1, description="tokens computed in one step")] = 2048
    kv_cache_bytes: Annotated[int, Meta(ge=1, description="cached keys and values on CPU, in bytes")] = 256 << 20
    groups_in_flight: Annotated[
        int, Meta(ge=1, description="requests in flight; the engine queues what it does not compute yet")
    ] = 256
    seeded: Annotated[
        bool, Meta(description="a seed for each rollout, from run, rollout and attempt; costs the sampler a loop")
    ] = True
    max_attempts: Annotated[
        int, Meta(ge=1, description="generations of a rollout whose log-probs are not finite before it is given up")
    ] = 3
    start_timeout_s: Annotated[float, Meta(gt=0, description="deadline for the engine to come up")] = 300.0
    call_timeout_s: Annotated[float, Meta(gt=0, description="deadline for one control call to the engine")] = 60.0
    request_timeout_s: Annotated[float, Meta(gt=0, description="deadline for one rollout, waiting included")] = 1800.0
    extra: Annotated[dict[str, Any], Meta(description="further arguments of vLLM's AsyncEngineArgs")] = {}

    def cache_dtype(self) -> CacheDtype:
        """The precision of cached keys and values on this machine."""
        return cache_dtype(self.kv_cache_dtype, Path(self.model), self.device)

    def engine_settings(self, run_seed: int) -> EngineSettings:
        """What the engine is started with. ConfigurationError: a value that cannot work."""
        try:
            return EngineSettings(
                model=self.model,
                precision=self.precision,
                kv_cache_dtype=self.cache_dtype(),
                device=self.device,
                tensor_parallel=self.tensor_parallel,
                threads=self.threads,
                max_model_len=self.max_model_len,
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                kv_cache_bytes=self.kv_cache_bytes,
                seed=run_seed,
                start_timeout_s=self.start_timeout_s,
                call_timeout_s=self.call_timeout_s,
                request_timeout_s=self.request_timeout_s,
                extra=self.extra,
            )
        except EngineSettingsError as error:
            raise ConfigurationError(str(error)) from error
