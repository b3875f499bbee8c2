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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from producers.rollouts.engine.errors import EngineDied, EngineError, EngineStartError, WeightsRefused, in_one_line
from producers.rollouts.engine.generation import Generation
from producers.rollouts.engine.in_flight import InFlight
from producers.rollouts.engine.liveness import Liveness
from producers.rollouts.engine.outputs import ModelLimits, sampling_parameters
from producers.rollouts.engine.process import EngineProcesses
from producers.rollouts.engine.settings import EngineSettings
from producers.rollouts.engine.startup import EngineStart
from producers.rollouts.engine.weight_files import WeightFile
from schemas import Sampling

_LONG_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """How an update went: seconds of loading and checking (generation continues), of the swap, of the whole pause."""

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


class RolloutEngine:
    """One vLLM engine. Every method belongs to one event loop; `generate` and `score` may be called concurrently."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.liveness = Liveness(settings.call_timeout_s)
        self._requests = InFlight(self.liveness, settings.request_timeout_s)
        self._llm: Any = None
        self._processes: EngineProcesses | None = None
        self._starting: EngineStart | None = None
        self._limits = ModelLimits(settings.max_model_len, 0)
        self._updating = asyncio.Lock()
        self._generations = self._tokens_generated = 0

    @property
    def version(self) -> int:
        """The weights that compute the next token."""
        return self._requests.version

    async def start(self, version: int = 0) -> None:
        """Brings vLLM up; the model directory's weights count as `version`.

        Raises `EngineStartError` when it dies or `start_timeout_s` passes; nothing is left running then.
        """
        if self._processes is not None:
            raise EngineError("the engine was started before; make another one")
        self._processes = EngineProcesses()
        self._starting = EngineStart(self.settings, self._processes)
        try:
            self._llm = await self._starting.llm()
            processes = self._llm.engine_core.resources.engine_manager.processes
            self.liveness.begin([process.pid for process in processes], lambda: bool(self._llm.errored))
            await self._read_model()
            self._requests.version = version
            if self.settings.rounds_weights:
                await self.update_weights(version, _files_of(Path(self.settings.model)))
        except BaseException as error:
            self._llm = await self._starting.give_up() or self._llm
            await self.stop()
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise EngineStartError(f"the engine did not start: {in_one_line(error)}") from error
            raise
        self._requests.open()

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
        self.liveness.check()
        self._limits.check(prompt_ids, sampling.max_tokens)
        parameters = sampling_parameters(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            logprobs=0,
            seed=seed,
            stop_token_ids=list(stop_token_ids),
            ignore_eos=ignore_eos,
        )
        async with self._requests.request(self._llm, list(prompt_ids), parameters, request_id) as (request, output):
            made = partial(self._limits.generation, len(prompt_ids), request, output)
            # The routes of 32,768 tokens are 16 MB: 10 to 70 ms that other requests would wait for the event loop.
            long = len(prompt_ids) + len(output.outputs[0].token_ids) >= _LONG_TOKENS
            generation = await asyncio.to_thread(made) if long else made()
        self._generations += 1
        self._tokens_generated += len(generation.response_ids)
        return generation

    async def score(
        self, token_ids: Sequence[int], request_id: str = "score", *, priority: int = 0
    ) -> NDArray[np.float32]:
        """Log-probs `[tokens - 1]` of every token but the first, under the present weights. Raises as `generate`.

        Below 0 `priority` goes before every generation that waits for a place.
        """
        self.liveness.check()
        self._limits.check(token_ids, 1)
        parameters = sampling_parameters(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        async with self._requests.request(self._llm, list(token_ids), parameters, request_id, priority) as (_, output):
            return np.asarray(output.prompt_logprobs.logprobs, np.float32)

    async def update_weights(self, version: int, files: Sequence[WeightFile]) -> WeightUpdate:
        """Puts new weights under the requests in flight, which keep their tokens and their cached keys and values.

        The files are read, checked and staged while generation continues; it pauses between two steps for the swap.
        Raises `WeightsRefused` before anything was paused; `EngineDied` when the swap itself failed.
        """
        self.liveness.check()
        async with self._updating:
            began = time.perf_counter()
            listed = [(str(file.path), file.digest) for file in files]
            verdicts = await self.liveness.call(
                "to prepare weights",
                self._llm.collective_rpc("prepare_weights", args=(listed, self.settings.rounds_weights)),
            )
            if refusals := [verdict for verdict in verdicts if verdict]:
                await self.liveness.call("to discard weights", self._llm.collective_rpc("discard_weights"))
                raise WeightsRefused(f"weights {version}: {refusals[0]}")
            prepared = time.perf_counter()
            async with self._requests.held():
                return await self._swap(version, prepared - began)

    async def health(self) -> EngineHealth:
        """Asks the engine core for an answer. Raises `EngineDied` when none comes."""
        self.liveness.check()
        await self.liveness.call("for a sign of life", self._llm.is_paused())
        return EngineHealth(self.version, len(self._requests), self._generations, self._tokens_generated)

    async def stop(self) -> None:
        """Ends every process of the engine; requests in flight raise `EngineDied`. Works in every state, twice too.

        Raises `EngineError` when a process outlived SIGKILL.
        """
        if self._processes is None or self._starting is None:
            return
        if not self._starting.has_ended:
            # As long as its thread lives it may start more processes: who kills them must outlive it.
            return
        self.liveness.stopped()
        self._requests.end()
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
        if not await asyncio.to_thread(self._processes.close, self.settings.stop_timeout_s):
            raise EngineError(f"a process of the engine outlived SIGKILL for {self.settings.stop_timeout_s:g} s")

    async def _swap(self, version: int, prepare_s: float) -> WeightUpdate:
        call = self.liveness.call
        began = time.perf_counter()
        core = self._llm.engine_core
        await call("for generation to pause", core.pause_scheduler_async(mode="keep", clear_cache=False))
        counts = await call("for token counts", core.call_utility_async("eachprompt_output_tokens"))
        try:
            seconds = await call("for weights to be applied", self._llm.collective_rpc("apply_weights"))
        except Exception as error:
            self.liveness.fail(f"failed while weights {version} were applied: {error}")
            raise EngineDied(f"the engine {self.liveness.failure}") from error
        self._requests.settle(version, counts)
        await call("for generation to resume", self._llm.resume_generation())
        return WeightUpdate(version, prepare_s, max(seconds), time.perf_counter() - began)

    async def _read_model(self) -> None:
        config = self._llm.model_config
        vocabulary, length = int(config.get_vocab_size()), self.settings.max_model_len
        self._limits = ModelLimits(length, vocabulary)
        if self.settings.return_routes:
            layers = await self.liveness.call("for the model's layers", self._llm.collective_rpc("moe_layers"))
            experts, top_k = int(config.get_num_experts()), int(config.get_num_experts_per_tok())
            self._limits = ModelLimits(length, vocabulary, tuple(layers[0]), experts, top_k)


def _files_of(directory: Path) -> list[WeightFile]:
    return [WeightFile(path) for path in sorted(directory.glob("*.safetensors"))]
