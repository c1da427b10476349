"""Examines judges on problems with known answers: candidates are sampled, the truth about each is
found out, and every judge is asked about the same pairs.

A search with a random judge in between makes the candidates, so that no judge that is examined has
had a say in what it is asked about. Each selection is then held again, every candidate meeting
every other, by each judge; and with a grey picture and with another one, by those that look.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from cot_engine.ablation.worth import selections
from cot_engine.core.events import Heard
from cot_engine.core.usage import Usage
from cot_engine.errors import ConfigError, CotEngineError, InputError, ModelError
from cot_engine.judging.judges import RandomJudge
from cot_engine.judging.profile import Profile
from cot_engine.options.config import RunConfig
from cot_engine.options.resolve import Resolved, resolve
from cot_engine.questions.data import DataSet, Item
from cot_engine.report.controls import Control, OverLikelihood
from cot_engine.report.judging import (
    MEASURES,
    Contest,
    JudgeCard,
    Measure,
    Shown,
    cards_of,
    contests,
    leanings,
    without_unjudged,
)
from cot_engine.report.labelled import Labelled, check_judges, recorded
from cot_engine.report.verdict import FEW, verdicts
from cot_engine.report.weighing import Fit, Margins, fit_weight, margins
from cot_engine.search.concurrency import bounded
from cot_engine.search.loop import Named
from cot_engine.statistics import Paired, paired

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine

LABELLED = ("self", "random")
"""Whom to examine on labelled pairs where nobody is named; on steps the verifier yes-no."""
JUDGES = ("self", "likelihood", "random")
"""Those that any model can be, and the control: examined, beside the model's own default one, where
nothing else is said."""
STRATEGIES = ("stage-beam", "best-of-n")
"""Who samples: the first gives candidates for each stage, the second whole responses."""
CONTROLS: tuple[Shown, ...] = ("blank", "swap")
_SILENT = 0.9  # the share of ties above which a judge says nothing of its own


@dataclass(frozen=True, slots=True)
class Examination:
    """What is to be done. `n` is that of the strategies (None: their own default); `rollouts` as
    in `worth.selections`; `controls`: None for the judges that ask a model, else all or none.
    `fit`: find the weight of self+likelihood on the pairs, which takes both of these judges. Of
    `config` the model's sampling, seed, plan, mode, detail and orders count. `labelled`: what
    people said of texts in a file, by the problem's id, in place of searches."""

    config: RunConfig
    judges: tuple[str, ...] = JUDGES
    strategies: tuple[str, ...] = STRATEGIES
    n: int | None = None
    rollouts: int = 1
    controls: bool | None = None
    fit: bool = False
    labelled: Mapping[str, Labelled] | None = None

    def resolve(self, profile: Profile) -> Parts:
        """The searches and the judges. Raises InputError for names that do not exist, parameters
        that do not fit, and a judge that cannot be made for a model of this profile."""
        if self.fit and self.labelled is not None:
            raise ConfigError(
                "A weight of likelihood is fitted on what a model wrote, not on texts in a file.",
                "Leave --fit out, or give questions as --data.",
            )
        # Not the coin of the random judge that is examined.
        between = {"judge": RandomJudge(seed=self.config.seed + 1)}
        own: dict[str, Any] = {"parameters": self.parameters, "judge": "random", "budget": None}
        searches = tuple(
            resolve(profile, replace(self.config, strategy=name, **own), between)
            for name in self.strategies
            if self.labelled is None
        )
        judges = tuple(Named(name, profile.make_judge(name)) for name in self.judges)
        for kind in {each.kind for each in (self.labelled or {}).values()}:
            check_judges(kind, {judge.name: judge.part for judge in judges})
        if self.fit and not {"self", "likelihood"} <= set(self.judges):
            raise ConfigError(
                f"A weight is fitted on what self and likelihood say; {', '.join(self.judges)} are"
                " to be examined.",
                "Add --judge self --judge likelihood, or name no judge.",
            )
        return Parts(searches, judges)

    @property
    def parameters(self) -> dict[str, Any]:
        return {} if self.n is None else {"n": self.n}


