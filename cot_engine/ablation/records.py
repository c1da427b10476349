"""What the store keeps: runs, the rows of their searches, and traces as bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from cot_engine.core.events import Event, Started, event_from_json, event_to_json
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Role, Usage
from cot_engine.images.thumbnails import Thumbnail


class Key(NamedTuple):
    """What names one row within a run (code and model being the run's)."""

    cell: str
    seed: int
    item: str


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """A whole response that a search sampled: its answer, its score, and how likely it was (mean
    log-probability per token). `sound`: without a fault that keeps it out of a selection. `cut`:
    broken off by the budget, which keeps it out of a vote."""

    id: str
    answer: str
    correct: float
    likelihood: float
    sound: bool = True
    cut: bool = False


@dataclass(frozen=True, slots=True)
class SelectionRecord:
    """One selection of a search, with what is known of its candidates.

    `stage` is a tag, or "whole". `worth` maps candidates to the share of their continuations that
    end right (their own answer's score once they hold one); `facts` to whether the text itself is
    right, where the data tells. `kept` is best first. Both maps may be empty.
    """

    stage: str
    candidates: tuple[str, ...]
    kept: tuple[str, ...]
    worth: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResultRow:
    """What one search came to. `correct` is its score, 0 to 1 (None: failed); `allotted`, `spent`
    and `remaining` are in `unit`, the budget's if there was one, else FLOPs (`allotted` None).
    `seconds` is its time from start to end, among others. `usage` is by role. `incomplete` says why
    the answer, which is graded as it stands, is not whole. `trace`, and `picture`, what a report
    shows of the problem's pictures, are stored but do not come back with it."""

    key: Key
    status: str  # "ok" or "failed"
    error: str = ""
    answer: str | None = None
    correct: float | None = None
    unit: str = "flops"
    allotted: float | None = None
    spent: float | None = None
    remaining: float | None = None
    seconds: float = 0.0
    usage: dict[Role, Usage] = field(default_factory=dict)
    candidates: tuple[CandidateRecord, ...] = ()
    selections: tuple[SelectionRecord, ...] = ()
    faults: dict[str, int] = field(default_factory=dict)
    finished: str = ""
    incomplete: str = ""
    trace: Trace | None = field(default=None, compare=False, repr=False)
    picture: Thumbnail | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """A problem as the store knows it."""

    digest: str
    problem: str
    type: str
    question: str
    expected: str


@dataclass(frozen=True, slots=True)
class Run:
    """One grid on one data set with one model and one code version. `cells` maps hashes to
    (label, the cell as JSON), in the order of the grid; `about` holds what a report prints: the
    data's name, digest and rule, the backend, the versions, the machine, the hashes of the
    baselines that were `added` to the grid's own cells."""

    id: str
    name: str
    command: str
    code: str
    model: str
    data: str
    cells: dict[str, tuple[str, dict[str, Any]]]
    items: tuple[ItemRecord, ...]
    seeds: tuple[int, ...]
    reference: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    started: str = ""

    def keys(self) -> Iterator[Key]:
        """All its searches, problem by problem."""
        for item in self.items:
            for seed in self.seeds:
                for cell in self.cells:
                    yield Key(cell, seed, item.digest)


def without_pixels(trace: Trace) -> Trace:
    """The trace with the digests of its images, but not the images: the data set has those."""

    def bare(event: Event) -> Event:
        if not isinstance(event, Started):
            return event
        return replace(event, images=tuple(replace(i, data="", image=None) for i in event.images))

    return Trace([bare(event) for event in trace])


def pack(trace: Trace) -> bytes:
    """A trace as bytes, without the pixels of its images."""
    lines = [event_to_json(event) for event in without_pixels(trace)]
    return zlib.compress("\n".join(lines).encode("utf-8", "backslashreplace"), 9)


def unpack(packed: bytes) -> Trace:
    return Trace([event_from_json(line) for line in zlib.decompress(packed).decode().split("\n")])
