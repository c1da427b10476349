"""How good is a judge? Its matches held against what is known of the candidates: pure arithmetic.

Conventions. A pair counts where its candidates have different outcomes; the judge is right where it
prefers the better one. A tie, be it said, a disagreement of the two orders or an unreadable reply,
is half right (`right`: a coin gets 0.5 and so does silence) or not right at all (`strict`).
`leaning` is the sign of the margin, the mean of both orders, ties or not: what the judge knows
under its position bias.

Every `Interval` is of a mean over problems, each counting once with the mean over its pairs (or
verdicts, or selections), and problems are what is resampled (`statistics.accuracy`): the pairs of
one problem share its picture and its texts, and are not independent. All other shares are of all
pairs, or matches, alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from cot_engine.ablation.records import SelectionRecord
from cot_engine.core.events import Heard
from cot_engine.core.fold import Fold
from cot_engine.core.match import Match
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.statistics import Interval, accuracy

Measure = Literal["worth", "facts"]
MEASURES: tuple[Measure, ...] = ("worth", "facts")
Shown = Literal["seen", "blank", "swap"]
"""What the judge was shown: the picture, a grey one, another one."""

_BINS = 5
_DRAWS = 4000  # resamples of an interval: they place its ends to a fiftieth of their width


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like |margin|: the mean |margin| (nats, if the judge's are logits), the share right
    by the margin's sign, and how many pairs."""

    margin: float
    right: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Gain:
    """What picking with this judge came to, over selections of at least two candidates whose
    outcomes are all known: the mean outcome of a `random` candidate, of the one that was
    `selected`, and of the best (`oracle`). `n` is the mean number of candidates, as sampled.
    `taken` is (selected - random) / (oracle - random), None where there was nothing to take. Equal
    candidates are merged and faulty ones set aside before a judge is asked, which gains or loses
    something by itself: what that is shows in the same line of the random judge."""

    n: float
    selections: int
    random: Interval
    selected: Interval
    oracle: Interval
    taken: float | None


@dataclass(frozen=True, slots=True)
class JudgeCard:
    """One judge at one stage, by one measure of what is right.

    Over the `pairs` with different outcomes: `right`, `strict`, `leaning` (see above), and the
    calibration: bins of |margin|, and the mean distance between the share right and the
    probability that the margin is if read as log-odds (`calibration_error`; None without margins).
    `longer`: among those decided, with texts of different length, how often the longer one was
    preferred; `longer_right` how often it was the better one (None without such a pair).

    Over all `matches`, whatever the outcomes: `ties`, of the combined outcome; `flips`, the share
    of those judged in both orders that named the same place twice (None: judged in one order);
    `unreadable`, of single verdicts; `first`, how much more often than half a verdict named the one
    shown first, ties aside. Which place a verdict names is its margin's sign: a judge by logits has
    one where it is not readable, and its bias is what one wants to know then. `cycles`, the share
    of circles (A over B over C over A) among `triples` of candidates whose three matches were
    decided (a coin makes 1/4). `unjudged` matches were not asked, for want of budget or room, and
    count nowhere.

    `cost` is that of a match, a mean; `relative` its FLOPs over those of sampling a candidate here:
    with a knockout's N - 1 matches for N candidates, about what judging adds to sampling.
    """

    judge: str
    stage: str
    measure: Measure
    image: Shown
    problems: int
    pairs: int
    right: Interval
    strict: Interval
    leaning: Interval
    matches: int
    unjudged: int
    ties: float
    flips: float | None
    unreadable: float
    first: Interval
    longer: float | None
    longer_right: float | None
    triples: int
    cycles: float | None
    calibration: tuple[Bin, ...]
    calibration_error: float | None
    cost: Usage
    relative: float | None
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class Contest:
    """One selection as a judge held it, and what is known of its candidates.

    `candidates` as they were grown; `chosen` the first of those kept, "" where no judge chose it;
    `matches` none twice; `lengths` of the texts compared, in characters; `outcomes` by measure and
    candidate, where known. `judging` is what the judge cost, `growing` what its `grown` chains did.
    """

    problem: str
    stage: str
    candidates: tuple[str, ...]
    chosen: str
    matches: tuple[Match, ...]
    lengths: Mapping[str, int]
    outcomes: Mapping[Measure, Mapping[str, float]]
    judging: Usage = Usage()
    growing: Usage = Usage()
    grown: int = 0


# --- from traces ---------------------------------------------------------------------------------


def cards(searches: Iterable[tuple[Trace, tuple[SelectionRecord, ...]]]) -> tuple[JudgeCard, ...]:
    """One card for each judge, what it was shown, stage and measure, as far as there are matches,
    in the order of their first appearance, stages first."""
    groups: dict[tuple[str, str, Shown], list[Contest]] = {}
    for trace, known in searches:
        started = trace.started
        for contest in contests(trace, known):
            key = (contest.stage, started.judge, started.judge_image)
            groups.setdefault(key, []).append(contest)
    stages = list(dict.fromkeys(stage for stage, _, _ in groups))
    found = []
    for key in sorted(groups, key=lambda key: stages.index(key[0])):
        stage, judge, image = key
        found += cards_of(judge, stage, image, groups[key])
    return tuple(found)


