"""A trace: every event of one search, as values and as a file of one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cot_engine.core.chain import Chain
from cot_engine.core.events import (
    Event,
    Finished,
    Heard,
    Progress,
    Started,
    event_from_json,
    event_to_json,
)
from cot_engine.core.fold import Fold
from cot_engine.errors import TraceError, shown
from cot_engine.files.reading import read_bytes
from cot_engine.files.writing import unwritable, write_whole

_ELSEWHERE = "Free some space or choose another place with --trace."


@dataclass
class Trace:
    """The events of one search, in order. Made of all that a listener heard it is the search's own
    trace: Progress, which depends on the clock, is left out."""

    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.events = [event for event in self.events if not isinstance(event, Progress)]

    def __iter__(self) -> Iterator[Event]:
        return iter(self.events)

    @property
    def started(self) -> Started:
        """The event that says what was asked, of which model and how. Raises TraceError if there
        is none."""
        for event in self.events:
            if isinstance(event, Started):
                return event
        raise TraceError("The trace has no beginning.", "Its first line is missing.")

    @property
    def finished(self) -> Finished | None:
        """The event that says how it ended; None for a search that failed or was stopped."""
        return next((e for e in reversed(self.events) if isinstance(e, Finished)), None)

    def fold(self) -> Fold:
        """Its rounds. Raises TraceError if a chain was grown from one that is not there."""
        fold = Fold(self.events)
        if fold.gap:
            raise TraceError(f"The trace has {fold.gap!r} but not what it grew from.")
        return fold

    def chains(self) -> dict[str, Chain]:
        """Every chain that was grown, by id, each with all its steps. Raises as `fold`."""
        return self.fold().chains

    def answered(self) -> Chain | None:
        """The chain of the answer; None if there is no answer. Raises TraceError as `chains`."""
        if self.finished is None:
            return None
        if (chain := self.chains().get(self.finished.chain)) is None:
            raise TraceError(f"The trace lacks its answer's chain, {shown(self.finished.chain)}.")
        return chain

    def canonical(self) -> list[dict[str, Any]]:
        """The events, as `event_to_json` writes them, without what may differ between two runs of
        the same search: equal lists are the same search."""

        def strip(value: Any) -> Any:
            if isinstance(value, dict):
                drop = ("seconds", "versions")
                return {k: strip(v) for k, v in value.items() if k not in drop}
            return [strip(v) for v in value] if isinstance(value, list) else value

        return [strip(json.loads(event_to_json(event))) for event in self.events]

    def write(self, path: str | Path) -> None:
        """Raises TraceError if the file cannot be written (no space, no permission)."""
        lines = "".join(event_to_json(event) + "\n" for event in self.events)
        write_whole(path, lines, "The trace", TraceError, _ELSEWHERE)

    @classmethod
    def read(cls, path: str | Path) -> Trace:
        """Read a trace; one that was cut off in its last line is read up to there.

        Raises TraceError if the file is missing, empty or not a trace.
        """
        return cls.parse(read_bytes(path, "trace", TraceError), str(path))

    @classmethod
    def parse(cls, data: bytes, name: str) -> Trace:
        """What `read` finds in a file with these bytes. Raises TraceError, which calls it
        `name`."""
        if not data.strip():
            raise TraceError(f"The trace {name!r} is empty.")
        *lines, rest = data.split(b"\n")  # not splitlines: U+2028 may stand in a text
        events: list[Event] = []
        for number, line in enumerate([*lines, rest] if rest else lines, 1):
            try:
                events.append(event_from_json(line.decode()))
            except (TraceError, UnicodeDecodeError) as error:
                if events and number > len(lines):
                    break  # without a line break at its end: an interrupted write
                reason = getattr(error, "message", error)
                raise TraceError(
                    f"Line {number} of {name!r}: {reason}", getattr(error, "hint", "")
                ) from None
        return cls(events)


class TraceFile:
    """A listener that writes each event as it happens, so that what was done survives a crash
    (Progress aside, which depends on the clock).

    It checks at the start that the file can be written; an error later (a full disk) is kept in
    `error` and stops the writing, not the search.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.error: TraceError | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Half a surrogate pair, from a command line that is not UTF-8, is written as \udcXX,
            # which is what JSON calls it.
            self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
        except (OSError, ValueError) as error:
            raise self._error(error) from None

    def __call__(self, event: Heard) -> None:
        if self.error is None and not isinstance(event, Progress):
            try:
                self._file.write(event_to_json(event) + "\n")
                self._file.flush()
            except OSError as error:
                self.error = self._error(error)

    def _error(self, error: OSError | ValueError) -> TraceError:
        return unwritable(self.path, error, "The trace", TraceError, _ELSEWHERE)

    def __enter__(self) -> TraceFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:  # buffered bytes that did not fit
            self.error = self.error or self._error(error)
        if self.error is not None and kind is None:  # else what went wrong first is what counts
            raise self.error
