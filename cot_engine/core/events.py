"""Everything that happens in a search, as events; a trace is their list, one JSON object a line.

Display, trace viewer, statistics and tests listen to the same events. Only fields named `seconds`
(and `versions` of Started) may differ between two runs of the same search: `canonical` drops them.

`round` is the number of the strategy's request that an event belongs to, from 1, in the order in
which the strategy made its requests: each of a tuple has its own, and their events may interleave.
A conclusion that the budget forced is a round of its own, after the last. In traces from before
rounds were numbered it is 0 everywhere: `fold.numbered` says what they were.
"""

from __future__ import annotations

import binascii
import json
import typing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cot_engine.core.chain import Chain
from cot_engine.core.grammar import FAULTS
from cot_engine.core.match import Match
from cot_engine.core.options import SearchOptions
from cot_engine.core.plain import Wrong, plain, reader
from cot_engine.core.requests import BackendInfo, Sampling
from cot_engine.core.stages import Detail as Detail  # what Started inherits is annotated with it
from cot_engine.core.stages import Plan
from cot_engine.core.usage import Role, Usage
from cot_engine.errors import ConfigError, TraceError, shown
from cot_engine.files.reading import parse_json

SCHEMA = 1
"""Raised when a version could not read what another wrote. A field with a default may be added:
a trace without it is read as if it held that."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as a trace keeps it. `size` is (width, height) in pixels; `source` a path, URL or
    kind; `notes` for the reader.

    `data` is the base64 PNG that was read from a file, `image` the Image of a search in this
    process, encoded only when it is written: a large photograph takes seconds. Both are empty if
    the trace was told to omit the pixels. Records are equal if their digests are.
    """

    digest: str
    source: str
    size: tuple[int, int]
    notes: tuple[str, ...] = ()
    data: str = field(default="", compare=False, repr=False)
    image: Any = field(default=None, compare=False, repr=False, metadata={"read": False})

    def written(self) -> ImageRecord:
        """The record with its pixels in it."""
        return replace(self, data=self.png(), image=None)

    def png(self) -> str:
        """The image as base64 PNG; "" if the trace does not hold it."""
        return self.data or (self.image.to_png_base64() if self.image is not None else "")


@dataclass(frozen=True, slots=True)
class Started(SearchOptions):
    """The beginning. `parameters` holds what JSON has words for: where a search begins,
    `parts.parameters` makes it so, of whatever a stranger's strategy takes."""

    problem: str
    question: str
    images: tuple[ImageRecord, ...]
    strategy: str
    parameters: dict[str, Any]
    judge: str
    plan: Plan
    mode: Literal["trained", "prompted"]
    sampling: Sampling
    budget: str | None
    backend: BackendInfo
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Growing:
    """Candidates are about to be sampled: `n` for each of the `parents`, until `unit`."""

    parents: tuple[str, ...]
    unit: str
    n: int
    round: int = 0


@dataclass(frozen=True, slots=True)
class Grown:
    """Candidates that were sampled. Each carries only its new step (`steps` of length 1).

    `forced`: the stage's opening tag was put there because no free sample opened it.
    """

    unit: str
    chains: tuple[Chain, ...]
    usage: Usage
    forced: bool = False
    round: int = 0


@dataclass(frozen=True, slots=True)
class Judging:
    """A tournament is about to begin among `candidates` (after merging)."""

    about: Literal["step", "whole"]
    stage: str
    candidates: tuple[str, ...]
    round: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """One match, as soon as it is decided. `cached`: it had been held before in this search."""

    match: Match
    cached: bool = False
    round: int = 0


@dataclass(frozen=True, slots=True)
class Selected:
    """A selection's outcome. `verified` is what verifiers cost of its `usage`.

    `merged` maps a candidate to the ids folded into it; `unjudged` maps the ids that never entered
    the tournament to the fault that kept them out. `ranking` is best first over the entrants. `by`
    is the scorer whose numbers decided, "" where the judge did alone.
    """

    about: Literal["step", "whole"]
    stage: str
    candidates: tuple[str, ...]
    merged: dict[str, tuple[str, ...]]
    unjudged: dict[str, str]
    matches: tuple[Match, ...]
    ranking: tuple[str, ...]
    kept: tuple[str, ...]
    usage: Usage
    round: int = 0
    verified: Usage = field(default=Usage(), metadata={"sparse": True})
    by: str = field(default="", metadata={"sparse": True})


@dataclass(frozen=True, slots=True)
class Scored:
    """What a scorer gave: its number for each chain, by id; higher is better. `about` is what the
    numbers are about; `probability` says that they were asked for as such, from 0 to 1; `verified`
    is what verifiers cost of `usage`."""

    scorer: str
    scores: dict[str, float]
    usage: Usage
    round: int = 0
    about: Literal["step", "whole"] = "step"
    probability: bool = False
    verified: Usage = field(default=Usage(), metadata={"sparse": True})


