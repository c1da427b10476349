"""Searches from synchronous code, on the scripted backend unless told otherwise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cot_engine import plugins
from cot_engine.backends.protocol import Backend
from cot_engine.backends.scripted import ScriptedBackend
from cot_engine.core.answers import Answer
from cot_engine.core.events import Heard
from cot_engine.core.problem import Problem
from cot_engine.judging.judges import ScorerJudge
from cot_engine.judging.protocol import Judge, Scorer
from cot_engine.search.loop import Named, search
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Strategy


def scorer_of(name: str) -> Scorer:
    """The scorer of that name, as an engine makes it."""
    scorer: Scorer = plugins.make("scorer", name, {})
    return scorer


def solve_scripted(
    strategy: Strategy,
    *,
    backend: Backend | None = None,
    judge: Judge | None = None,
    problem: Problem | None = None,
    settings: Settings | None = None,
    listen: Callable[[Heard], None] | None = None,
    scorers: Callable[[str], Scorer] | None = None,
) -> Answer:
    """Run one search from synchronous code, on the scripted backend unless told otherwise.
    `scorers` gives the scorer of a name, if not plug-ins do."""
    problem, settings = problem or Problem("p", "How many are there?"), settings or Settings()
    plan = settings.plan.fit(len(problem.images), settings.detail)
    return asyncio.run(
        search(
            problem,
            Named(type(strategy).__name__, strategy),
            Named("likelihood", judge or ScorerJudge()),
            backend or ScriptedBackend(),
            replace(settings, plan=plan),
            scorers=scorers or scorer_of,
            listen=listen,
        )
    )


def alike(a: Any, b: Any, tolerance: float = 1e-3) -> bool:
    """Whether two canonical traces are equal, numbers to a tolerance: sums of log-probabilities
    differ in their last digits from batch to batch. So does the mass that a verdict's text tells,
    and where it lies between two roundings, its second digit."""
    if isinstance(a, str) and isinstance(b, str) and a[:5] == b[:5] == "mass ":
        a, b, tolerance = float(a[5:]), float(b[5:]), max(tolerance, 0.1)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b)
