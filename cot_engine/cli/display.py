"""The search, watchable on stderr: live where that is a terminal, one line per round elsewhere.

Both forms listen to the same events, from the engine's thread. A display that fails, because its
terminal went away, falls silent: it must not cost anyone the answer.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from cot_engine.core.events import Finished, Heard, Notice, Progress
from cot_engine.escape import terminal

if TYPE_CHECKING:
    from cot_engine.show.board import Block

_FRAMES_PER_SECOND = 8
_EVERY = 10.0  # seconds without a line, after which the log says how far a round is
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Silent:
    """What --quiet shows; the base of the others."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def loading(self, model: str) -> None:
        """The first thing shown: the model is about to load."""

    def notice(self, text: str) -> None:
        """Something the user should know that no search recorded."""

    def __call__(self, event: Heard) -> None:
        pass


def make_display(quiet: bool = False, stream: TextIO | None = None) -> Silent:
    """The display that suits `stream` (stderr)."""
    stream = stream or sys.stderr
    if quiet:
        return Silent()
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    utf8 = console.encoding.lower().replace("-", "") == "utf8"
    if console.is_terminal and utf8 and not console.is_dumb_terminal:
        return Live(console)
    return Log(stream)


class Live(Silent):
    """Finished rounds stay as they are; under them the current one, what is done, the cost.

    One lock holds for everything that is written. Rich has a refreshing thread of its own, but
    what that writes can fall between the measuring and the writing of what we print: then a frame
    erases the wrong lines.
    """

    def __init__(self, console) -> None:
        from rich.live import Live as RichLive

        from cot_engine.show.board import Board

        self.console = console
        self.board = Board()
        self.lock = threading.RLock()
        self.begun = time.monotonic()
        self.doing = ""
        self.broken = False
        self.over = threading.Event()
        self.ticker = threading.Thread(target=self._tick, name="display", daemon=True)
        self.live = RichLive(
            console=console,
            get_renderable=self._render,
            auto_refresh=False,
            transient=True,  # the final frame is printed for good instead
            redirect_stdout=False,
        )

    def __enter__(self) -> Live:
        self._write(self.live.start)
        self.ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        with self.lock:
            self._print(self.board.leave())
            self._write(self.live.stop)
            if self.board.started:
                self._write(lambda: self.console.print(_cut(self._cost()), ""))
            self.broken = True  # whatever else comes is too late

    def loading(self, model: str) -> None:
        with self.lock:
            self.doing = f"Loading {terminal(model)}"
            self._write(self.live.refresh)

    def notice(self, text: str) -> None:
        with self.lock:
            self._print(self.board.take(Notice(text)))

    def __call__(self, event: Heard) -> None:
        with self.lock:
            self.doing = ""
            self._print(self.board.take(event))  # the rest shows at the next tick

    def _tick(self) -> None:
        while not self.over.wait(1 / _FRAMES_PER_SECOND):
            with self.lock:
                self._write(self.live.refresh)

    def _render(self):
        from rich.console import Group
        from rich.text import Text

        frame = _SPINNER[int((time.monotonic() - self.begun) * 10) % len(_SPINNER)]
        doing = Text(f"{frame} ", "cyan").append(self.doing or self.board.status(), "default")
        return Group(*map(_cut, [*self.board.lines(), doing, self._cost()]))

    def _cost(self):
        from rich.text import Text

        cost = self.board.cost()
        seconds = f"{time.monotonic() - self.begun:.1f} s"
        return Text(f"{cost} · {seconds}" if cost else seconds, "dim")

    def _print(self, blocks: list[Block]) -> None:
        """At once, so that the live region is redrawn once."""
        from rich.console import Group

        if blocks:
            lines = [_cut(line) for block in blocks for line in block.lines]
            self._write(lambda: self.console.print(Group(*lines)))

    def _write(self, act: Callable[[], object]) -> None:
        if not self.broken:
            try:
                act()
            except (OSError, ValueError):
                self.broken = True


def _cut(line):
    """One row of the terminal, whatever its width."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


class Log(Silent):
    """One line per round, for files and pipes, and one now and then inside a long one."""

    def __init__(self, stream: TextIO) -> None:
        from cot_engine.show.board import Board

        self.stream = stream
        self.board = Board()
        self.begun = self.said = time.monotonic()

    def loading(self, model: str) -> None:
        self._line(f"Loading {model}")

    def notice(self, text: str) -> None:
        self._line(f"Note: {text}")

    def __call__(self, event: Heard) -> None:
        for block in self.board.take(event):
            self._block(block)
        if isinstance(event, Finished):
            self._line(f"Done: {self.board.cost()}")
        if isinstance(event, Progress) and time.monotonic() - self.said >= _EVERY:
            self._line(self.board.status())

    def _block(self, block: Block) -> None:
        lines = [line.plain for line in block.lines]
        if block.kind == "round":  # the title, and the best of the candidates that were kept
            lines = [": ".join([lines[0], *[line[2:] for line in lines if line[0] == "▸"][:1]])]
        for line in lines:
            self._line(line)

    def _line(self, text: str) -> None:
        self.said = time.monotonic()
        said = " ".join(terminal(text).split())
        said = said if len(said) <= 160 else said[:159] + "…"
        with contextlib.suppress(OSError, ValueError):  # nobody is listening
            print(f"[{time.monotonic() - self.begun:6.1f} s] {said}", file=self.stream, flush=True)
