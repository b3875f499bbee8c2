"""The live view: a table that is redrawn on a terminal, plain lines anywhere else.

A view never ends what it shows. Its terminal may be closed, its file's disk be full, its pipe's reader be gone: what
cannot be written then is left out, and the next is tried again.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from analysis.views.durations import in_words
from analysis.views.live_figures import Snapshot, as_line

if TYPE_CHECKING:
    from rich.console import RenderableType

_LINE_EVERY_S = 5.0
_COLUMNS = 92

_UNWRITABLE = (OSError, ValueError)
"""What writing raises: the system's error, or that the stream is closed."""
_SPARKS = "▁▂▃▄▅▆▇█"
_BAR = 40


class View(Protocol):
    """Where a run is shown."""

    def show(self, now: Snapshot) -> None:
        """Show the newest figures."""

    def note(self, text: str) -> None:
        """Show a sentence about an event of the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_on(stream: TextIO, title: str, *, line_every_s: float = _LINE_EVERY_S) -> View:
    """A table for a terminal, plain lines for any other stream: one a step, and one after `line_every_s` without."""
    return TerminalView(stream, title) if stream.isatty() else PlainView(stream, line_every_s)


class PlainView:
    """A line where the step changed, or none was printed for `line_every_s` seconds."""

    def __init__(self, stream: TextIO, line_every_s: float = _LINE_EVERY_S) -> None:
        self._stream = stream
        self._line_every_s = line_every_s
        self._began_s = time.monotonic()
        self._step = -1
        self._printed_s = 0.0

    def show(self, now: Snapshot) -> None:
        """See `View`."""
        since_s = time.monotonic() - self._printed_s
        if now.step != self._step or since_s >= self._line_every_s:
            self._step = now.step
            self.note(as_line(now))

    def note(self, text: str) -> None:
        """See `View`."""
        self._printed_s = time.monotonic()
        with contextlib.suppress(*_UNWRITABLE):
            print(f"[{self._printed_s - self._began_s:6.1f} s] {text}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class TerminalView:
    """A table that is redrawn, below the notes, which stay: progress, pass rates, how much waits where."""

    def __init__(self, stream: TextIO, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._began_s = time.monotonic()
        self._rates: deque[float] = deque(maxlen=_BAR)
        self._now: Snapshot | None = None
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)

    def show(self, now: Snapshot) -> None:
        """See `View`."""
        if now.pass_rate is not None and (self._now is None or now.step != self._now.step):
            self._rates.append(now.pass_rate)
        self._now = now

    def note(self, text: str) -> None:
        """See `View`."""
        with contextlib.suppress(*_UNWRITABLE):
            self._console.print(f"{time.strftime('%H:%M:%S')} {text}", style="yellow", markup=False)

    def __enter__(self) -> Self:
        with contextlib.suppress(*_UNWRITABLE):
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*_UNWRITABLE):
            self._live.stop()

    def _render(self) -> "RenderableType":
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        elapsed = in_words(time.monotonic() - self._began_s)
        now = self._now
        if now is None:
            body: list[RenderableType] = [Text("starting the broker and the services")]
        else:
            table = Table.grid(padding=(0, 2))
            table.add_column(style="dim", justify="right")
            table.add_column()
            if now.steps:
                table.add_row("", ProgressBar(total=now.steps, completed=now.step, width=_BAR))
            for name, value in _rows(now, self._rates):
                table.add_row(name, value)
            body = [table]
        return Panel(Group(*body), title=self._title, subtitle=elapsed, width=min(_COLUMNS, self._console.width))


def _rows(now: Snapshot, rates: Iterable[float]) -> list[tuple[str, str]]:
    rate = "-" if now.pass_rate is None else f"{now.pass_rate:.3f}  {sparkline(rates)}"
    held_back = "-" if now.held_back is None else f"{now.held_back[1]:.3f} after step {now.held_back[0]}"
    return [
        ("step", _progress(now)),
        ("pass rate, training", rate),
        ("pass rate, held back", held_back),
        ("generated", f"{now.tokens_per_s:,.0f} tokens/s"),
        ("staleness", "-" if now.staleness is None else f"{now.staleness:.2f} versions"),
        ("reward, newest step", "-" if now.reward is None else f"{now.reward:.3f}"),
        ("groups", f"{now.groups_ready} ready, {_counts(now.groups_dropped) or 'none'} dropped"),
        *([("rollouts waiting", _counts(now.queues) or "none")] if now.queues else []),
        ("lag of the readers", _counts(now.lag) or "none"),
        ("dead letters", str(now.dead_letters)),
        *([("services", now.services)] if now.services else []),
    ]


def _progress(now: Snapshot) -> str:
    parts = [f"{now.step} of {now.steps}" if now.steps else str(now.step)]
    if now.steps_per_h is not None:
        parts.append(f"{now.steps_per_h:,.0f} an hour")
    if now.left_s:
        parts.append(f"{in_words(now.left_s)} left")
    return ", ".join(parts)


def sparkline(values: Iterable[float], width: int = _BAR) -> str:
    """The last values as bars between 0 and 1."""
    top = len(_SPARKS) - 1
    return "".join(_SPARKS[min(top, max(0, round(value * top)))] for value in deque(values, maxlen=width))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n)
