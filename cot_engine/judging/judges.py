"""Judges: which of two candidates is better?

A judge answers ordered pairs; a selection asks both orders, calls a disagreement a tie, and breaks
ties by a stated rule. A judge talks to the model only through `Ask`, which meters what it costs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cot_engine.core import parts
from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.match import Verdict
from cot_engine.core.parts import OutOfBudget as OutOfBudget
from cot_engine.core.problem import Problem
from cot_engine.core.requests import GREEDY, Prompt
from cot_engine.core.stages import LONGEST, Plan
from cot_engine.errors import ConfigError, shown
from cot_engine.judging import prompts
from cot_engine.judging.probe import StatesScorer
from cot_engine.judging.prompts import FORMS, Form
from cot_engine.judging.protocol import Ask, Case, Judge, Pair, Scale, Scorer


def _by_sign(margin: float, readable: bool = True, text: str = "") -> Verdict:
    if not readable or margin == 0:
        return Verdict("tie", margin, readable, text)
    return Verdict("first" if margin > 0 else "second", margin, True, text)


async def _by_head(
    asked: Sequence[tuple[Prompt, str]],
    judged: Callable[[Prompt, list[str]], Awaitable[list[Verdict]]],
) -> list[Verdict]:
    """One verdict for each turn, those with the same shared prompt asked in one request."""
    verdicts: dict[int, Verdict] = {}
    for head in dict.fromkeys(prompt for prompt, _ in asked):
        at = [i for i, (prompt, _) in enumerate(asked) if prompt == head]
        verdicts.update(zip(at, await judged(head, [asked[i][1] for i in at]), strict=True))
    return [verdicts[i] for i in range(len(asked))]


@dataclass(frozen=True, slots=True)
class SelfJudge:
    """The model itself, by the logits of its verdict: nothing is generated.

    The margin is log p("1") - log p("2"). Where the two together have less than `least_mass` of
    the probability the model was not answering the question: that verdict is unreadable.
    `prompt` is how it is asked: "full" with instructions, "brief" as a model is that was trained to
    judge (`prompts.judge_turn`). Raises ConfigError for another.
    """

    least_mass: float = 1e-3
    prompt: Form = "full"
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.prompt not in FORMS:
            raise ConfigError(f"prompt is {self.prompt!r}.", f"It must be {' or '.join(FORMS)}.")

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        async def judged(head: Prompt, tails: list[str]) -> list[Verdict]:
            rows = await ask.choose(head, tails, prompts.VERDICTS)
            return [self.read(one, two) for one, two in rows]

        asked = [prompts.judge_turn(case, pair, self.prompt) for pair in pairs]
        return await _by_head(asked, judged)

    def read(self, one: float, two: float) -> Verdict:
        """The verdict that the log-probabilities (nats) of "1" and "2" are."""
        mass = math.exp(one) + math.exp(two)
        return _by_sign(one - two, mass >= self.least_mass, f"mass {mass:.2g}")


_CHOICE = re.compile(r"choice\W{0,4}(?:attempt\s*|number\s*)?([12])\b", re.IGNORECASE)
_ALONE = re.compile(r"\s*(?:attempt\s*)?([12])\s*[.!]?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RationaleJudge:
    """The model itself, in writing: a reason, then a choice, as the published method does.

    The margin is 1, -1 or 0. A reply without exactly one choice is unreadable, hence a tie.
    `length` is the most tokens of a reply; raises ConfigError for one that cannot be.
    """

    length: int = 200
    symmetric: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (type(self.length) is int and 1 <= self.length <= LONGEST):
            raise ConfigError(
                f"length is {shown(self.length)}.", f"It must be 1 to {LONGEST} tokens."
            )

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        async def judged(head: Prompt, tails: list[str]) -> list[Verdict]:
            replies = await ask.write(head, tails, Until(), self.length, GREEDY)
            return [self.parse(reply) for reply in replies]

        reply = prompts.REPLY_RATIONALE
        asked = [prompts.judge_turn(case, pair, reply=reply) for pair in pairs]
        return await _by_head(asked, judged)

    @staticmethod
    def parse(reply: str) -> Verdict:
        """Read a reply; two different choices, or none, are unreadable."""
        found = set(_CHOICE.findall(reply))
        if not found and (alone := _ALONE.fullmatch(reply)):
            found = {alone.group(1)}
        if len(found) != 1:
            return Verdict("tie", 0.0, False, reply)
        return _by_sign(1.0 if found == {"1"} else -1.0, True, reply)


@dataclass(frozen=True, slots=True)
class LikelihoodScorer:
    """Mean log-probability per sampled token (temperature 1) of the step, or of the whole."""

    scale: ClassVar[Scale] = "log"

    async def score(self, chains: Sequence[Chain], case: Case, ask: Ask) -> list[float]:
        return [chain.likelihood(None if case.about == "whole" else 1) for chain in chains]


@dataclass(frozen=True, slots=True)
class ScorerJudge:
    """Prefers what a pointwise scorer (likelihood, a reward model) gives the higher number."""

    scorer: Scorer = LikelihoodScorer()
    symmetric: ClassVar[bool] = True

    @property
    def bindings(self) -> tuple[Any, ...]:
        """The models of its own that the scorer is bound to."""
        found: tuple[Any, ...] = getattr(self.scorer, "bindings", ())
        return found

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        chains = list({chain.id: chain for pair in pairs for chain in pair}.values())
        scores = await parts.scores(self.scorer, chains, case, ask)
        by_id = dict(zip((chain.id for chain in chains), scores, strict=True))
        return [_by_sign(by_id[a.id] - by_id[b.id]) for a, b in pairs]


@dataclass(frozen=True, slots=True)
class SelfLikelihoodJudge(SelfJudge):
    """The model itself, by the logits of its verdict and by how likely it found what it wrote.

    The margin is that of SelfJudge + `weight` x (mean log-probability per token of the first - of
    the second, as LikelihoodScorer has them). Asked in both orders; an unreadable verdict stays
    unreadable. The weight is a model's own: `report.weighing.fit_weight` finds it. Raises
    ConfigError if it is not finite.
    """

    weight: float = field(kw_only=True)

    def __post_init__(self) -> None:
        SelfJudge.__post_init__(self)
        if not math.isfinite(self.weight):
            raise ConfigError(f"weight is {self.weight}.", "It must be a finite number.")

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        own = await SelfJudge.compare(self, pairs, case, ask)
        likely = await ScorerJudge().compare(pairs, case, ask)
        return [
            _by_sign(a.margin + self.weight * b.margin, a.readable, a.text)
            for a, b in zip(own, likely, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class RandomJudge:
    """The control: a coin for each pair, the same whichever order it is asked in."""

    seed: int = 0
    symmetric: ClassVar[bool] = True

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        verdicts = []
        for a, b in pairs:
            low, high = sorted((a.id, b.id))
            coin = random.Random(f"{self.seed}|{case.problem.id}|{low}|{high}").choice((1.0, -1.0))
            verdicts.append(_by_sign(coin if a.id == low else -coin))
        return verdicts


@dataclass(frozen=True, slots=True)
class OracleJudge:
    """Knows the truth, for experiments: `quality(problem, chain, plan)` of each candidate.

    Without `quality`, a candidate is worth 1 if its conclusion equals `answer` (after
    normalisation) and 0 otherwise, so stages before the last are ties.
    """

    answer: str = ""
    quality: Callable[[Problem, Chain, Plan], float] | None = None
    symmetric: ClassVar[bool] = True

    async def compare(self, pairs: Sequence[Pair], case: Case, ask: Ask) -> list[Verdict]:
        return [_by_sign(self._worth(a, case) - self._worth(b, case)) for a, b in pairs]

    def _worth(self, chain: Chain, case: Case) -> float:
        if self.quality is not None:
            return self.quality(case.problem, chain, case.plan)
        from cot_engine.core.answers import normalise_answer

        if case.plan.last.tag not in read(chain.text, case.plan).contents:
            return 0.0
        given = normalise_answer(conclusion(chain.text, case.plan))
        return float(given == normalise_answer(self.answer))


JUDGES: dict[str, Callable[..., Judge]] = {
    "self": SelfJudge,
    "rationale": RationaleJudge,
    "likelihood": ScorerJudge,
    "self+likelihood": SelfLikelihoodJudge,
    "random": RandomJudge,
}
"""The judges with a name. An oracle needs the answer: pass `OracleJudge(answer)` from Python."""

SCORERS: dict[str, Callable[[], Scorer]] = {
    "likelihood": LikelihoodScorer,
    "states": StatesScorer,
}
"""The scorers with a name."""
