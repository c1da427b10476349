"""What a strategy asks and returns, checked before anything is done about it.

A request that breaks the contract is a StrategyError that names the strategy, the value, and what
is allowed there. The search core relies on what passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from cot_engine.core.chain import Beam, Chain
from cot_engine.core.parts import Part, finite, guard
from cot_engine.core.stages import Plan, Stage
from cot_engine.errors import shown
from cot_engine.search.strategy import Expand, Request, Retrace, Score, Select

MOST = 4096
"""The largest n of an Expand."""


def checked(
    part: Part, asked: Any, plan: Plan, known: Mapping[str, Chain], verifier: str = "likelihood"
) -> Request | tuple[Request, ...]:
    """What the strategy `part` yielded, a request or a tuple of them, each beam a tuple. `known`
    are the chains of this search, `verifier` is the scorer that "auto" stands for. Raises
    StrategyError.
    """
    if not isinstance(asked, tuple):
        return _checked(part, asked, plan, known, verifier)
    if not 0 < len(asked) <= MOST:
        allowed = f"A tuple holds 1 to {MOST:,} requests, which are sent together."
        part.broke(f"yielded a tuple of {len(asked):,}", allowed)
    return tuple(_checked(part, request, plan, known, verifier) for request in asked)


def _checked(
    part: Part, request: Any, plan: Plan, known: Mapping[str, Chain], verifier: str
) -> Request:
    with guard(part):  # its fields may be anything, and may raise
        match request:
            case Expand():
                _expand(part, request, plan)
            case Select():
                _whole(part, request, "keep", request.keep)
                _about(part, request)
                request = _by(part, request, verifier)
            case Score():
                if not isinstance(request.scorer, str):
                    _refuse(part, request, "scorer", request.scorer, "the name of a scorer")
                _about(part, request)
                _truth(part, request, "probability", request.probability)
                if request.scorer == "auto":
                    request = replace(request, scorer=verifier)
            case Retrace():
                _retrace(part, request, plan)
            case _:
                part.broke(
                    f"yielded {shown(request)}",
                    "Yield Expand, Select, Score or Retrace, or a tuple of them, and return a"
                    " Chain.",
                )
        checked: Request = replace(request, beam=_beam(part, request, known))
        return checked


def returned(part: Part, chain: Any, known: Mapping[str, Chain]) -> Chain:
    """The chain that the strategy `part` returned. Raises StrategyError if it is none of this
    search's."""
    with guard(part):
        if not isinstance(chain, Chain):
            part.broke(f"returned {shown(chain)}", "Return a Chain.")
        if not _grown(chain, known):
            part.broke(
                f"returned {shown(chain)}", "Return a chain that this search has grown, as it came."
            )
        return chain


def _expand(part: Part, request: Expand, plan: Plan) -> None:
    until = request.until
    if isinstance(until, Stage):
        fine = until in plan.stages
    else:
        fine = isinstance(until, str) and until in ("sentence", "end")
    if not fine:
        allowed = f'a stage of task.plan ({_tags(plan)}), "sentence" or "end"'
        _refuse(part, request, "until", until, allowed)
    _whole(part, request, "n", request.n, MOST)
    _truth(part, request, "greedy", request.greedy)
    _truth(part, request, "optional", request.optional)
    upto = request.upto
    if upto is not None and not (
        isinstance(upto, (int, float)) and finite(upto) is not None and 0 < upto <= 1
    ):
        _refuse(part, request, "upto", upto, "a number above 0, at most 1, or None")


def _by(part: Part, request: Select, verifier: str) -> Select:
    if request.by is not None and not isinstance(request.by, str):
        _refuse(part, request, "by", request.by, "the name of a scorer, or None")
    unsure = _number(part, request, "unsure", request.unsure)
    if not 0 <= unsure <= 1:
        _refuse(part, request, "unsure", unsure, "a difference of probabilities, 0 to 1")
    if unsure and request.by is None:
        _refuse(part, request, "unsure", unsure, "0 where no scorer decides (by)")
    _truth(part, request, "agree", request.agree)
    return replace(request, by=verifier) if request.by == "auto" else request


def _retrace(part: Part, request: Retrace, plan: Plan) -> None:
    if not isinstance(request.to, Stage) or request.to not in plan.stages:
        _refuse(part, request, "to", request.to, f"a stage of task.plan ({_tags(plan)})")
    for name in ("score", "threshold"):
        _number(part, request, name, getattr(request, name))
    for name in ("place", "attempt", "of"):
        _whole(part, request, name, getattr(request, name))


def _number(part: Part, request: Any, name: str, value: Any) -> float:
    number = finite(value) if isinstance(value, (int, float)) else None
    if number is None:
        _refuse(part, request, name, value, "a finite number")
    return number


def _tags(plan: Plan) -> str:
    return ", ".join(stage.tag for stage in plan)


def _about(part: Part, request: Select | Score) -> None:
    if not isinstance(request.about, str) or request.about not in ("step", "whole"):
        _refuse(part, request, "about", request.about, '"step" or "whole"')


def _truth(part: Part, request: Any, name: str, value: Any) -> None:
    if type(value) is not bool:
        _refuse(part, request, name, value, "True or False")


def _whole(part: Part, request: Any, name: str, value: Any, most: int | None = None) -> None:
    if type(value) is not int or value < 1 or (most is not None and value > most):
        allowed = "an integer of at least 1" if most is None else f"an integer from 1 to {most:,}"
        _refuse(part, request, name, value, allowed)


def _beam(part: Part, request: Any, known: Mapping[str, Chain]) -> Beam:
    beam, kind = request.beam, type(request).__name__
    if not isinstance(beam, (tuple, list)) or not beam:
        _refuse(part, request, "beam", beam, "a tuple of at least one Chain")
    seen = set()
    for chain in beam:
        if not isinstance(chain, Chain) or not _grown(chain, known):
            part.broke(
                f"yielded {kind} with {shown(chain)} in its beam",
                "A beam holds chains that this search has grown, as they came, or task.start.",
            )
        if chain.id in seen:
            part.broke(f"yielded {kind} with the chain {chain.id} twice", "Once is enough.")
        seen.add(chain.id)
    return tuple(beam)


def _grown(chain: Chain, known: Mapping[str, Chain]) -> bool:
    """Whether a chain is one of this search's: all of it but its count, which merging changes."""
    mine = known.get(chain.id) if isinstance(chain.id, str) else None
    if mine is None or type(chain.count) is not int or chain.count < 1:
        return False
    same = chain.steps is mine.steps or chain.steps == mine.steps
    return same and chain.done is mine.done


def _refuse(part: Part, request: Any, name: str, value: Any, allowed: str) -> NoReturn:
    what = f"{type(request).__name__}({name}={shown(value)})"
    part.broke(f"yielded {what}", f"{name} must be {allowed}.")
