"""How good a judge is on given pairs, and what training one cost the answers."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cot_engine.core import parts
from cot_engine.core.match import Match, Verdict
from cot_engine.core.requests import Choose, Prompt
from cot_engine.core.stages import Plan
from cot_engine.errors import CotEngineError, ModelError
from cot_engine.judging.judges import ScorerJudge
from cot_engine.judging.protocol import Judge
from cot_engine.questions.data import Item
from cot_engine.report.judging import Contest, JudgeCard, cards_of, leanings
from cot_engine.search.concurrency import bounded
from cot_engine.search.select import combine
from cot_engine.statistics import Interval, Paired, accuracy, paired
from cot_engine.training.pairs import Done, Pair

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine
    from cot_engine.options.config import RunConfig

MEASURED: Literal["worth"] = "worth"


class Asking:
    """An `Ask` that goes straight to a backend: nothing is charged."""

    def __init__(self, engine: Engine, scope: str) -> None:
        self.backend, self.scope = engine.backend, scope

    async def choose(
        self, prompt: Prompt, tails: Sequence[str], choices: Sequence[str], prefix: str = ""
    ) -> list[tuple[float, ...]]:
        request = Choose(self.scope, prompt, tuple(tails), tuple(choices), prefix)
        return list((await self.backend.choose(request)).logprobs)

    async def write(self, *_: Any, **__: Any) -> list[str]:
        raise CotEngineError("Only judges that write nothing are measured on pairs.")


@dataclass(frozen=True, slots=True)
class Held:
    """Problems' pairs, each judged: by problem and stage one contest."""

    contests: tuple[Contest, ...]
    failed: int = 0
    error: str = ""

    def cards(self, judge: str) -> list[JudgeCard]:
        stages = dict.fromkeys(contest.stage for contest in self.contests)
        return [card for at in stages for card in cards_of(judge, at, "seen", self.at(at))]

    def at(self, stage: str) -> list[Contest]:
        return [contest for contest in self.contests if contest.stage == stage]


def judge_pairs(
    engine: Engine,
    judge: Judge,
    items: Sequence[Item],
    done: Sequence[Done],
    plan: Plan,
    on_done: Callable[[], None] = lambda: None,
) -> Held:
    """Ask a judge about all pairs of `done`, in both orders unless it is symmetric. Problems that
    fail are counted; a failing model raises."""
    found: dict[int, list[Contest]] = {}
    errors: list[str] = []

    async def one(each: Done) -> None:
        scope = f"pairs:{each.problem}#{each.index}"
        try:
            found[each.index] = await _contests(engine, judge, items, each, plan, scope)
        except ModelError:
            raise
        except CotEngineError as error:
            errors.append(str(error))
        finally:
            engine.backend.release(scope)

    work = (one(each) for each in done if each.pairs)
    asyncio.run(bounded(work, engine.in_flight, lambda _: on_done()))
    contests = tuple(c for index in sorted(found) for c in found[index])
    return Held(contests, len(errors), errors[0] if errors else "")


async def _contests(
    engine: Engine, judge: Judge, items: Sequence[Item], each: Done, plan: Plan, scope: str
) -> list[Contest]:
    item = items[each.index]
    problem = item.problem()
    fitted = plan.fit(len(problem.images))
    ask = Asking(engine, scope)
    contests = []
    for stage, some in itertools.groupby(
        sorted(each.pairs, key=lambda pair: pair.stage), key=lambda pair: pair.stage
    ):
        matches: list[Match] = []
        lengths: dict[str, int] = {}
        labels: dict[str, float] = {}
        names: dict[tuple[str, str], str] = {}
        for pair in some:
            verdicts = await _verdicts(judge, pair, pair.case(problem, fitted), ask)
            # One text is one candidate, however many pairs it is in.
            first, second = (
                names.setdefault((pair.shared, c.text), f"{stage}.{len(names)}")
                for c in (pair.first, pair.second)
            )
            result = combine(verdicts)
            winner = second if result == "second" else first
            broken: Literal["", "draw"] = "draw" if result == "tie" else ""
            matches.append(Match(first, second, verdicts, result, winner, broken))
            for name, candidate in ((first, pair.first), (second, pair.second)):
                lengths[name], labels[name] = len(candidate.text), candidate.label
        contests.append(
            Contest(
                each.problem, stage, tuple(lengths), "", tuple(matches), lengths, {MEASURED: labels}
            )
        )
    return contests


