"""References judged before any response is: one that its verifier cannot read would end every rollout as `invalid`.

A child process judges them, one after the other, and answers line by line: the grammars take seconds to import, and
some references never come to an end. One that takes longer than its time costs a new child and is named.

    list(unreadable([("math_verify", "3"), ("math_verify", "")], 5.0))     # [(1, "reference '' is empty")]

`python -m consumers.rewards.references` is the child: JSON lines of [verifier, reference] in, and when it has read them
all and is warm a line "ready" out, then a reason or null for each.
"""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

from streams.errors import DeadlineError, StreamsError

CHILD: Final = (sys.executable, "-P", "-m", "consumers.rewards.references")

START_S: Final = 120.0
"""For a child to be ready: the packages' imports, on a machine that is busy."""

READY: Final = "ready"

Given = tuple[str, str | dict[str, Any]]
"""The name of a verifier, and a reference for it."""


def unreadable(given: Sequence[Given], timeout_s: float) -> Iterator[tuple[int, str]]:
    """(index, reason) of every reference that its verifier cannot use, in order; each may take `timeout_s` seconds.

    DeadlineError: a child is not ready in time. StreamsError: it ends before it is.
    """
    lines = [json.dumps(item, sort_keys=True) for item in given]
    first_of: dict[str, int] = {}
    for index, line in enumerate(lines):
        first_of.setdefault(line, index)
    distinct = list(first_of)
    reasons: dict[str, str] = {}
    judged = 0
    while judged < len(distinct):
        for reason in _judged(distinct[judged:], timeout_s):
            if reason is not None:
                reasons[distinct[judged]] = reason
            judged += 1
    yield from ((index, reasons[line]) for index, line in enumerate(lines) if line in reasons)


def _judged(lines: Sequence[str], timeout_s: float) -> Iterator[str | None]:
    """The reason, or None, of each line, up to the first that takes too long or ends the child."""
    child = subprocess.Popen(
        CHILD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert child.stdin is not None and child.stdout is not None
    answers: queue.Queue[str] = queue.Queue()
    threads = [
        threading.Thread(target=_feed, args=(child.stdin, lines), daemon=True),
        threading.Thread(target=_collect, args=(child.stdout, answers), daemon=True),
    ]
    try:
        for thread in threads:
            thread.start()
        ready = _next(answers, START_S)
        if ready is None:
            raise DeadlineError("for the verifiers to be ready to judge references", START_S)
        if not ready:
            raise StreamsError(f"the process that judges references ended before it was ready ({_ended(child)})")
        for _ in lines:
            answer = _next(answers, timeout_s)
            if answer:
                yield json.loads(answer)
                continue
            if answer is None:
                yield f"its verifier does not come to an end with it within {timeout_s:g} s"
            else:
                yield f"its verifier's process ends with it ({_ended(child)})"
            return
    finally:
        child.kill()
        for thread in threads:
            thread.join()
        child.wait()
        child.stdout.close()


def _next(answers: "queue.Queue[str]", seconds: float) -> str | None:
    """The child's next line, empty where it has ended, None where it takes longer."""
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return None


def _ended(child: subprocess.Popen[str]) -> str:
    code = child.wait(START_S)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _feed(stream: IO[str], lines: Sequence[str]) -> None:
    try:
        with stream:
            stream.writelines(f"{line}\n" for line in lines)
    except OSError:
        return  # the child has ended; what it did not answer says so


def _collect(stream: IO[str], answers: "queue.Queue[str]") -> None:
    for line in stream:
        answers.put(line)
    answers.put("")


def main() -> int:
    """The child."""
    from consumers.rewards.verifiers import VerifierError, load

    given = [json.loads(line) for line in sys.stdin]
    for verifier in {name for name, _ in given}:
        with contextlib.suppress(VerifierError):  # said with its first reference
            load(verifier).warm()
    print(json.dumps(READY), flush=True)
    for verifier, reference in given:
        reason = None
        try:
            load(verifier).check_reference(reference)
        except VerifierError as error:
            reason = str(error)
        except Exception as error:  # a grammar that fails on a reference fails with it in every rollout
            reason = f"reference {reference!r} makes its verifier fail: {type(error).__name__}: {error}"
        print(json.dumps(reason), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
