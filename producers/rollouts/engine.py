"""The rollout engine: vLLM with many requests in flight, whose weights change under them.

new ──start──▶ running ──update_weights──▶ running ──stop──▶ stopped
                  │ any call: EngineDied (its processes are gone, or do not answer)
                  ▼
                broken ──stop──▶ stopped

engine = RolloutEngine(EngineSettings(model="models/tiny-moe"))
await engine.start(version=0)
generation = await engine.generate([5, 11, 4], Sampling(max_tokens=64), "rollout-1")
await engine.update_weights(1, [WeightFile(Path("model.safetensors"), digest)])
await engine.stop()
"""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from producers.rollouts import routes
from producers.rollouts.errors import EngineDied, EngineError, EngineStartError, PromptRefused, WeightsRefused
from producers.rollouts.generation import Generation, SpanLog
from producers.rollouts.launch import Keeper, launch
from producers.rollouts.settings import EngineSettings
from producers.rollouts.weight_files import WeightFile
from schemas import Sampling

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """How an update went: seconds of loading and checking (generation goes on), of the swap, and of the whole pause."""

    version: int
    prepare_s: float
    apply_s: float
    pause_s: float


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What a living engine reports."""

    version: int
    in_flight: int
    generations: int
    tokens_generated: int


@dataclass(slots=True)
class _Request:
    spans: SpanLog
    started_s: float
    collector: Any = None


class RolloutEngine:
    """One vLLM engine. Every method belongs to one event loop; `generate` and `score` may be called concurrently."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.version = 0
        self._llm: Any = None
        self._keeper: Keeper | None = None
        self._failure: str | None = "has not been started"
        self._in_flight: dict[str, _Request] = {}
        self._entering = 0
        self._entered = asyncio.Event()
        self._open = asyncio.Event()
        self._updating = asyncio.Lock()
        self._moe_layers: list[int] = []
        self._experts = self._top_k = self._vocabulary = 0
        self._generations = self._tokens_generated = 0

    async def start(self, version: int = 0) -> None:
        """Brings vLLM up; the model directory's weights count as `version`.

        Raises `EngineStartError` when it dies or `start_timeout_s` passes; nothing is left running then.
        """
        if self._keeper is not None:
            raise EngineError("the engine was started before; make another one")
        self._keeper = Keeper()
        launching = asyncio.ensure_future(asyncio.to_thread(launch, self.settings, self._keeper.mark))
        try:
            self._llm = await asyncio.wait_for(asyncio.shield(launching), self.settings.start_timeout_s)
            self._failure = None
            await self._read_model()
            self.version = version
            if self.settings.rounds_weights:
                await self.update_weights(version, _files_of(Path(self.settings.model)))
        except BaseException as error:
            # Its processes die, and with them the thread that waits for them.
            await self._abandon(launching)
            if isinstance(error, TimeoutError):
                raise EngineStartError(
                    f"the engine did not start within {self.settings.start_timeout_s:g} s"
                ) from error
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise EngineStartError(f"the engine did not start: {error}") from error
            raise
        self._open.set()

    async def generate(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        request_id: str,
        *,
        seed: int | None = None,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
    ) -> Generation:
        """Samples one response; the model's own end-of-sequence tokens and `stop_token_ids` end it.

        A `seed` costs a loop over the requests in every step and repeats a response only where the batch's numerics
        do. Cancelling aborts the request. Raises `PromptRefused`, or `EngineDied` when engine or deadline fails.
        """
        self._check(prompt_ids, sampling.max_tokens)
        parameters = self._parameters(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            logprobs=0,
            seed=seed,
            stop_token_ids=list(stop_token_ids),
            ignore_eos=ignore_eos,
        )
        async with self._request(list(prompt_ids), parameters, request_id) as (request, output):
            generation = self._generation(len(prompt_ids), request, output)
        self._generations += 1
        self._tokens_generated += len(generation.response_ids)
        return generation

    async def score(self, token_ids: Sequence[int], request_id: str = "score") -> NDArray[np.float32]:
        """Log-probs `[tokens - 1]` of every token but the first, under the present weights. Raises as `generate`."""
        self._check(token_ids, 1)
        parameters = self._parameters(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        async with self._request(list(token_ids), parameters, request_id) as (_, output):
            return np.asarray(output.prompt_logprobs.logprobs, np.float32)

    async def update_weights(self, version: int, files: Sequence[WeightFile]) -> WeightUpdate:
        """Puts new weights under the requests in flight, which keep their tokens and their cached keys and values.

        The files are read, checked and staged while generation goes on; then it pauses between two steps for the swap.
        Raises `WeightsRefused` before anything was paused; `EngineDied` when the swap itself failed.
        """
        self._alive()
        async with self._updating:
            began = time.perf_counter()
            listed = [(str(file.path), file.digest) for file in files]
            verdicts = await self._call(
                "to prepare weights",
                self._llm.collective_rpc("prepare_weights", args=(listed, self.settings.rounds_weights)),
            )
            if refusals := [verdict for verdict in verdicts if verdict]:
                await self._call("to discard weights", self._llm.collective_rpc("discard_weights"))
                raise WeightsRefused(f"weights {version}: {refusals[0]}")
            prepared = time.perf_counter()
            return await self._swap(version, prepared - began)

    async def health(self) -> EngineHealth:
        """Asks the engine core for an answer. Raises `EngineDied` when none comes."""
        self._alive()
        await self._call("for a sign of life", self._llm.is_paused())
        return EngineHealth(self.version, len(self._in_flight), self._generations, self._tokens_generated)

    async def stop(self) -> None:
        """Ends every process of the engine; requests in flight raise `EngineDied`. Works in every state, twice too.

        Raises `EngineError` when a process outlived SIGKILL.
        """
        if self._keeper is None:
            return
        keeper, self._failure = self._keeper, "was stopped"
        self._open.set()
        for request in self._in_flight.values():
            if request.collector is not None:
                request.collector.put(EngineDied("the engine was stopped"))
        if self._llm is not None:
            with contextlib.suppress(TimeoutError):
                shutdown = asyncio.to_thread(self._llm.shutdown, self.settings.stop_timeout_s)
                await asyncio.wait_for(shutdown, self.settings.stop_timeout_s)
                # The shutdown has left the closing of its sockets to this loop, and their context to nobody.
                await asyncio.sleep(0)
                self._llm.engine_core.resources.ctx.destroy(linger=0)
            self._llm = None
            # vLLM's objects are cyclic garbage, whose finalizers complain at the interpreter's end.
            gc.collect()
        if not await asyncio.to_thread(keeper.close, self.settings.stop_timeout_s):
            raise EngineError(f"a process of the engine outlived SIGKILL for {self.settings.stop_timeout_s:g} s")

    async def _swap(self, version: int, prepare_s: float) -> WeightUpdate:
        self._open.clear()
        try:
            # A request that is on its way to the engine core would be missing from its count below.
            while self._entering:
                self._entered.clear()
                await self._call("for requests to enter the engine", self._entered.wait())
            began = time.perf_counter()
            core = self._llm.engine_core
            await self._call("for generation to pause", core.pause_scheduler_async(mode="keep", clear_cache=False))
            counts = await self._call("for token counts", core.call_utility_async("eachprompt_output_tokens"))
            try:
                seconds = await self._call("for weights to be applied", self._llm.collective_rpc("apply_weights"))
            except Exception as error:
                self._failure = f"failed while weights {version} were applied: {error}"
                raise EngineDied(f"the engine {self._failure}") from error
            self.version = version
            for request in self._in_flight.values():
                # One that the engine core no longer knows has all of its tokens already.
                if (tokens := counts.get(request.collector.request_id)) is not None:
                    request.spans.update(tokens, version)
            await self._call("for generation to resume", self._llm.resume_generation())
            return WeightUpdate(version, prepare_s, max(seconds), time.perf_counter() - began)
        finally:
            self._open.set()

    @asynccontextmanager
    async def _request(
        self, prompt: list[int], parameters: Any, request_id: str
    ) -> AsyncIterator[tuple[_Request, Any]]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._alive()
        if request_id in self._in_flight:
            raise PromptRefused(f"request {request_id!r} is in flight already")
        request: _Request | None = None
        finished = False
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                request = await self._enter(prompt, parameters, request_id)
                output = await request.collector.get()
            finished = True
            yield request, output
        except VLLMClientError as error:
            raise PromptRefused(f"request {request_id!r}: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            self._failure = self._failure or "died"
            raise EngineDied(f"the engine {self._failure} during request {request_id!r}") from error
        except TimeoutError as error:
            raise EngineDied(
                f"request {request_id!r} was not finished within {self.settings.request_timeout_s:g} s"
            ) from error
        finally:
            self._in_flight.pop(request_id, None)
            if request is not None:
                if not finished and self._failure is None and not self._llm.errored:
                    await self._llm.abort(request.collector.request_id, internal=True)
                request.collector.close()

    async def _enter(self, prompt: list[int], parameters: Any, request_id: str) -> _Request:
        from vllm.inputs.engine import tokens_input

        while not self._open.is_set():
            await self._open.wait()
        self._alive()
        self._entering += 1
        try:
            request = _Request(SpanLog(self.version), time.time())
            request.collector = await self._llm.add_request(request_id, tokens_input(prompt), parameters)
            self._in_flight[request_id] = request
            return request
        finally:
            self._entering -= 1
            if not self._entering:
                self._entered.set()

    def _generation(self, prompt_tokens: int, request: _Request, output: Any) -> Generation:
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise EngineDied(f"the engine ended request {output.request_id!r} with {completion.finish_reason!r}")
        response = np.asarray(completion.token_ids, np.uint32)
        recorded = None
        if self.settings.return_routes:
            recorded = routes.rows(
                completion.routed_experts,
                tokens=prompt_tokens + len(response),
                layers=self._moe_layers,
                experts=self._experts,
                top_k=self._top_k,
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

    def _parameters(self, **values: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # One output a request, when it is finished: no work of the front end in any other step.
        return SamplingParams(
            **values, detokenize=False, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY, skip_clone=True
        )

    async def _read_model(self) -> None:
        config = self._llm.model_config
        self._vocabulary = int(config.get_vocab_size())
        if self.settings.return_routes:
            layers = await self._call("for the model's layers", self._llm.collective_rpc("moe_layers"))
            self._moe_layers = list(layers[0])
            self._experts, self._top_k = int(config.get_num_experts()), int(config.get_num_experts_per_tok())

    async def _call(self, what: str, answer: Awaitable[_T]) -> _T:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await asyncio.wait_for(answer, self.settings.call_timeout_s)
        except TimeoutError as error:
            self._failure = f"did not answer within {self.settings.call_timeout_s:g} s (waited {what})"
            raise EngineDied(f"the engine {self._failure}") from error
        except EngineDeadError as error:
            self._failure = self._failure or "died"
            raise EngineDied(f"the engine {self._failure} (waited {what})") from error

    def _alive(self) -> None:
        if self._failure is None and self._llm.errored:
            self._failure = "died"
        if self._failure is not None:
            raise EngineDied(f"the engine {self._failure}")

    def _check(self, prompt_ids: Sequence[int], new_tokens: int) -> None:
        self._alive()
        total = len(prompt_ids) + new_tokens
        if not len(prompt_ids) or total > self.settings.max_model_len:
            raise PromptRefused(
                f"a prompt of {len(prompt_ids)} and {new_tokens} new tokens is not within 1 and "
                f"max_model_len {self.settings.max_model_len}"
            )
        # An id beyond the vocabulary would read outside the embedding and take the engine down.
        if min(prompt_ids) < 0 or max(prompt_ids) >= self._vocabulary:
            raise PromptRefused(f"a prompt's token is outside the vocabulary of {self._vocabulary}")

    async def _abandon(self, launching: "asyncio.Future[Any]") -> None:
        await self.stop()
        with contextlib.suppress(Exception):
            llm = await asyncio.wait_for(asyncio.shield(launching), self.settings.stop_timeout_s)
            await asyncio.to_thread(llm.shutdown, 1)


def _files_of(directory: Path) -> list[WeightFile]:
    return [WeightFile(path) for path in sorted(directory.glob("*.safetensors"))]
