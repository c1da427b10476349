"""Whether a judge is any good, in a few sentences: what the tables of a judge report come to.

A judge that asks the model is held against likelihood, which is free, on the same pairs; any other,
and where likelihood was not examined, against a coin. A difference counts where its interval is
clear of zero, and only on enough problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cot_engine.report.judging import JudgeCard, Measure
from cot_engine.statistics import Interval

if TYPE_CHECKING:
    from cot_engine.report.controls import Control, OverLikelihood

FEW = 20
"""Problems with pairs below which a share says little."""

_FLIPS = 0.25  # of matches that name the same place twice: coins make half
_UNREAD = 0.05  # of verdicts
_MATCHES = 40  # below which neither share says much


def verdicts(
    judges: Sequence[str],
    own: str,
    cards: Sequence[JudgeCard],
    controls: Sequence[Control],
    over: Sequence[OverLikelihood],
) -> tuple[str, ...]:
    """For each of `judges`, whether it is any good; `own`, the model's default one, comes first.
    The control needs no verdict unless nobody else was examined."""
    first = sorted(judges, key=lambda judge: judge != own)
    told = [judge for judge in first if judge != "random"] or first
    return tuple(
        _verdict(
            judge,
            f"{judge}, the model's own judge," if judge == own else judge,
            [card for card in cards if (card.judge, card.image) == (judge, "seen")],
            [control for control in controls if control.judge == judge],
            {(o.stage, o.measure): o.difference.difference for o in over if o.judge == judge},
        )
        for judge in told
    )


def _verdict(
    judge: str,
    name: str,
    cards: Sequence[JudgeCard],
    controls: Sequence[Control],
    over: dict[tuple[str, Measure], Interval],
) -> str:
    by_stage: dict[str, JudgeCard] = {}  # by the measure that most is known by
    for card in cards:
        if card.problems > (by_stage[card.stage].problems if card.stage in by_stage else 0):
            by_stage[card.stage] = card
    if not by_stage:
        return f"Of {name} nothing can be said: no candidates with different outcomes."
    chosen = list(by_stage.values())
    said = [_worth(name, chosen, over), _coin(chosen) if over else ""]
    said += [_looks(chosen, controls), _habits(cards)]
    return " ".join(filter(None, said))


def _worth(name: str, cards: Sequence[JudgeCard], over: dict[tuple[str, Measure], Interval]) -> str:
    """At which stages it is better than what costs nothing, at which worse, and where one cannot
    tell."""
    better: list[str] = []
    worse: list[str] = []
    even: list[str] = []
    few: list[str] = []
    for card in cards:
        coin = Interval(*(x - 0.5 for x in (card.right.estimate, card.right.low, card.right.high)))
        ahead = over.get((card.stage, card.measure)) if over else coin
        if card.problems < FEW or ahead is None:
            few.append(f"{_stage(card)} ({card.problems})")
            continue
        told = better if ahead.low > 0 else worse if ahead.high < 0 else even
        told.append(f"{_stage(card)} ({_signed(ahead)})")
    rival = "likelihood, which is free," if over else "a coin"
    if not better + worse + even:
        return f"{name} cannot be told from {rival.rstrip(',')}: too few problems have pairs."
    parts = [f"it is better than {rival} at {_listed(better)}"] if better else []
    parts += [f"it is worse than {rival} at {_listed(worse)}"] if worse else []
    if even:
        parts.append(f"no difference {'' if parts else f'to {rival} '}shows at {_listed(even)}")
    if better and not worse:
        head = "is worth asking" if over else "tells better from worse"
    elif better:
        head = "is good at some stages only"
    else:
        head = "is not worth asking" if over and worse else "is not shown to be any good"
    text = f"{name} {head}: {'; '.join(parts)}."
    if few:
        text += f" Too few problems have pairs to tell at {_listed(few)}."
    return text


def _coin(cards: Sequence[JudgeCard]) -> str:
    """Where it is not even better than nobody."""
    at = [_stage(c) for c in cards if c.problems >= FEW and c.right.low <= 0.5]
    return f"At {_listed(at)} it is not shown to be better than a coin." if at else ""


def _looks(cards: Sequence[JudgeCard], controls: Sequence[Control]) -> str:
    chosen = {(card.stage, card.measure) for card in cards}
    held = [c for c in controls if (c.stage, c.measure) in chosen]
    if not held:
        return ""
    enough = [c for c in held if c.difference.problems >= FEW]
    looked = [c for c in enough if c.difference.difference.low > 0]
    if looked:
        most = max(looked, key=lambda c: c.difference.difference.estimate)
        other = "a grey picture" if most.image == "blank" else "another picture"
        where = "whole responses" if most.stage == "whole" else most.stage
        lost = _signed(most.difference.difference)
        return f"It looks: with {other} it prefers the better one less often ({where}: {lost})."
    if enough:
        return "It is not shown to look: it does as well with a grey or another picture."
    return "Too few problems have pairs to tell whether it looks."


def _habits(cards: Sequence[JudgeCard]) -> str:
    told = []
    once = {card.stage: card for card in cards if card.matches >= _MATCHES}.values()
    flips = [(c.flips, _stage(c)) for c in once if c.flips is not None and c.flips > _FLIPS]
    if flips:
        at = _listed([f"{100 * flip:.0f} % at {stage}" for flip, stage in flips])
        told.append(f"Its two orders name the same place too often: {at} (coins: 50 %).")
    if unread := [c for c in once if c.unreadable > _UNREAD]:
        at = _listed([f"{100 * c.unreadable:.0f} % at {_stage(c)}" for c in unread])
        told.append(f"Many of its verdicts cannot be read: {at}.")
    return " ".join(told)


def _stage(card: JudgeCard) -> str:
    return "whole responses" if card.stage == "whole" else card.stage


def _signed(value: Interval) -> str:
    return f"{value.estimate:+.3f}, {value.low:+.3f} to {value.high:+.3f}"


def _listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
