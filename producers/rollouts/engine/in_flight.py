"""The requests in flight in one engine, and the gate that holds new ones back while its weights are swapped."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from producers.rollouts.engine.errors import EngineDied, PromptRefused
from producers.rollouts.engine.generation import SpanLog
from producers.rollouts.engine.liveness import Liveness


@dataclass(slots=True)
class Request:
    """One request: which weights computed what, when it was handed over (Unix seconds), vLLM's output queue."""

    spans: SpanLog
    started_s: float
    collector: Any


class InFlight:
    """Requests by id. `version` is the engine's, and changes only in `settle`."""

    def __init__(self, liveness: Liveness, timeout_s: float) -> None:
        self.version = 0
        self._liveness = liveness
        self._timeout_s = timeout_s
        self._requests: dict[str, Request] = {}
        self._entering = 0
        self._entered = asyncio.Event()
        self._open = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def open(self) -> None:
        """Let requests in."""
        self._open.set()

    def end(self) -> None:
        """Every request raises `EngineDied`: the engine was stopped."""
        self._open.set()
        for request in self._requests.values():
            request.collector.put(EngineDied("the engine was stopped"))

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """While the block lasts no request enters, and none is on its way to the engine core."""
        self._open.clear()
        try:
            while self._entering:
                self._entered.clear()
                await self._liveness.call("for requests to enter the engine", self._entered.wait())
            yield
        finally:
            self._open.set()

    def settle(self, version: int, tokens: Mapping[str, int]) -> None:
        """`version` computes from now on; `tokens` have been sampled, by vLLM's own request ids."""
        self.version = version
        for request in self._requests.values():
            # One that the engine core no longer knows has all of its tokens already.
            if (sampled := tokens.get(request.collector.request_id)) is not None:
                request.spans.update(sampled, version)

    @asynccontextmanager
    async def request(
        self, llm: Any, prompt: list[int], parameters: Any, request_id: str, priority: int = 0
    ) -> AsyncIterator[tuple[Request, Any]]:
        """One request and its output. `PromptRefused`, or `EngineDied` when engine or deadline fails."""
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._liveness.check()
        if request_id in self._requests:
            raise PromptRefused(f"request {request_id!r} is in flight already")
        request: Request | None = None
        finished = False
        try:
            async with asyncio.timeout(self._timeout_s):
                request = await self._enter(llm, prompt, parameters, request_id, priority)
                output = await request.collector.get()
            finished = True
            yield request, output
        except VLLMClientError as error:
            raise PromptRefused(f"request {request_id!r}: {error}") from error
        except (EngineDeadError, EngineGenerateError) as error:
            self._liveness.fail("died")
            raise EngineDied(f"the engine {self._liveness.failure} during request {request_id!r}") from error
        except TimeoutError as error:
            self._liveness.fail(f"did not finish request {request_id!r} within {self._timeout_s:g} s")
            raise EngineDied(f"the engine {self._liveness.failure}") from error
        finally:
            self._requests.pop(request_id, None)
            if request is not None:
                if not finished and self._liveness.failure is None and not llm.errored:
                    await llm.abort(request.collector.request_id, internal=True)
                request.collector.close()

    async def _enter(self, llm: Any, prompt: list[int], parameters: Any, request_id: str, priority: int) -> Request:
        from vllm.inputs.engine import tokens_input

        while not self._open.is_set():
            await self._open.wait()
        self._liveness.check()
        self._entering += 1
        try:
            spans, started_s = SpanLog(self.version), time.time()
            collector = await llm.add_request(request_id, tokens_input(prompt), parameters, priority=priority)
            self._requests[request_id] = request = Request(spans, started_s, collector)
            return request
        finally:
            self._entering -= 1
            if not self._entering:
                self._entered.set()
