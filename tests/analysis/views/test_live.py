import io
import os
import pty
import re
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from analysis.views.live import PlainView, TerminalView, sparkline, view_on
from analysis.views.live_figures import Snapshot


def at(step: int) -> Snapshot:
    return Snapshot(
        time_s=0.0, step=step, steps=40, pass_rate=0.5, held_back=(0, 0.42), reward=0.5, tokens_per_s=3210.0,
        staleness=1.0, groups_ready=16, groups_dropped={"zero_variance": 2}, queues={"generating": 64},
        lag={"scores": 3},
    )  # fmt: skip


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with view_on(stream, "title") as view:
        assert isinstance(view, PlainView)
        view.show(at(0))
        view.show(at(0))
        view.show(at(1))
        view.note("something happened")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3, "a picture that says nothing new is left out"
    assert "step 1/40 | pass rate 0.50 | held back 0.42 (after step 0) | 3,210 tok/s | staleness 1.0" in lines[1]
    assert "dropped zero_variance 2 | waiting generating 64 | lag scores 3" in lines[1]
    assert lines[2].endswith("something happened")


def test_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "100"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    written = bytearray()

    def read() -> None:
        # A terminal holds little, and gives what it has, not all of it; at its end Linux says EIO.
        with suppress(OSError):
            while piece := os.read(ours, 65536):
                written.extend(piece)

    reading = threading.Thread(target=read)
    reading.start()
    with os.fdopen(theirs, "w") as stream, view_on(stream, "the title") as view:
        assert isinstance(view, TerminalView)
        view.show(at(7))
        view.note("something happened")
    reading.join()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.decode())
    for wanted in ("the title", "7 of 40", "3,210 tokens/s", "zero_variance 2", "something happened"):
        assert wanted in text


def test_sparkline_spans_nothing_to_everything() -> None:
    assert sparkline([0.0, 1.0, 2.0, -1.0]) == "▁██▁"


def test_a_view_that_cannot_be_written_ends_nothing() -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 (closing it fails as well)
    with PlainView(full) as view:
        view.note("something happened")
        view.show(at(1))
    with suppress(OSError):
        full.close()
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    with TerminalView(stream, "title") as table:
        os.close(ours)  # the terminal's window is closed
        table.note("something happened")
        table.show(at(1))
        with suppress(OSError):
            stream.close()
        table.note("something else happened")
