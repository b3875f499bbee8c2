"""Starting vLLM's processes in a known environment, and being certain that they end."""

import multiprocessing.resource_tracker
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from producers.rollouts.engine.errors import EngineSettingsError
from producers.rollouts.engine.settings import EngineSettings
from streams.processes.orphan_reaper import OrphanReaper, kill_marked

_MARK = "EACHPROMPT_ENGINE"
_ENVIRONMENT = threading.Lock()


class EngineProcesses:
    """Kills whatever the engine started: here when asked to, and by an orphan reaper when this process is gone."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._reaper = OrphanReaper.of_marked(f"{_MARK}={self.mark}")

    def kill(self) -> bool:
        """Kill what there is now and return whether all of it is gone; blocks a few seconds at most."""
        return kill_marked(f"{_MARK}={self.mark}".encode())

    def close(self, deadline_s: float) -> bool:
        """Kill what is left and end the reaper, within `deadline_s` seconds; whether all is gone."""
        gone = self.kill()
        return self._reaper.close(deadline_s) and gone


def engine_environment(settings: EngineSettings, mark: str) -> dict[str, str]:
    """Variables of vLLM's processes; what the user has set wins for logging only."""
    variables = {
        _MARK: mark,
        # The engine core writes its title over its environment otherwise, and the reaper would not find the mark.
        "SPT_NOENV": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if settings.device == "cpu":
        variables |= {
            # Lets the worker run inside the engine core's process: one process less to start and to talk to.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # vLLM would bind the engine to cores and keep the learner from them.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(settings.threads),
        }
    return variables


def launch(settings: EngineSettings, mark: str) -> Any:
    """A started `AsyncLLM`; blocks for 15 s and more, so give it a thread. Raises whatever vLLM raises."""
    with _environment(engine_environment(settings, mark)):
        from producers.rollouts.engine.plugin import register

        register()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            arguments = AsyncEngineArgs(**settings.arguments())
        except TypeError as error:
            raise EngineSettingsError(f"extra engine arguments {dict(settings.extra)}: {error}") from error
        llm = AsyncLLM.from_engine_args(arguments)
        # Gives each request its first and last token's times without vLLM's Prometheus loggers, which a
        # constructor argument would bring along; the output handler reads both when it starts, later than here.
        llm.log_stats = llm.output_processor.log_stats = True
        return llm


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    # Before the mark is set: this process's resource tracker belongs to it, and must not be found by the mark.
    multiprocessing.resource_tracker.ensure_running()
    with _ENVIRONMENT:
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
