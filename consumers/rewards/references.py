"""References judged before any response is: one that its verifier cannot read would end every rollout as `invalid`.

A child process judges them, one after the other, and answers line by line: the grammars take seconds to import, and
some references never come to an end. One that takes longer than its time costs a new child and is named.

    list(unreadable([("math_verify", "3"), ("math_verify", "")], 5.0))     # [(1, "reference '' is empty")]

`python -m consumers.rewards.references` is the child: JSON lines of [verifier, reference] in, of a reason or null out.
"""

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any, Final

CHILD: Final = (sys.executable, "-P", "-m", "consumers.rewards.references")

START_S: Final = 120.0
"""For the first answer of a child: the packages' imports, on a machine that is busy."""

Given = tuple[str, str | dict[str, Any]]
"""The name of a verifier, and a reference for it."""


def unreadable(given: Sequence[Given], timeout_s: float) -> Iterator[tuple[int, str]]:
    """(index, reason) of every reference that its verifier cannot use, in order; each may take `timeout_s` seconds."""
    lines = [json.dumps(item, sort_keys=True) for item in given]
    first_of: dict[str, int] = {}
    for index, line in enumerate(lines):
        first_of.setdefault(line, index)
    distinct = list(first_of)
    reasons: dict[str, str] = {}
    begin = 0
    while begin < len(distinct):
        judged = 0
        for reason in _judged(distinct[begin:], timeout_s):
            if reason is not None:
                reasons[distinct[begin + judged]] = reason
            judged += 1
        begin += judged
        if begin < len(distinct):
            reasons[distinct[begin]] = f"its verifier does not come to an end with it within {timeout_s:g} s"
            begin += 1
    yield from ((index, reasons[line]) for index, line in enumerate(lines) if line in reasons)


def _judged(lines: Sequence[str], timeout_s: float) -> Iterator[str | None]:
    """The reason, or None, of each line until one takes too long or ends the child."""
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
        for number in range(len(lines)):
            try:
                answer = answers.get(timeout=max(timeout_s, START_S) if number == 0 else timeout_s)
            except queue.Empty:
                return
            if not answer:
                return
            yield json.loads(answer)
    finally:
        child.kill()
        for thread in threads:
            thread.join()
        child.wait()
        child.stdout.close()


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

    for line in sys.stdin:
        verifier, reference = json.loads(line)
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