@dataclass(frozen=True, slots=True)
class Retraced:
    """The strategy went back to before the stage `to`: the `place`-th best of `candidates` had only
    `score`, below `threshold`. What follows grows from `parents`, as round `attempt` `of`."""

    to: str
    candidates: tuple[str, ...]
    parents: tuple[str, ...]
    place: int
    score: float
    threshold: float
    attempt: int
    of: int
    round: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """The budget did not pay for what was asked. `what`: "candidates", "tokens", "matches" or
    "search" (the floor was reached and the answer was concluded at once)."""

    what: Literal["candidates", "tokens", "matches", "search"]
    asked: int
    granted: int
    left: float
    round: int = 0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user should know: an animated image, a batch halved for lack of memory."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end. `usage` is by role; `left` in the budget's unit; `faults` counts by name.

    `incomplete` says why the answer is not whole ("" if it is, and in traces from before it was
    recorded). `confidence` is how likely the answer is right, 0 to 1, by the model's probe (None:
    it has none).
    """

    answer: str
    chain: str
    usage: dict[Role, Usage]
    faults: dict[str, int]
    left: float | None = None
    seconds: float = 0.0
    incomplete: str = ""
    confidence: float | None = field(default=None, metadata={"sparse": True})


@dataclass(frozen=True, slots=True)
class Failed:
    """The search ended without an answer: interrupted, or an error."""

    error: str
    message: str


Doing = Literal["growing", "judging", "scoring"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the search is inside what it is `doing`: for listeners only, some ten times a second
    while something moves. It depends on the clock, so no trace records it.

    `unit` is what grows ("SUMMARY", "sentence", "end" for a whole response), the stage that is
    judged ("" for whole responses), or the scorer. `done` `of` so many candidates are written, or
    matches judged; `of` is 0 where nobody knows, and `at_most` says that it may be fewer. `tokens`
    were written for it so far, at `tokens_per_second` over the last two seconds; `seconds` since
    it began. `texts` is what each candidate that is being written reads so far, by the id that
    it will have: its new step, tags and all, and maybe some characters past the step's end.
    """

    doing: Doing
    unit: str
    done: int
    of: int
    at_most: bool = False
    tokens: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    texts: dict[str, str] = field(default_factory=dict)


Event = (
    Started
    | Growing
    | Grown
    | Judging
    | Judged
    | Selected
    | Scored
    | Retraced
    | Cut
    | Notice
    | Finished
    | Failed
)
"""What a trace records."""

OfRound = Growing | Grown | Judging | Judged | Selected | Scored | Retraced | Cut
"""What happens in a round, and says in which."""

Heard = Event | Progress
"""What a listener is told."""

_KINDS: dict[str, type] = {kind.__name__.lower(): kind for kind in typing.get_args(Event)}


def event_to_json(event: Heard) -> str:
    """An event as one line of JSON, without the line break: {"event": "grown", ...}, its fields by
    name. What a trace file holds, line by line; `event_from_json` reads it back."""
    body = {"event": type(event).__name__.lower(), **plain(event)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def event_from_json(line: str) -> Event:
    """The event that a line of a trace holds: the opposite of `event_to_json`, for all events but
    Progress. Raises TraceError if the line is not an event of this schema."""
    try:
        body = parse_json(line)
        name = body.pop("event", None) if isinstance(body, dict) else None
        if not isinstance(name, str) or name not in _KINDS:
            raise Wrong("", "it names no event")
        if name == "started" and body.get("schema") != SCHEMA:
            raise TraceError(
                f"The trace has schema {shown(body.get('schema'))}; this version reads {SCHEMA}.",
                "Use the cot-engine version that wrote it.",
            )
        return _sensible(reader(_KINDS[name])(body))
    except ValueError as error:
        why = str(error)
    except ConfigError as error:  # a plan that could not be
        why = error.message.removesuffix(".")
    raise TraceError(f"Not a trace event ({why}): {shown(line)}.")


def _sensible(event: Event) -> Event:
    """The event as it is. Raises ValueError for what the types do not say and views rely on."""
    for image in event.images if isinstance(event, Started) else ():
        binascii.a2b_base64(image.data, strict_mode=True)
    for chain in event.chains if isinstance(event, Grown) else ():
        if strange := {f.partition(":")[0] for step in chain.steps for f in step.faults} - {
            *FAULTS
        }:
            raise Wrong(".chains", f"have the fault {shown(min(strange))}, which is none")
    if isinstance(event, Selected) and not (event.candidates and event.kept):
        raise Wrong(".kept" if event.candidates else ".candidates", "is empty")
    if getattr(event, "round", 0) < 0:
        raise Wrong(".round", "is below 0")
    matches = (event.match,) if isinstance(event, Judged) else getattr(event, "matches", ())
    if not all(1 <= len(match.verdicts) <= 2 for match in matches):
        raise Wrong(".verdicts", "must be one or two")
    return event