def cards_of(judge: str, stage: str, image: Shown, held: Sequence[Contest]) -> list[JudgeCard]:
    """The cards of one judge at one stage: one for each measure that is known of any candidate."""
    if not any(contest.matches for contest in held):
        return []
    return [
        card(judge, stage, measure, image, held)
        for measure in MEASURES
        if any(contest.outcomes.get(measure) for contest in held)
    ]


def contests(
    trace: Trace, known: Sequence[SelectionRecord], events: Iterable[Heard] | None = None
) -> tuple[Contest, ...]:
    """The selections of a trace as `events`, those of judging it again, say they were held; by
    default as the trace itself does. `known` has what is known of each selection, in order."""
    fold = trace.fold()
    again = fold if events is None else Fold(events)
    found: list[Contest] = []
    counted: set[int] = set()
    for here, (there, _), (held, event) in zip(
        known, fold.selections, again.selections, strict=True
    ):
        chains = {name: fold.chains[name] for name in event.candidates}
        whole = event.about == "whole"
        lengths = {
            name: len(chain.text if whole else chain.steps[-1].text)
            for name, chain in chains.items()
            if chain.steps
        }
        grown = [growth for growth in there.growths if growth.number not in counted]
        counted.update(growth.number for growth in grown)
        judged = len(event.ranking) < 2 or bool(event.matches)
        found.append(
            Contest(
                trace.started.problem,
                here.stage,
                event.candidates,
                event.kept[0] if judged else "",
                held.fresh,
                lengths,
                {"worth": here.worth, "facts": here.facts},
                event.usage,
                sum((growth.usage for growth in grown), Usage()),
                sum(len(growth.chains) for growth in grown),
            )
        )
    return tuple(found)


# --- one card ------------------------------------------------------------------------------------


def card(
    judge: str, stage: str, measure: Measure, image: Shown, held: Sequence[Contest]
) -> JudgeCard:
    """What `held`, the selections of one judge at one stage, show by one measure."""
    every = [without_unjudged(contest) for contest in held]
    matches = [(c.problem, match) for c in every for match in c.matches]
    verdicts = [(p, v) for p, match in matches for v in match.verdicts]
    first = _mean((p, v.margin > 0) for p, v in verdicts if v.margin)
    twice = [
        match.verdicts[0].margin * match.verdicts[1].margin > 0
        for _, match in matches
        if len(match.verdicts) == 2
    ]
    pairs = [pair for contest in every for pair in pairs_of(contest, measure)]
    bins, error = calibration([(match.margin, good) for _, match, good, _ in pairs])
    longer = [
        (apart > 0, (match.outcome == "first") == (apart > 0), good == (apart > 0))
        for _, match, good, apart in pairs
        if apart and match.outcome != "tie"
    ]
    circles = [circle for contest in every for circle in _triples(contest.matches)]
    cost, relative = _cost(held)
    return JudgeCard(
        judge,
        stage,
        measure,
        image,
        problems=len({problem for problem, *_ in pairs}),
        pairs=len(pairs),
        right=_mean((p, _agrees(match.outcome, good)) for p, match, good, _ in pairs),
        strict=_mean((p, _agrees(match.outcome, good) == 1) for p, match, good, _ in pairs),
        leaning=_mean((p, _leans(match.margin, good)) for p, match, good, _ in pairs),
        matches=len(matches),
        unjudged=sum(len(c.matches) for c in held) - len(matches),
        ties=_share([match.outcome == "tie" for _, match in matches]) or 0.0,
        flips=_share(twice),
        unreadable=_share([not v.readable for _, v in verdicts]) or 0.0,
        first=Interval(first.estimate - 0.5, first.low - 0.5, first.high - 0.5),
        longer=_share([preferred for _, preferred, _ in longer]),
        longer_right=_share([right for _, _, right in longer]),
        triples=len(circles),
        cycles=_share(circles),
        calibration=bins,
        calibration_error=error,
        cost=cost,
        relative=relative,
        gain=_gain(held, measure),
    )


def without_unjudged(contest: Contest) -> Contest:
    """Matches that the judge was never asked about say nothing of it; the arena marks them so."""
    asked = tuple(
        match
        for match in contest.matches
        if not all(v.text.startswith("not judged") and not v.readable for v in match.verdicts)
    )
    return replace(contest, matches=asked)


