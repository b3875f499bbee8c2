"""What vLLM says, turned into what it means: parameters in, generations out, prompts that can never run refused."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from producers.rollouts.engine import routes
from producers.rollouts.engine.errors import EngineDied, PromptRefused
from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.in_flight import Request


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the running model takes, and the shape of its routes: `moe_layers` by index; none where unrecorded."""

    max_model_len: int
    vocabulary: int
    moe_layers: tuple[int, ...] | None = None
    experts: int = 0
    top_k: int = 0

    def check(self, prompt_ids: Sequence[int], new_tokens: int) -> None:
        """Raises `PromptRefused` for what can never run."""
        total = len(prompt_ids) + new_tokens
        if not len(prompt_ids) or total > self.max_model_len:
            raise PromptRefused(
                f"a prompt of {len(prompt_ids)} and {new_tokens} new tokens is not within 1 and "
                f"max_model_len {self.max_model_len}"
            )
        # An id beyond the vocabulary would read outside the embedding and take the engine down.
        if min(prompt_ids) < 0 or max(prompt_ids) >= self.vocabulary:
            raise PromptRefused(f"a prompt's token is outside the vocabulary of {self.vocabulary}")

    def generation(self, prompt_tokens: int, request: Request, output: Any) -> Generation:
        """The finished `output`. Raises `EngineDied` where the engine broke it off."""
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineDied(f"the engine ended request {output.request_id!r} with {completion.finish_reason!r}")
        response = np.asarray(completion.token_ids, np.uint32)
        recorded = None
        if self.moe_layers is not None:
            recorded = routes.rows(
                completion.routed_experts,
                tokens=prompt_tokens + len(response),
                layers=list(self.moe_layers),
                experts=self.experts,
                top_k=self.top_k,
            )
        # The engine core's clock is the monotonic one, which all processes of a machine share.
        to_unix = time.time() - time.monotonic()
        return Generation(
            response_ids=response,
            logprobs=np.asarray(completion.logprobs.logprobs, np.float32),
            routes=recorded,
            spans=request.spans.close(len(response)),
            finish_reason=completion.finish_reason,
            started_s=request.started_s,
            first_token_s=to_unix + output.metrics.first_token_ts,
            finished_s=to_unix + output.metrics.last_token_ts,
        )


def sampling_parameters(**values: Any) -> Any:
    """vLLM's `SamplingParams`: one output a request, when it is finished; nothing for the front end in between."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **values, detokenize=False, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY, skip_clone=True
    )