@dataclass(frozen=True, slots=True)
class Parts:
    """What an examination is done with, made once."""

    searches: tuple[Resolved, ...]
    judges: tuple[Named, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """One problem, done: its selections as each judge held them, by (judge, what it was shown);
    or why it failed, `kind` being the error's name. `usage` is what the searches and the judges
    cost, continuations apart."""

    problem: str
    held: dict[tuple[str, Shown], tuple[Contest, ...]]
    usage: Usage = Usage()
    error: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Unheard:
    """How often a judge that saw the picture could not be heard: `unreadable` of its `verdicts`,
    and `unasked` matches, for want of room or budget."""

    judge: str
    verdicts: int
    unreadable: int
    unasked: int


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """What was found. `verdict` says of each judge whether it is any good; `asked` problems were to
    be done, `done` were, `failed` of these in vain, `errors` counting why; `weight` is that of
    self+likelihood, if it was to be fitted and could be."""

    verdict: tuple[str, ...]
    about: dict[str, Any]
    asked: int
    done: int
    failed: int
    errors: dict[str, int]
    unheard: tuple[Unheard, ...]
    cards: tuple[JudgeCard, ...]
    controls: tuple[Control, ...]
    over_likelihood: tuple[OverLikelihood, ...]
    notes: tuple[str, ...]
    weight: Fit | None = None


def judges_of(profile: Profile) -> tuple[str, ...]:
    """Whom to examine where nobody is named: the model's own default judge first, if it can be
    made (self+likelihood cannot before its weight is fitted)."""
    try:
        profile.make_judge()
    except ConfigError:
        return JUDGES
    return tuple(dict.fromkeys((profile.judge, *JUDGES)))


# --- doing it ------------------------------------------------------------------------------------


def examine(
    engine: Engine,
    items: Iterable[Item],
    todo: Examination,
    on_done: Callable[[Examined], None] = lambda done: None,
    parts: Parts | None = None,
) -> None:
    """Examine the judges on the items, the engine's number of them at a time. `on_done` gets each
    problem as soon as it is done, in this thread; an interrupt loses those in flight. `parts` are
    those of `todo`, if they were made already.

    A problem that fails is one with an error; a failing model, which would fail all, raises.
    """
    made = parts or todo.resolve(engine.profile)
    work = (_one(engine, item, todo, made) for item in items)
    asyncio.run(bounded(work, engine.in_flight, on_done))


async def _one(engine: Engine, item: Item, todo: Examination, parts: Parts) -> Examined:
    held: dict[tuple[str, Shown], tuple[Contest, ...]] = {}
    total = Usage()
    try:
        problem = item.problem()
        if todo.labelled is not None:
            total += await _held(
                *(engine, *recorded(problem, todo.labelled[item.id]), todo, parts, held)
            )
        for search in parts.searches:
            answer = await engine.asolve(problem, config=search)
            known = await selections(
                *(answer.trace, item),
                engine=engine, problem=problem, config=search.config, rollouts=todo.rollouts,
            )  # fmt: skip
            total += answer.total
            total += await _held(engine, answer.trace, known, todo, parts, held)
    except ModelError:
        raise
    except CotEngineError as error:
        return Examined(item.id, {}, total, str(error), type(error).__name__)
    return Examined(item.id, held, total)


async def _held(
    engine: Engine,
    trace: Any,
    known: Any,
    todo: Examination,
    parts: Parts,
    held: dict[tuple[str, Shown], tuple[Contest, ...]],
) -> Usage:
    """Put the selections of a trace as each judge holds them into `held`; what that cost."""
    total = Usage()
    for judge in parts.judges:
        for image, contest in await _judged(engine, trace, known, judge, todo):
            held[judge.name, image] = (*held.get((judge.name, image), ()), *contest)
            total += sum((c.judging for c in contest), Usage())
    return total


async def _judged(
    engine: Engine, trace: Any, known: Any, judge: Named, todo: Examination
) -> list[tuple[Shown, tuple[Contest, ...]]]:
    """The selections of a trace as a judge holds them: seeing the picture, and the controls."""

    async def once(image: Shown) -> tuple[Contest, ...]:
        events: list[Heard] = []
        await engine.arejudge(
            *(trace,),
            judge=judge, tournament="round-robin", judge_image=image, on_event=events.append,
        )  # fmt: skip
        return contests(trace, known, events)

    seen = await once("seen")
    found: list[tuple[Shown, tuple[Contest, ...]]] = [("seen", seen)]
    asked = any(contest.judging.calls for contest in seen)
    met = any(contest.matches for contest in seen)
    # Without a match nothing was looked at, and another picture changes nothing.
    wanted = asked or not met if todo.controls is None else todo.controls
    for image in CONTROLS if wanted and trace.started.images else ():
        found.append((image, await once(image) if met else seen))
    return found


# --- what it shows -------------------------------------------------------------------------------


def report(
    data: DataSet, engine: Engine, todo: Examination, done: Sequence[Examined]
) -> JudgeReport:
    """What the problems that are done show, in the data set's order."""
    place = {item.id: k for k, item in enumerate(data.items)}
    done = sorted(done, key=lambda each: place[each.problem])
    groups: dict[tuple[str, str, Shown], list[Contest]] = {}
    for each in done:
        for (judge, image), held in each.held.items():
            for contest in held:
                groups.setdefault((contest.stage, judge, image), []).append(contest)
    stages = list(dict.fromkeys(stage for stage, _, _ in groups))
    order = [
        (stage, judge, image)
        for stage in stages
        for judge in todo.judges
        for image in ("seen", *CONTROLS)
    ]
    cards: list[JudgeCard] = []
    controls: list[Control] = []
    over: list[OverLikelihood] = []
    for key in order:
        if key in groups:
            stage, judge, image = key
            cards += cards_of(judge, stage, image, groups[key])
            seen = groups[stage, judge, "seen"]
            if image != "seen":
                gained = _gained(seen, groups[key])
                controls += [Control(judge, stage, by, image, d) for by, d in gained]
            elif any(contest.judging.calls for contest in seen):
                gained = _gained(seen, groups.get((stage, "likelihood", "seen"), ()))
                over += [OverLikelihood(judge, stage, by, d) for by, d in gained]
    failed = [each for each in done if each.error]
    notes = _notes(data, todo, done, failed, cards)
    weight = None
    if todo.fit:
        try:
            weight = fit_weight(_margins(groups, stages))
        except InputError as error:  # what else was found stands
            notes.append(f"No weight was fitted. {error}")
    return JudgeReport(
        verdict=verdicts(todo.judges, engine.profile.judge, cards, controls, over),
        about=_about(data, engine, todo),
        asked=len(data.items),
        done=len(done),
        failed=len(failed),
        errors=dict(Counter(each.kind for each in failed)),
        unheard=tuple(_unheard(judge, groups) for judge in todo.judges),
        cards=tuple(sorted(cards, key=lambda c: (stages.index(c.stage), c.measure == "facts"))),
        controls=tuple(controls),
        over_likelihood=tuple(over),
        notes=tuple(notes),
        weight=weight,
    )


def _unheard(judge: str, groups: dict[tuple[str, str, Shown], list[Contest]]) -> Unheard:
    held = [
        c for (_, name, image), cs in groups.items() if (name, image) == (judge, "seen") for c in cs
    ]
    asked = [match for contest in held for match in without_unjudged(contest).matches]
    said = [verdict for match in asked for verdict in match.verdicts]
    unasked = sum(len(contest.matches) for contest in held) - len(asked)
    return Unheard(judge, len(said), sum(not verdict.readable for verdict in said), unasked)


def _margins(groups: dict[tuple[str, str, Shown], list[Contest]], stages: list[str]) -> Margins:
    """Of all stages: the weight is one for the model."""
    own, likelihood = (
        [c for stage in stages for c in groups.get((stage, name, "seen"), ())]
        for name in ("self", "likelihood")
    )
    return margins(own, likelihood)


def _gained(
    first: Sequence[Contest], second: Sequence[Contest]
) -> Iterator[tuple[Measure, Paired]]:
    """By measure, how much more often the margins of the first lean to the better candidate, over
    the problems that both have pairs of."""
    for measure in MEASURES:
        a, b = leanings(first, measure), leanings(second, measure)
        if both := [name for name in a if name in b]:
            yield measure, paired(*(np.array([[of[name]] for name in both]) for of in (a, b)))


def _about(data: DataSet, engine: Engine, todo: Examination) -> dict[str, Any]:
    info, config = engine.backend.info, todo.config
    return {
        "data": {"name": data.name, "digest": data.digest, "rule": data.rule},
        "model": {"name": info.model, "digest": info.digest, "dtype": info.dtype},
        "device": info.device,
        "profile": asdict(engine.profile),
        "strategies": [] if todo.labelled is not None else list(todo.strategies),
        **({} if todo.labelled is None else {"labelled": data.rule}),
        "n": todo.n,
        "rollouts": todo.rollouts,
        "sampling": {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "top_k": config.top_k,
        },
        "seed": config.seed,
    }


def _notes(
    data: DataSet,
    todo: Examination,
    done: Sequence[Examined],
    failed: Sequence[Examined],
    cards: Sequence[JudgeCard],
) -> list[str]:
    notes = list(data.notes)
    if len(done) < len(data.items):
        notes.append(f"{len(done):,} of {len(data.items):,} problems were done.")
    if failed:
        notes.append(f"{len(failed):,} problems failed, the first thus: {failed[0].error}")
    if not todo.rollouts and todo.labelled is None:
        notes.append("Without continuations a stage's worth is known of finished responses only.")
    for name in todo.judges:
        own = [card for card in cards if card.judge == name and card.image == "seen"]
        if own and min(card.ties for card in own) > _SILENT:
            notes.append(
                f"{name}: nearly all of its matches are ties, and the likelihood of the texts"
                " breaks those: what it selects is not its own choice."
            )
    thin = list(dict.fromkeys(c.stage for c in cards if c.problems < FEW and c.image == "seen"))
    if (thin or not cards) and todo.labelled is not None:
        notes.append("Few rows have texts with different labels: more would show more.")
    elif thin or not cards:
        config = todo.config
        where = f"at {', '.join(thin)}" if thin else "anywhere"
        notes.append(
            f"Few problems have candidates with different outcomes {where}: more problems, or"
            f" samples that differ more (temperature {config.temperature:g}, top-p"
            f" {config.top_p:g}, top-k {config.top_k}), would show more."
        )
    return notes
