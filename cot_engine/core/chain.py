"""A problem's steps so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from cot_engine.core.requests import Finish, Segment


@dataclass(frozen=True, slots=True)
class Step:
    """The text written for one stage, or one sentence, or all that remained.

    `segments` are exactly what stands in the assistant's turn (forced tags, sampled ids, repairs);
    `text` is their text. `logprob` (nats) sums over the `tokens` sampled ones. `faults` names what
    was malformed (see `grammar.FAULTS`); `stage` is the tag of the stage that the step ended in.
    `scores` is what the model's probe read from its states meanwhile: by stage the logit that it is
    sound, by "whole", once the response is finished, the logit that its answer is right.
    """

    text: str
    segments: tuple[Segment, ...]
    stage: str
    logprob: float
    tokens: int
    finish: Finish
    faults: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict, hash=False, metadata={"sparse": True})


@dataclass(frozen=True, slots=True)
class Chain:
    """A problem's steps so far. `id` is the path from the root: "r", "r.2", "r.2.0", ...

    `count` is how many candidates with this same text were merged into it. `done` says that the
    last stage is closed (or the model ended its turn) and nothing may follow.
    """

    id: str = "r"
    steps: tuple[Step, ...] = ()
    done: bool = False
    count: int = 1

    @property
    def parent(self) -> str | None:
        """The id of the chain it grew from; None for the root."""
        return self.id.rpartition(".")[0] or None

    @property
    def text(self) -> str:
        """All that was written, tags included."""
        return "".join(step.text for step in self.steps)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The assistant's turn so far, as a request continues it."""
        return tuple(segment for step in self.steps for segment in step.segments)

    @property
    def last(self) -> Step | None:
        """The latest step; None for the root, which has none."""
        return self.steps[-1] if self.steps else None

    @property
    def faults(self) -> tuple[str, ...]:
        """What was malformed in any of its steps, by name (`core.grammar.FAULTS`)."""
        return tuple(fault for step in self.steps for fault in step.faults)

    @property
    def confidence(self) -> float | None:
        """How likely its answer is right, 0 to 1, by what the model's probe read from its states
        while it was written; None where there is no probe, or it is not finished."""
        logit = self.last.scores.get("whole") if self.last else None
        return None if logit is None else 1 / (1 + math.exp(-max(-700.0, logit)))

    def likelihood(self, steps: int | None = None) -> float:
        """Mean log-probability (nats) per sampled token of the last `steps` steps (all, if None).

        Where nothing was sampled it is -99, less likely than any text: writing nothing must not
        pass for certainty.
        """
        chosen = self.steps if steps is None else self.steps[-steps:]
        tokens = sum(step.tokens for step in chosen)
        return sum(step.logprob for step in chosen) / tokens if tokens else -99.0

    def grow(self, index: int, step: Step, done: bool) -> Chain:
        """Its child number `index`, longer by a step."""
        return Chain(f"{self.id}.{index}", (*self.steps, step), done)

    def counted(self, count: int) -> Chain:
        """The same chain, into which `count` candidates were merged."""
        return replace(self, count=count)


Beam = tuple[Chain, ...]
"""Chains side by side: what a strategy grows, selects from and goes on with."""
