"""Long work, watchable on stderr: a live table where that is a terminal, a line now and then where
it is not. Rates, time left, running accuracies with their intervals, what it has cost.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from cot_engine.escape import terminal
from cot_engine.statistics import wilson
from cot_engine.training.clock import duration

_EVERY = 10.0  # seconds between lines


@dataclass
class Tally:
    """One line of the table. `right` sums scores of those with one; `flops` is the total spent."""

    total: int
    done: int = 0
    scored: int = 0
    right: float = 0.0
    failed: int = 0
    flops: float = 0.0

    @property
    def accuracy(self) -> str:
        """ "0.812 (0.770 to 0.848)", by Wilson's interval, which takes searches as independent:
        the report's, over problems, is the one to quote."""
        if not self.scored:
            return ""
        low, high = wilson(self.right, self.scored)
        return f"{self.right / self.scored:.3f} ({low:.3f} to {high:.3f})"


class LongWork:
    """What is shown while `totals` pieces of work are done, by label. One thread uses it.

    `before` of them were there already; they count as done but not in the rate.
    """

    def __init__(
        self,
        totals: Mapping[str, int],
        *,
        noun: str = "searches",
        quiet: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self.tallies = {label: Tally(total) for label, total in totals.items()}
        self.noun = noun
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.begun = time.monotonic()
        self.first: float | None = None  # loading a model is no part of the rate
        self.fresh = 0
        self.said = self.begun
        self.live = None if quiet else self._live()

    def _live(self):
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.stream, highlight=False)
        if not console.is_terminal or console.is_dumb_terminal:
            return None
        return Live(
            console=console, get_renderable=self._table, refresh_per_second=4, transient=False
        )

    def __enter__(self) -> LongWork:
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            with contextlib.suppress(OSError, ValueError):
                self.live.stop()
        elif self.fresh:
            self._line(self.status(), scores=True)

    # --- what is told to it ---

    def starting(self) -> None:
        """The work begins now: rates count from here."""
        self.first = self.first or time.monotonic()

    def had(self, label: str, scores: list[float | None]) -> None:
        """These were done before; None is one that failed."""
        for score in scores:
            self._count(label, score, 0.0)

    def row(
        self, label: str, score: float | None, flops: float = 0.0, failed: bool = False
    ) -> None:
        """One piece of work is done."""
        self.starting()
        self.fresh += 1
        self._count(label, score, flops, failed)
        if self.live is None and time.monotonic() - self.said > _EVERY:
            self._line(self.status(), scores=True)

    def say(self, text: str) -> None:
        """Something the user should know."""
        if self.live is not None:
            self.live.console.print(terminal(text), markup=False)
        else:
            self._line(text)

    def _count(self, label: str, score: float | None, flops: float, failed: bool = False) -> None:
        tally = self.tallies[label]
        tally.done += 1
        tally.flops += flops
        tally.failed += failed
        if score is not None:
            tally.scored += 1
            tally.right += score

    # --- how it is shown ---

    @property
    def done(self) -> int:
        return sum(tally.done for tally in self.tallies.values())

    @property
    def total(self) -> int:
        return sum(tally.total for tally in self.tallies.values())

    def status(self) -> str:
        """ "340 of 2,400 searches, 5.1 per second, about 6 min 40 s left, 1.2 Tflops"."""
        parts = [f"{self.done:,} of {self.total:,} {self.noun}"]
        elapsed = time.monotonic() - (self.first or self.begun)
        if self.fresh > 1 and elapsed > 0:
            rate = self.fresh / elapsed
            parts.append(f"{rate:.1f} per second" if rate >= 1 else f"{1 / rate:.1f} s each")
            if self.done < self.total:
                parts.append(f"about {duration((self.total - self.done) / rate)} left")
        if flops := sum(tally.flops for tally in self.tallies.values()):
            parts.append(f"{flops / 1e12:,.3g} Tflops")
        if failed := sum(tally.failed for tally in self.tallies.values()):
            parts.append(f"{failed:,} failed")
        return ", ".join(parts)

    def _line(self, text: str, scores: bool = False) -> None:
        if self.quiet:
            return
        self.said = time.monotonic()
        alone = len(self.tallies) == 1
        accuracies = [
            f"right {tally.accuracy}" if alone else f"{label} {tally.right / tally.scored:.3f}"
            for label, tally in self.tallies.items()
            if tally.scored
        ]
        said = terminal(text) + (f"; {', '.join(accuracies)}" if scores and accuracies else "")
        with contextlib.suppress(OSError, ValueError):  # nobody is listening
            stamp = f"[{time.monotonic() - self.begun:7.1f} s]"
            print(stamp, " ".join(said.split()), file=self.stream, flush=True)

    def _table(self):
        from rich.table import Table
        from rich.text import Text

        so_far = f"{self.status()}, {duration(time.monotonic() - self.begun)} so far"
        table = Table(box=None, pad_edge=False, caption=so_far, caption_justify="left")
        table.add_column("")
        table.add_column("done", justify="right")
        table.add_column("right (95 % interval)")
        table.add_column("Gflops each", justify="right")
        for label, t in self.tallies.items():
            share = f"{t.done:,}/{t.total:,}"
            cost = f"{t.flops / t.done / 1e9:.3g}" if t.done and t.flops else ""
            failed = f"  {t.failed} failed" if t.failed else ""
            table.add_row(Text(terminal(label)), share, t.accuracy + failed, cost)
        return table
