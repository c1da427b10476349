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
from typing import TYPE_CHECKING

from cot_engine import plugins
from cot_engine.budget import Budget, Unit
from cot_engine.config import MAX_N, RunConfig
from cot_engine.types import Answer, Problem

if TYPE_CHECKING:
    from cot_engine.engine import Engine

STEPS = 8  # to a whole n
_TRIALS = 7
_ENOUGH = 0.98  # of what was allotted: no further trial


def has(config: RunConfig, name: str) -> bool:
    """Whether the configuration's strategy has a parameter of that name."""
    part = plugins.make("strategy", config.strategy, config.parameters)
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
    """The search with the largest n found that fits; None if none does.

    The first guess is the least n; the next ones follow the line through the dearest search that
    fitted and its neighbour. What a search costs grows with n on the whole, but not strictly.
    """
    level = least = STEPS * config.parameters.get("keep", 1)
    best: tuple[int, float, Answer, RunConfig] | None = None
    above = STEPS * MAX_N + 1  # the least that did not fit
    slope = 0.0  # of the cost, per step
    for _ in range(_TRIALS):
        n, eighths = divmod(level, STEPS)
        parameters = {**config.parameters, "n": n, "extra": eighths / STEPS}
        trial = replace(config, parameters=parameters, budget=None)
        answer = await engine.asolve(problem, config=trial)
        cost = spent(answer, unit)
        if best is not None and level != best[0]:
            slope = (cost - best[1]) / (level - best[0])
        if cost <= allotted:
            best = (level, cost, answer, trial)
        else:
            above = level
        if best is None or best[1] >= _ENOUGH * allotted or above - best[0] <= 1:
            break
        step = (allotted - best[1]) / slope if slope > 0 else STEPS
        # Not far beyond what is known: a line through two searches is a rough guide.
        level = min(best[0] + max(1, int(min(step, 4 * best[0]))), above - 1)
    assert level >= least
    return None if best is None else best[2:]
