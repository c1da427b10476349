"""A strategy is a generator that asks: it yields requests and receives chains back.

It holds no model, clock, file or random state; the search core carries out what it asks and
enforces budget, seeds and trace for every strategy alike.

    @dataclass(frozen=True)
    class StageBeam:
        n: int = 4

        def search(self, task: Task) -> Search:
            beam = task.start
            for stage in task.plan:
                grown = yield Expand(beam, until=stage, n=self.n)
                beam = yield Select(grown, keep=1)
            return beam[0]
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from cot_engine.core.chain import Beam, Chain
from cot_engine.core.problem import Problem
from cot_engine.core.stages import Plan, Stage

Unit = Literal["sentence", "end"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a strategy is given: the problem, its plan, and the beam to start from (the root)."""

    problem: Problem
    plan: Plan
    start: Beam = (Chain(),)


@dataclass(frozen=True, slots=True)
class Expand:
    """Grow every chain of `beam` by one unit, `n` times each. Answered with a Beam.

    `until` is a stage of the plan, "sentence" or "end" (all that remains). Children come in the
    order of their parents. A chain that is done comes back as it is, once. Where the budget does
    not pay for all, fewer come back, never none. `greedy` draws the most likely tokens.

    `upto` (above 0, at most 1) makes it optional: as many as keep the search's spending, judging
    them included, within this fraction of its budget, `n` for each chain at most. Answered with
    the new chains alone; with none if none fit, or without a budget. At 1 the last one is cut off
    where the budget ends, and loses to any that is whole. `optional` is for what a strategy would
    have if it can be paid: as `upto` (1 if that is None) where there is a budget, so that the
    strategy goes on without; all of it where there is none.
    """

    beam: Beam
    until: Stage | Unit
    n: int = 1
    greedy: bool = False
    upto: float | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Select:
    """Hold a tournament and keep the best. Answered with a Beam, best first.

    Candidates with the same text are merged first (`Chain.count` says how many); with `agree` those
    that say the same: whose last step reads the same once it is normalised (`normalise_answer`), or
    whose conclusion does where it is the last stage or the whole response. `about` is what is
    compared: the last "step", or the "whole" response.

    With `by`, a scorer's name as in Score, its numbers decide in place of the judge. With `unsure`
    besides, the judge is asked where they are close: among those whose probability is less than
    `unsure` away from the other side of the line between who is kept and who is not.
    """

    beam: Beam
    keep: int = 1
    about: Literal["step", "whole"] = "step"
    by: str | None = None
    unsure: float = 0.0
    agree: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """Ask a pointwise scorer for a number per chain. Answered with a tuple of floats.

    "likelihood": mean log-probability per sampled token; "auto": the verifier that the model's
    profile names, likelihood where it names none; any other name is a scorer plug-in's. `about` is
    what the numbers are about: the last "step", or the "whole" response. With `probability` they
    are probabilities, from 0 to 1, whatever scale the scorer has; a StrategyError if it has none.

    Where the scorer cannot, or the budget does not pay it, likelihood answers in its place.
    """

    beam: Beam
    scorer: str = "likelihood"
    about: Literal["step", "whole"] = "step"
    probability: bool = False


@dataclass(frozen=True, slots=True)
class Retrace:
    """Go back to before a stage, since what was grown from it is not good enough. Answered with the
    chains of which `beam` came that had not reached the stage `to` yet, each once.

    Recorded and drawn with its reason: of the `beam`, the `place`-th best had the number `score`,
    which is below `threshold`; what begins is round `attempt` `of` so many.
    """

    beam: Beam
    to: Stage
    score: float
    threshold: float
    place: int = 1
    attempt: int = 2
    of: int = 2


Request = Expand | Select | Score | Retrace

Search = Generator[Request | tuple[Request, ...], Any, Chain]
"""What a strategy's `search` is: it yields requests and returns the chain that is the answer.

A tuple of requests is sent together and answered with a tuple; each has an equal part of what the
budget has left. What a `yield` gives depends on the request, which no one type can say, so it is
Any to a type checker. Say what you expect where it matters: `grown: Beam = yield Expand(...)`,
`numbers: tuple[float, ...] = yield Score(...)`.
"""


class Continuation:
    """Base of strategies that carry on unfinished chains of another search on the same problem
    with the same plan: `chains`, which are the task's start instead of the root."""

    chains: Beam


@runtime_checkable
class Strategy(Protocol):
    """A frozen dataclass whose fields are its parameters, with one method.

    What it yields is checked before anything is done about it (`yielded.py`); what it raises, or
    yields against the rules, ends that search with a StrategyError."""

    def search(self, task: Task) -> Search:
        """Ask, be answered, and return the chain whose answer counts. It may be asked again, for
        another task and at the same time: what it learns belongs into local names."""
        ...
