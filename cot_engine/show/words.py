"""What the drawings say in words and numbers: margins, ties, cuts, faults, amounts."""

from __future__ import annotations

import re

from cot_engine.core.events import Cut, Notice, Retraced
from cot_engine.core.fold import Remark
from cot_engine.core.grammar import FAULTS
from cot_engine.core.match import Match, Verdict
from cot_engine.core.stages import Plan
from cot_engine.core.usage import Usage

_HALF_A_TAG = re.compile(r"</?[A-Z_]*\Z")


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


def score_text(value: float) -> str:
    """ "0.31", "−4.2", "1.2e+03": a scorer's number, in three figures."""
    return f"{value:.3g}".replace("-", "−")


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


def remark_text(remark: Remark, budget: str | None) -> str:
    if isinstance(remark, Cut):
        return cut_text(remark, budget)
    if isinstance(remark, Notice):
        return remark.text
    if isinstance(remark, Retraced):
        return retraced_text(remark)
    if remark == "again":
        return "No candidate opened the stage: sampled again with its tag put there."
    return "Concluded at once, its tag put there."


def retraced_text(back: Retraced) -> str:
    """ "Went back to CAPTION: the second best had 0.31, below 0.5. Round 2 of 3." """
    place = f"{_PLACES.get(back.place, f'{back.place}th')} best".removeprefix("first ")
    least = [score_text(value) for value in (back.score, back.threshold)]
    if least[0] == least[1]:  # alike at three figures
        least = [f"{value:.7g}".replace("-", "−") for value in (back.score, back.threshold)]
    said = f"Went back to {back.to}: the {place} had {least[0]}, below {least[1]}."
    return f"{said} Round {back.attempt} of {back.of}."


_PLACES = {1: "first", 2: "second", 3: "third"}


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


def so_far(text: str) -> str:
    """A text that is being written, without the half of a tag at its end."""
    return _HALF_A_TAG.sub("", text)


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


USAGE_HEADS = ("calls", "images", "prefilled", "cached", "decoded", "FLOPs", "seconds")


def usage_cells(usage: Usage) -> list[str]:
    counts = (usage.calls, usage.encodes, usage.prefilled, usage.cached, usage.decoded)
    return [*(f"{n:,}" for n in counts), number(usage.flops), f"{usage.seconds:.2f}"]