async def _verdicts(judge: Judge, pair: Pair, case: Any, ask: Asking) -> tuple[Verdict, ...]:
    first, second = pair.chains()
    orders = [(first, second)] if judge.symmetric else [(first, second), (second, first)]
    return tuple(await parts.verdicts(judge, orders, case, ask))


# --- answers -------------------------------------------------------------------------------------


def answers(
    engine: Engine,
    items: Sequence[Item],
    places: Sequence[int],
    config: RunConfig,
    on_done: Callable[[], None] = lambda: None,
) -> dict[int, float]:
    """What the greedy answers to the problems at these places score; failed ones are left out."""
    problems = (items[index].problem() for index in places)
    scores: dict[int, float] = {}
    solved = engine.solve_many(problems, config=config, strategy="greedy", on_error="keep")
    for index, answer in zip(places, solved, strict=True):
        if isinstance(answer, ModelError):
            raise answer
        if not isinstance(answer, CotEngineError):
            scores[index] = items[index].grade(answer.text)
        on_done()
    return scores


# --- the report ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StageGain:
    """One stage's held-out pairs: the judge before and after, likelihood on the same pairs, and the
    paired differences, by problem, of how often the margin leans to the better candidate."""

    stage: str
    before: JudgeCard
    after: JudgeCard
    likelihood: JudgeCard
    gained: Paired
    over_likelihood: Paired


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What training a judge came to. `answers_*` are greedy accuracies on held-out problems, and
    `answers_cost` after minus before; `weight` that of self+likelihood, None if it was not fitted.
    """

    stages: tuple[StageGain, ...]
    answers_before: Interval | None
    answers_after: Interval | None
    answers_cost: Paired | None
    weight: float | None
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON has it; a number that there is none of is null."""

        def tidy(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: tidy(item) for key, item in value.items()}
            if isinstance(value, (list, tuple)):
                return [tidy(item) for item in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return tidy(asdict(self))


def compare(
    before: Held,
    after: Held,
    likelihood: Held,
    answered: tuple[dict[int, float], dict[int, float]] | None,
    weight: float | None,
    notes: Sequence[str] = (),
) -> TrainingReport:
    """The report on judges that were asked about the same pairs."""
    cards = [
        {card.stage: card for card in held.cards(name)}
        for held, name in ((before, "before"), (after, "self"), (likelihood, "likelihood"))
    ]
    stages = [
        StageGain(
            at,
            cards[0][at],
            cards[1][at],
            cards[2][at],
            _difference(after.at(at), before.at(at)),
            _difference(after.at(at), likelihood.at(at)),
        )
        for at in cards[1]
        if all(at in own for own in cards)
    ]
    first = second = cost = None
    if answered is not None:
        both = sorted(answered[0].keys() & answered[1].keys())
        columns = [np.array([[scores[k]] for k in both]).reshape(-1, 1) for scores in answered]
        first, second = (accuracy(column) for column in columns)
        cost = paired(columns[1], columns[0])
    return TrainingReport(tuple(stages), first, second, cost, weight, tuple(notes))


def _difference(first: Sequence[Contest], second: Sequence[Contest]) -> Paired:
    a, b = leanings(first, MEASURED), leanings(second, MEASURED)
    both = [name for name in a if name in b]
    columns = [np.array([[of[name]] for name in both]).reshape(-1, 1) for of in (a, b)]
    return paired(*columns)


LIKELIHOOD = ScorerJudge()
