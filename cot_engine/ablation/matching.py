"""Searches at matched compute: how a strategy is given what the reference spent on a problem.

A strategy that samples whole responses gets it as its budget and fills it (`Expand.upto`): an
answer is there after the first response, so nothing has to be held back. A beam cannot: what its
later stages will cost is not known while the earlier ones are sampled, so it would have to keep
back the most that they may cost, and spend that on conclusions in the end; it did worse so with a
budget than with less and none. A beam therefore gets the largest n, in eighths, with which its
search on that problem costs no more than was allotted. Fractions are spread over its expansions
(`spread`). The searches that were tried to find it are charged to nobody; each is the search that
`solve` does with that n.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from cot_engine import plugins
from cot_engine.core.answers import Answer
from cot_engine.core.problem import Problem
from cot_engine.options.auto import is_auto
from cot_engine.options.config import MAX_N, RunConfig
from cot_engine.search.budget import Budget, Unit

if TYPE_CHECKING:
    from cot_engine.engine.facade import Engine

STEPS = 8  # to a whole n
_TRIALS = 12
_ENOUGH = 0.98  # of what was allotted: no further trial
_NEARLY = 0.9  # no further trial beyond an n that was too dear


def part_of(config: RunConfig) -> Any:
    """The configuration's strategy; None for "auto", which is another one for each budget, by the
    profile of a model that is not there yet. Raises what `plugins.make` does."""
    if is_auto(config.strategy):
        return None
    return plugins.make("strategy", config.strategy, config.parameters)


def has(config: RunConfig, name: str) -> bool:
    """Whether the configuration's strategy has a parameter of that name."""
    part = part_of(config)
    return is_dataclass(part) and name in {field.name for field in fields(part)}


def levelled(config: RunConfig) -> bool:
    """Whether its n is chosen so that the search fits, rather than filled up."""
    return has(config, "extra") and not config.parameters.get("fill")


def spent(answer: Answer, unit: Unit) -> float:
    """What a search cost, in `unit`."""
    return answer.seconds if unit == "seconds" else Budget(1.0, unit).of(answer.total)


async def matched(
    engine: Engine, problem: Problem, config: RunConfig, allotted: float, unit: Unit
) -> tuple[Answer, RunConfig]:
    """The search on `problem` that is given `allotted` of `unit`, and the configuration it had.

    It spends no more than that. Raises BudgetError where not even concluding at once fits.
    """
    amount = f"{allotted:.6f} s" if unit == "seconds" else f"{allotted:.0f} {unit}"
    budgeted = replace(config, budget=amount)
    if not levelled(config):
        return await engine.asolve(problem, config=budgeted), budgeted
    return await _largest(engine, problem, config, allotted, unit) or (
        await engine.asolve(problem, config=budgeted),
        budgeted,
    )


async def _largest(
    engine: Engine, problem: Problem, config: RunConfig, allotted: float, unit: Unit
) -> tuple[Answer, RunConfig] | None:
    """The search with the largest n tried that fits; None if not even the least n does."""
    tried: dict[int, float] = {}  # n in eighths -> what its search cost
    best: tuple[Answer, RunConfig] | None = None
    part = plugins.make("strategy", config.strategy, config.parameters)
    level: int | None = STEPS * max(getattr(part, name, 1) for name in ("keep", "place"))
    while level is not None and len(tried) < _TRIALS:
        n, eighths = divmod(level, STEPS)
        parameters = {**config.parameters, "n": n, "extra": eighths / STEPS}
        trial = replace(config, parameters=parameters, budget=None)
        answer = await engine.asolve(problem, config=trial)
        tried[level] = spent(answer, unit)
        if level == largest(tried, allotted):
            best = answer, trial
        level = next_level(tried, allotted)
    return best


def largest(tried: dict[int, float], allotted: float) -> int | None:
    """The largest n, in eighths, of those tried that cost no more than was allotted."""
    return max((level for level, cost in tried.items() if cost <= allotted), default=None)


def next_level(tried: dict[int, float], allotted: float) -> int | None:
    """The n to try next, in eighths; None: what was found is good enough, or nothing fits.

    It follows the line through the largest n that fitted and its neighbour. What a search costs
    grows with n on the whole, but where judging costs, not strictly: another n writes other
    candidates, of which more or fewer differ. So where the next larger n is too dear although much
    is left, those beyond it are tried, from the one that ought to cost what was allotted down.
    """
    best = largest(tried, allotted)
    if best is None or tried[best] >= _ENOUGH * allotted:
        return None
    above = min((level for level in tried if level > best), default=STEPS * MAX_N + 1)
    if above - best > 1:
        others = [level for level in tried if level != best]
        step = float(STEPS)
        if others:
            near = min(others, key=lambda level: abs(level - best))
            slope = (tried[best] - tried[near]) / (best - near)
            step = (allotted - tried[best]) / slope if slope > 0 else step
        # Not far beyond what is known: a line through two searches is a rough guide.
        return min(best + max(1, int(min(step, 4 * best))), above - 1)
    if tried[best] >= _NEARLY * allotted:
        return None
    ought = min(int(best * allotted / tried[best]), STEPS * MAX_N)
    return next((level for level in range(ought, above, -1) if level not in tried), None)
