"""What a judge and a scorer are, what they are given, and how they reach the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.match import Verdict
from cot_engine.core.parts import OutOfBudget as OutOfBudget
from cot_engine.core.parts import Scale as Scale
from cot_engine.core.problem import Problem
from cot_engine.core.requests import BackendInfo, Dialogue, Prompt, Sampling
from cot_engine.core.stages import Plan, Stage

if TYPE_CHECKING:
    from cot_engine.images.load import Image

Pair = tuple[Chain, Chain]


@dataclass(frozen=True, slots=True)
class Case:
    """What is judged: the candidates of one selection, and what they have in common.

    `images` are those the judge is shown (a control may have blanked or swapped them). `stage` is
    None where the candidates end inside a stage (sentences) or `about` is "whole".
    """

    problem: Problem
    plan: Plan
    about: Literal["step", "whole"]
    stage: Stage | None
    images: tuple[Image, ...]


class Ask(Protocol):
    """How a judge or scorer reaches the model. What asks it raises OutOfBudget where that does not
    pay."""

    @property
    def info(self) -> BackendInfo:
        """What the model is."""
        ...

    async def choose(
        self, prompt: Prompt, tails: Sequence[str], choices: Sequence[str], prefix: str = ""
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of each choice after prompt.text + tail: [tail][choice], nats."""
        ...

    async def write(
        self, prompt: Prompt, tails: Sequence[str], until: Until, length: int, sampling: Sampling
    ) -> list[str]:
        """One written reply per tail, of at most `length` tokens."""
        ...

    async def measure(
        self, dialogues: Sequence[Dialogue], choices: Sequence[str] = ()
    ) -> list[tuple[tuple[float, ...], ...]]:
        """What the model makes of dialogues at their places, [dialogue][place]: log-probabilities
        of each choice, nats; without choices its final state. Raises InputError for a model that
        cannot tell."""
        ...

    async def verifying(self, model: Any = None) -> Ask:
        """The way to another `model` (a Binding, or a backend that is open), or to this one for
        None, which is metered in the role "verify". Raises InputError where nobody opens it, and
        what opening it raises."""
        ...


@runtime_checkable
class Judge(Protocol):
    """Anything with these two passes; `symmetric` may be a plain attribute of the class."""

    @property
    def symmetric(self) -> bool:
        """Whether its verdict on (b, a) is by construction the reverse of that on (a, b): then it
        is asked in one order only."""
        ...

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        """One sound Verdict for each ordered pair, in order: a finite margin whose sign does not
        contradict the outcome, a tie for what cannot be read.

        May raise InputError for what it cannot judge: those matches are ties, and a notice says
        so. Anything else that it raises or gives ends that search with a StrategyError.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Gives each chain a number on its own: a verifier, a reward model, a likelihood, a rule.

    An attribute `scale` says what its numbers are: "probability" (that the chain is right, 0 to
    1), "log" (the natural logarithm of one, 0 at most), "logit" (log-odds), or "any", which is
    what one without it has. Whoever weighs by a scorer asks for probabilities (`Score`), and gets
    them from the first three.
    """

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        """One finite number for each chain, in order; higher is better. It is about the last step
        or the whole response, as `case.about` says.

        May raise InputError for what it cannot score: likelihood stands in, and a notice says so.
        Anything else that it raises or gives ends that search with a StrategyError.
        """
        ...