def pairs_of(contest: Contest, measure: Measure) -> list[tuple[str, Match, bool, int]]:
    """(problem, match, whether the first is the better one, how much longer it is)."""
    known = contest.outcomes.get(measure, {})
    return [
        (
            contest.problem,
            match,
            known[match.first] > known[match.second],
            contest.lengths.get(match.first, 0) - contest.lengths.get(match.second, 0),
        )
        for match in contest.matches
        if match.first in known
        and match.second in known
        and known[match.first] != known[match.second]
    ]


def _agrees(outcome: str, first_is_better: bool) -> float:
    if outcome == "tie":
        return 0.5
    return float((outcome == "first") == first_is_better)


def _leans(margin: float, first_is_better: bool) -> float:
    return 0.5 if margin == 0 else float((margin > 0) == first_is_better)


def leanings(held: Iterable[Contest], measure: Measure) -> dict[str, float]:
    """By problem: how often the margin leans to the better candidate of a pair."""
    pairs = (pair for contest in held for pair in pairs_of(without_unjudged(contest), measure))
    return _by_problem((p, _leans(match.margin, good)) for p, match, good, _ in pairs)


def _by_problem(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for problem, value in values:
        found.setdefault(problem, []).append(float(value))
    return {problem: sum(each) / len(each) for problem, each in found.items()}


def _mean(values: Iterable[tuple[str, float]]) -> Interval:
    """The mean over problems of each problem's mean, with its interval."""
    means = list(_by_problem(values).values())
    return accuracy(np.array(means).reshape(-1, 1), draws=_DRAWS)


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _triples(matches: Sequence[Match]) -> list[bool]:
    """For each three candidates that met each other, all decided: did they beat in a circle?"""
    winners = {frozenset((m.first, m.second)): m.winner for m in matches if m.outcome != "tie"}
    met: dict[str, set[str]] = {}
    for a, b in map(sorted, winners):
        met.setdefault(a, set()).add(b)
    return [
        len({winners[frozenset(pair)] for pair in ((a, b), (b, c), (a, c))}) == 3
        for a, others in met.items()
        for b in others
        for c in others & met.get(b, set())
    ]


def calibration(
    pairs: Iterable[tuple[float, bool]], bins: int = _BINS
) -> tuple[tuple[Bin, ...], float | None]:
    """Bins of (margin, whether the first is the better one), and the calibration error.

    At most `bins`, of as many pairs each as equal margins, which stay together, allow. Margins of
    zero prefer nobody and are left out.
    """
    said = sorted((abs(m), (m > 0) == good) for m, good in pairs if m)
    cut: list[list[tuple[float, bool]]] = []
    for k, (size, right) in enumerate(said):
        full = cut and len(cut) < bins and k * bins >= len(cut) * len(said)
        if not cut or (full and cut[-1][-1][0] != size):
            cut.append([])
        cut[-1].append((size, right))
    found, error = [], 0.0
    for each in cut:
        share = sum(r for _, r in each) / len(each)
        sure = sum(1 / (1 + math.exp(-m)) for m, _ in each) / len(each)
        found.append(Bin(sum(m for m, _ in each) / len(each), share, len(each)))
        error += len(each) / len(said) * abs(sure - share)
    return tuple(found), error if found else None


def _cost(held: Sequence[Contest]) -> tuple[Usage, float | None]:
    """The mean usage of a match, and its FLOPs over those of sampling a candidate."""
    matches = sum(len(contest.matches) for contest in held)
    judging = sum((contest.judging for contest in held), Usage())
    growing = sum((contest.growing for contest in held), Usage())
    grown = sum(contest.grown for contest in held)
    each = _divided(judging, matches)
    sampling = growing.flops / grown if grown else 0.0
    return each, each.flops / sampling if sampling else None


def _divided(usage: Usage, by: int) -> Usage:
    """The mean of `by` of them, fractions included; nothing for none."""
    mean = {f.name: getattr(usage, f.name) / max(1, by) for f in fields(Usage)}
    return Usage(**{name: v if name == "seconds" else round(v, 3) for name, v in mean.items()})


def _gain(held: Sequence[Contest], measure: Measure) -> Gain | None:
    picked: list[tuple[str, int, tuple[float, float, float]]] = []
    for contest in held:
        known = contest.outcomes.get(measure, {})
        values = [known[name] for name in contest.candidates if name in known]
        if len(values) < 2 or len(values) < len(contest.candidates) or not contest.chosen:
            continue
        worths = sum(values) / len(values), known[contest.chosen], max(values)
        picked.append((contest.problem, len(values), worths))
    if not picked:
        return None
    random, selected, oracle = (_mean((row[0], row[2][k]) for row in picked) for k in range(3))
    room = oracle.estimate - random.estimate
    return Gain(
        n=sum(row[1] for row in picked) / len(picked),
        selections=len(picked),
        random=random,
        selected=selected,
        oracle=oracle,
        taken=(selected.estimate - random.estimate) / room if room > 1e-12 else None,
    )
