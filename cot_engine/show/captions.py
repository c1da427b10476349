"""What the drawings say of a whole search or of one of its stages."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from cot_engine.core.events import Started
from cot_engine.core.options import Group, SearchOptions, options_of
from cot_engine.core.requests import Sampling
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.usage import Usage
from cot_engine.show.words import amount, number, plural

if TYPE_CHECKING:
    from cot_engine.show.figure import Column, Figure


def budget_text(figure: Figure) -> str:
    """ "20 Gflops, of which 4.2 Gflops were left"."""
    budget = figure.started.budget
    if budget is None:
        return "none"
    try:
        said = amount(float(budget.partition(" ")[0]), budget)
    except ValueError:
        said = budget
    if figure.finished is None or figure.finished.left is None:
        return said
    return f"{said}, of which {amount(figure.finished.left, budget)} were left"


def strategy_text(figure: Figure) -> str:
    started = figure.started
    said = ", ".join(f"{name} = {value}" for name, value in started.parameters.items())
    said = f"{started.strategy} ({said})" if said else started.strategy
    held = [contest for column in figure.columns for contest in column.contests]
    if any(c.matches or not (c.outcome and c.outcome.by) for c in held):
        said += f" · judge {started.judge} · {started.tournament}"
    return f"{said} · seed {started.seed}"


def tally(figure: Figure) -> str:
    """ "16 candidates, 9 distinct; 5 matches, 1 a tie; 1.2 GFLOP in 3.4 s"."""
    sampled = sum(column.sampled for column in figure.columns)
    distinct = sum(len(column.cards) for column in figure.columns)
    matches = [match for column in figure.columns for match in column.matches]
    parts = [plural(sampled, "candidate") + (f", {distinct} distinct" * (distinct < sampled))]
    if matches:
        ties = sum(match.outcome == "tie" for match in matches)
        parts.append(plural(len(matches), "match", "matches") + f", {ties} tied" * (ties > 0))
    total = sum(figure.usage.values(), Usage())
    cost = f"{number(total.flops)}FLOP" if total.flops else plural(total.tokens, "token")
    if figure.finished and figure.finished.seconds:
        cost += f" in {figure.finished.seconds:.2f} s"
    return "; ".join([*parts, cost]) + "."


def column_text(column: Column) -> str:
    text = f"{column.sampled} sampled" if column.sampled or not column.drafts else ""
    if column.drafts:
        text += f"{', ' if text else ''}{len(column.drafts)} being written"
    if len(column.cards) < column.sampled:
        text += f", {len(column.cards)} distinct"
    by = dict.fromkeys(c.outcome.by for c in column.contests if c.outcome and c.outcome.by)
    if by:
        text += f" · chosen by {', '.join(by)}"
    if column.matches:
        text += f" · {plural(len(column.matches), 'match', 'matches')}"
    return text + " · not gone on with" * column.dropped


def command(figure: Figure) -> str:
    """A command that runs this search again; a plan of one's own is only hinted at."""
    s = figure.started
    options: list[tuple[str, object]] = [("image", image.source) for image in s.images[1:]]
    options.append(("strategy", s.strategy))
    for name, value in s.parameters.items():
        named = name in ("n", "keep")
        options.append((name, value) if named else ("parameter", f"{name}={value}"))
    options += [("judge", s.judge), *_said(s, "judging", "tournament")]
    options += [("budget", s.budget)] * (s.budget is not None)
    options += _said(s, "writing")
    options += [("plan", "FILE")] * (s.plan != DEFAULT_PLAN.fit(len(s.images), s.detail))
    for name in ("temperature", "top_p", "top_k"):
        if (value := getattr(s.sampling, name)) != getattr(Sampling(), name):
            options.append((name.replace("_", "-"), value))
    options += [*_said(s, "sampling", "seed"), ("model", s.backend.model)]
    given = [*(image.source for image in s.images[:1]), s.question]
    given += [part for name, value in options for part in (f"--{name}", str(value))]
    return shlex.join(["cot-engine", "solve", *given])


def _said(s: Started, group: Group, always: str = "") -> list[tuple[str, object]]:
    """The options of a group that are not at their default, and the one that is told `always`."""
    values = [(each, getattr(s, each.name)) for each in options_of(SearchOptions, group)]
    told = [(f.name, value) for f, value in values if value != f.default or f.name == always]
    return [(name.replace("_", "-"), value) for name, value in told]
