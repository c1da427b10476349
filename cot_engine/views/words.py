"""What the drawings say in words and numbers: margins, ties, cuts, faults, amounts."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from cot_engine.events import Cut
from cot_engine.stages import DEFAULT_PLAN, FAULTS, Plan
from cot_engine.types import Match, Sampling, Usage, Verdict

if TYPE_CHECKING:
    from cot_engine.views.figure import Column, Figure


def for_winner(match: Match) -> list[tuple[Verdict, float, bool]]:
    """The verdicts as seen from the winner: with its margin (below 0 the order preferred the
    other), and whether the verdict was for it. First the order in which the winner stood first."""
    first = match.winner == match.first
    seen = []
    for number, verdict in enumerate(match.verdicts):
        ahead = first == (number == 0)  # the winner stood first
        margin = verdict.margin if ahead else -verdict.margin
        seen.append((verdict, margin, (verdict.outcome == "first") == ahead))
    return seen if first else seen[::-1]


def logprob_text(value: float) -> str:
    """ "−0.123"; "0.000" has no sign."""
    text = f"{value:.3f}"
    return text.replace("-", "" if float(text) == 0 else "−")


def margin_text(verdict: Verdict, margin: float, favours: bool) -> str:
    """ "+1.24", "−0.80"; "?" for an unreadable reply; "=" or a bare sign without a number."""
    if not verdict.readable:
        return "?"
    if margin == 0:
        return "=" if verdict.outcome == "tie" else "+" if favours else "−"
    return f"{margin:+.2f}".replace("-", "−")


def margins(match: Match) -> list[str]:
    """Each order's margin from the winner's side, first the one in which it stood first."""
    return [margin_text(*seen) for seen in for_winner(match)]


def tie_text(match: Match) -> str:
    """Why a match was a tie and how it was broken; "" for one that was decided."""
    if match.outcome != "tie":
        return ""
    unread = [verdict.text for verdict in match.verdicts if not verdict.readable]
    if unread:
        why = unread[0] if unread[0] == "not judged: out of budget" else "unreadable"
    else:
        why = "orders disagree" if match.flipped else "tie"
    how = {"likelihood": "log-probability decides", "draw": "lot decides"}
    return f"{why}; {how[match.broken_by]}" if match.broken_by in how else why


def cut_text(cut: Cut, budget: str | None) -> str:
    left = f"{amount(cut.left, budget)} left"
    if cut.what == "search":
        return f"The budget's floor was reached ({left}): the answer was concluded at once."
    return f"The budget paid for {cut.granted} of {cut.asked} {cut.what} ({left})."


def amount(value: float, budget: str | None) -> str:
    """A value in the unit of a budget like "2e+10 flops": "4.2 Gflops", "120 new tokens"."""
    unit = (budget or "").partition(" ")[2]
    if unit != "flops":
        return f"{value:,.6g} {unit}".strip()
    text = number(value)
    return f"{text}{unit}" if " " in text else f"{text} {unit}"


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


def fault_text(fault: str) -> str:
    """ "unclosed:CAPTION" -> "CAPTION: a stage broken off before its closing tag; closed"."""
    name, _, tag = fault.partition(":")
    said = FAULTS[name][1] if name in FAULTS else name
    return f"{tag}: {said}" if tag else said


def number(value: float) -> str:
    """Three figures and a unit prefix: 950, 12.3 k, 4.56 G."""
    if abs(value) < 1000:
        return f"{value:.3g}" if value != int(value) else str(int(value))
    for prefix in "kMGTPE":
        value /= 1000
        if abs(value) < 999.5 or prefix == "E":
            return f"{value:.3g} {prefix}"
    raise AssertionError


def pieces(text: str, plan: Plan) -> list[tuple[str, str]]:
    """A reply as (stage, text) pairs, the tags taken out; stage is "" where none was opened."""
    names = "|".join(re.escape(stage.tag) for stage in plan)
    found: list[tuple[str, str]] = []
    stage, start = "", 0
    for match in re.finditer(rf"<(/?)({names})>", text):
        if said := text[start : match.start()].strip():
            found.append((stage, said))
        stage, start = ("" if match[1] else match[2]), match.end()
    if said := text[start:].strip():
        found.append((stage, said))
    return found


def strategy_text(figure: Figure) -> str:
    started = figure.started
    said = ", ".join(f"{name} = {value}" for name, value in started.parameters.items())
    said = f"{started.strategy} ({said})" if said else started.strategy
    if any(column.contests for column in figure.columns):
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


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def column_text(column: Column) -> str:
    text = f"{column.sampled} sampled"
    if len(column.cards) < column.sampled:
        text += f", {len(column.cards)} distinct"
    if column.matches:
        text += f" · {plural(len(column.matches), 'match', 'matches')}"
    return text


def command(figure: Figure) -> str:
    """A command that runs this search again; a plan of one's own is only hinted at."""
    s = figure.started
    options: list[tuple[str, object]] = [("image", image.source) for image in s.images[1:]]
    options.append(("strategy", s.strategy))
    for name, value in s.parameters.items():
        named = name in ("n", "keep")
        options.append((name, value) if named else ("parameter", f"{name}={value}"))
    options += [("judge", s.judge), ("tournament", s.tournament)]
    options += [("orders", s.orders)] * (s.orders != "both")
    options += [("judge-image", s.judge_image)] * (s.judge_image != "seen")
    options += [("budget", s.budget)] * (s.budget is not None)
    options += [("detail", s.detail)] * (s.detail != "normal")
    options += [("plan", "FILE")] * (s.plan != DEFAULT_PLAN.fit(len(s.images), s.detail))
    for name in ("temperature", "top_p", "top_k"):
        if (value := getattr(s.sampling, name)) != getattr(Sampling(), name):
            options.append((name.replace("_", "-"), value))
    options += [("seed", s.seed), ("model", s.backend.model)]
    given = [*(image.source for image in s.images[:1]), s.question]
    given += [part for name, value in options for part in (f"--{name}", str(value))]
    return shlex.join(["cot-engine", "solve", *given])


USAGE_HEADS = ("calls", "images", "prefilled", "cached", "decoded", "FLOPs", "seconds")


def usage_cells(usage: Usage) -> list[str]:
    counts = (usage.calls, usage.encodes, usage.prefilled, usage.cached, usage.decoded)
    return [*(f"{n:,}" for n in counts), number(usage.flops), f"{usage.seconds:.2f}"]
