"""What the model's layers held while a chain was written, step by step, as a probe reads it.

One place makes it for those who fit a probe and those who use one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cot_engine.core.requests import Generation, Place
from cot_engine.core.stages import Plan

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Span:
    """States added up over `places` of a text ([layers x width], None: over none), and the
    log-probability (nats) of the `tokens` sampled there."""

    sums: np.ndarray | None = None
    places: int = 0
    nats: float = 0.0
    tokens: int = 0

    def __add__(self, other: Span) -> Span:
        sums = self.sums if other.sums is None else other.sums
        if self.sums is not None and other.sums is not None:
            sums = self.sums + other.sums
        return Span(
            sums,
            self.places + other.places,
            self.nats + other.nats,
            self.tokens + other.tokens,
        )

    @property
    def mean(self) -> np.ndarray | None:
        """The mean state; None where there is none."""
        return None if self.sums is None or not self.places else self.sums / self.places

    @property
    def likelihood(self) -> float:
        """The mean log-probability (nats) of a token; 0 where there is none."""
        return self.nats / self.tokens if self.tokens else 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stage, or what there is of it: the state [layers x width] at its `end`, the span of it, and
    the states at the ends of its claims."""

    tag: str
    end: np.ndarray
    span: Span
    claims: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A chain so far: the states at the `ends` of its stages, by tag, the span of all of it, and of
    the stage that is open its span and claims."""

    ends: Mapping[str, np.ndarray] = field(default_factory=dict)
    whole: Span = Span()
    stage: Span = Span()
    claims: tuple[np.ndarray, ...] = ()

    def grown(
        self, generation: Generation, plan: Plan, marks: Mapping[str, str], tag: str, open: bool
    ) -> tuple[Held, tuple[Stretch, ...]]:
        """The chain with a continuation, and the stages that it closed, or wrote in. It ends in the
        stage `tag`, which is `open` or not; `marks` are what ends a claim, by stage."""
        closes = {stage.close: stage.tag for stage in plan}
        now, stretches = self, []
        at, sums, nats = -1, None, 0.0
        for place, own in _by_stage(generation, closes, tag):
            values = place.values.ravel()
            if place.mark and place.mark not in closes:
                if place.mark == marks.get(own):
                    now = Held(now.ends, now.whole, now.stage, (*now.claims, values))
                continue
            if place.token == at:
                continue  # the end, where a stage's was: that is read already
            new = place.sums.ravel() if sums is None else place.sums.ravel() - sums
            span = Span(new, place.token - max(at, 0), place.logprob - nats, place.token - at)
            at, sums, nats = place.token, place.sums.ravel(), place.logprob
            whole, stage = now.whole + span, now.stage + span
            stretches.append(Stretch(own, values, stage, now.claims))
            if place.mark or not open:
                now = Held({**now.ends, own: values}, whole)
            else:
                now = Held(now.ends, whole, stage, now.claims)
        return now, tuple(stretches)


def _by_stage(
    generation: Generation, closes: Mapping[str, str], last: str
) -> Sequence[tuple[Place, str]]:
    """Each place with the stage that it is in: the one that is closed next, or the `last`."""
    found, tag = [], last
    for place in reversed(generation.places):
        tag = closes.get(place.mark, tag)
        found.append((place, tag))
    return found[::-1]
