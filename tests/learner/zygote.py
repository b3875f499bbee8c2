"""Starts rank processes by forking itself: `zygote.py`, requests as JSON lines on standard input, answers on output.

A process that has imported torch and the learner becomes a rank in milliseconds, where a new interpreter takes eight
seconds; so ranks can be killed and started again dozens of times in a test. Nothing but imports happens here: no
thread, no process group, no random number, so that a fork is what a new process would be.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PR_SET_PDEATHSIG = 1


def load() -> None:
    """Everything that a rank imports, and what transformers and FSDP put off until a model is loaded."""
    for module in ("torch._dynamo", "transformers.integrations.accelerate", "transformers.models.qwen3_moe"):
        importlib.import_module(module)
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3MoeForCausalLM

    # Such a name is imported when it is asked for.
    assert AutoConfig and AutoModelForCausalLM and Qwen3MoeForCausalLM

    import tests.learner.rank_program
    import tests.learner.service_program  # noqa: F401


def become(request: dict[str, Any]) -> int:
    """In the forked process: the rank that was asked for; its exit code."""
    from tests.learner import rank_program, service_program

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for descriptor, path in ((1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.update(request["env"])
    arguments: list[str] = request["arguments"]
    if request["program"] == "service":
        return service_program.run(*arguments)
    rank_program.main(int(arguments[0]), int(arguments[1]), Path(arguments[2]), arguments[3:])
    return 0


def serve() -> None:
    """Answer requests until standard input ends."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            threads = len(list(Path("/proc/self/task").iterdir()))
            assert threads == 1, f"{threads} threads, whose locks a fork would copy"
            answer = os.fork()
            if answer == 0:
                code = 70
                try:
                    code = become(request)
                except BaseException:
                    import traceback

                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    load()
    serve()
