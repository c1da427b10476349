"""What the worker is busy with: requests, the token sequences they need, and their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cot_engine.backends.local.prefix import Node
from cot_engine.backends.local.states import Marking
from cot_engine.backends.local.text import BoundaryWatch
from cot_engine.backends.models.family import Features, Pixels
from cot_engine.core.requests import (
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    Measure,
    Measured,
    Place,
)
from cot_engine.core.usage import Usage


class Scope:
    """What is kept for one search: a prefix tree and the encoded images.

    There is one tree for all, or one for each set of images where even the tokens before an image
    depend on it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.roots: dict[tuple[str, ...], Node] = {}
        self.features: dict[str, Features] = {}
        self.encoded: set[str] = set()  # digests of the images that were charged
        self.released = False

    def root(self, key: tuple[str, ...]) -> Node:
        return self.roots.setdefault(key, Node((), 0, None))

    def pictures(self, sequence: Sequence) -> tuple[tuple[Features, ...], tuple[int, ...]]:
        """The features of a sequence's images, all encoded by now, and all their placeholders."""
        features = tuple(self.features[image.digest] for image in sequence.images)
        return features, tuple(p for places in sequence.places for p in places.tolist())


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt with the reply so far. `keys` are `ids` with images told apart; see `prefix`.

    `places` are, per image, the positions of its placeholders. `rope` [3, prompt tokens] and
    `delta` are the prompt's positions where they are not 0, 1, 2, ... `end` is the sequence's place
    in the tree below `root`, which is held so that a search may be released while this is computed.
    """

    ids: tuple[int, ...]
    keys: tuple[int, ...]
    images: tuple[Pixels, ...]
    places: tuple[torch.Tensor, ...]
    rope: torch.Tensor | None
    delta: int
    root: Node = field(init=False)
    end: Node = field(init=False)

    def positions(self, start: int, end: int) -> torch.Tensor:
        """What the model takes for the positions of tokens start..end: [3, tokens]."""
        index = torch.arange(start, end).expand(3, -1)
        if self.rope is None:
            return index + self.delta
        size = self.rope.shape[1]
        return torch.cat(
            [self.rope[:, start:end], index[:, max(0, size - start) :] + self.delta], 1
        )


@dataclass(slots=True)
class UsageSum:
    """A Usage being added up."""

    encodes: int = 0
    prefilled: int = 0
    decoded: int = 0
    flops: int = 0
    seconds: float = 0.0

    def usage(self, needed: int) -> Usage:
        """`needed` distinct tokens of prompt and prefix, of which `prefilled` were computed."""
        return Usage(
            encodes=self.encodes,
            prefilled=self.prefilled,
            cached=max(0, needed - self.prefilled),
            decoded=self.decoded,
            flops=self.flops,
            calls=1,
            seconds=self.seconds,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """A request in flight: `Writing`, `Choosing` or `Measuring`. `done` is set in the event loop
    that asked."""

    scope: Scope
    sequences: list[Sequence]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    done: asyncio.Future[Any] = field(init=False)
    tally: UsageSum = field(default_factory=UsageSum)
    cancelled: bool = False
    failed: bool = False

    def __post_init__(self) -> None:
        self.done = self.loop.create_future()

    @property
    def over(self) -> bool:
        return self.cancelled or self.failed

    def usage(self) -> Usage:
        nodes = {id(n): len(n.keys) for s in self.sequences for n in s.end.path()}
        return self.tally.usage(sum(nodes.values()))

    def resolve(self, value: Generated | Chosen | Measured) -> None:
        self._tell(self.done.set_result, value)

    def fail(self, error: BaseException) -> None:
        self.failed = True
        self._tell(self.done.set_exception, error)

    def leave(self) -> None:
        """Let go of the tree: whoever keeps the error of a failed job must not keep that."""
        for sequence in self.sequences:
            sequence.root = sequence.end = Node((), 0, None)  # a tree of nothing

    def _tell(self, settle: Callable[[Any], None], value: object) -> None:
        def tell() -> None:
            if not self.done.done():
                settle(value)

        try:
            self.loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the loop was closed meanwhile: nobody is waiting
            self.cancelled = True


@dataclass(slots=True, eq=False, kw_only=True)
class Writing(Job):
    """A `Generate` in flight; `results` are those of the seeds that are done, `marking` finds the
    places whose states it wants (None: of none)."""

    request: Generate
    watch: BoundaryWatch
    marking: Marking | None = None
    results: dict[int, Generation] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class Choosing(Job):
    """A `Choose` in flight; `choices` are the first tokens of its choices."""

    request: Choose
    choices: list[int]


@dataclass(slots=True, eq=False, kw_only=True)
class Measuring(Job):
    """A `Measure` in flight. Of the first sequences, one for each dialogue, `places` say behind how
    many tokens; further sequences end at places whose tokens had been computed, so that their final
    state must be computed again. `choices` are the first tokens of its choices."""

    request: Measure
    places: list[list[int]]
    choices: list[int]


@dataclass(slots=True, eq=False)
class DecodeRow:
    """One candidate being written. `length` tokens of it are in the cache, `own` of them its own;
    the last of `ids` is not, it is fed next. `tail` holds its keys and values while it has no slot;
    `group` and `pictures` are those who stand on the same prefix and see the same pictures, while
    it has one, and `since` what the batch's clock said when it got it. `held` is what the batch
    held of its states when it lost its slot; `places` are those found so far, `marks` how often
    each mark was."""

    job: Writing
    index: int
    length: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pending: bool = False
    tail: torch.Tensor | None = None
    group: Any = None
    pictures: Any = None
    since: float = 0.0
    held: torch.Tensor | None = None
    places: list[Place] = field(default_factory=list)
    marks: dict[str, int] = field(default_factory=dict)

    @property
    def own(self) -> int:
        return self.length - self.start

    @property
    def sequence(self) -> Sequence:
        return self.job.sequences[0]

    @property
    def start(self) -> int:
        return len(self.sequence.ids)
