"""The tag grammar: read what a model wrote, name its faults, repair it.

A well-formed reply is `<TAG>content</TAG>` once for every stage of the plan, in order. Anything
else is data, never an exception: `read` names each fault and FAULTS says what is done about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cot_engine.core.chain import Chain
from cot_engine.core.stages import Plan, Stage

Severity = Literal["repaired", "penalised", "dropped"]


FAULTS: dict[str, tuple[Severity, str]] = {
    "stray": ("repaired", "text outside any stage; ignored"),
    "unopened": ("repaired", "a stage without its opening tag; the text before its end is taken"),
    "unclosed-last": ("repaired", "the last stage without its closing tag; closed"),
    "ended": ("repaired", "the turn ended inside a stage; closed"),
    "unclosed": ("penalised", "a stage broken off before its closing tag; closed"),
    "mismatched": ("penalised", "a stage closed by another's tag; taken as its own"),
    "empty": ("penalised", "a stage with nothing in it"),
    "echo": ("penalised", "a stage that repeats an earlier one's text"),
    "repeated": ("dropped", "a stage opened a second time; the first one counts"),
    "misplaced": ("dropped", "a stage opened after one that should follow it"),
    "skipped": ("dropped", "a stage left out before a later one"),
    "missing": ("dropped", "the reply ended before the stage"),
}
"""Every fault, how severe it is, and what is done. A candidate whose new text has a penalised
fault loses, unjudged, to any without; one with a dropped fault loses to both. If all candidates
are dropped they are sampled once more with the stage's opening tag forced."""


_RANK = {"repaired": 0, "penalised": 1, "dropped": 2}


def tier(faults: tuple[str, ...]) -> int:
    """0 sound, 1 penalised, 2 dropped: the worst of the faults ("name:TAG" each)."""
    return max((_RANK[FAULTS[fault.partition(":")[0]][0]] for fault in faults), default=0)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was found in a reply so far.

    `contents` maps each closed stage's tag to its stripped text, in the order written; `open` is
    the stage that is begun but not closed, `opened` its text so far. `faults` are "name:TAG".
    """

    contents: dict[str, str]
    open: str | None
    opened: str
    faults: tuple[str, ...]

    def done(self, plan: Plan) -> bool:
        return plan.last.tag in self.contents


def read(text: str, plan: Plan, complete: bool = False) -> Reading:
    """Read an assistant's turn. `complete` means that no more will follow: then what is missing
    is a fault too, and an open stage counts as closed. Never raises."""
    names = "|".join(stage.tag for stage in plan)
    places = {stage.tag: place for place, stage in enumerate(plan)}
    contents: dict[str, str] = {}
    faults: list[str] = []
    open_tag: str | None = None
    start = 0

    def close(tag: str, content: str) -> None:
        content = content.strip()
        if tag in contents:
            return  # the fault was named when it was opened
        if not content:
            faults.append(f"empty:{tag}")
        elif any(_same(content, earlier) for earlier in contents.values()):
            faults.append(f"echo:{tag}")
        contents[tag] = content

    for match in re.finditer(rf"<(/?)({names})>", text):
        closing, tag = match.groups()
        between = text[start : match.start()]
        start = match.end()
        if not closing:
            if open_tag is not None:
                faults.append(f"unclosed:{open_tag}")
                close(open_tag, between)
            elif between.strip():
                faults.append(f"stray:{tag}")
            faults += _order_faults(tag, contents, plan, places, faults)
            open_tag = tag
        elif open_tag is not None:
            if tag != open_tag:
                faults.append(f"mismatched:{open_tag}")
            close(open_tag, between)
            open_tag = None
        else:
            faults += _order_faults(tag, contents, plan, places, faults) or [f"unopened:{tag}"]
            close(tag, between)

    opened = text[start:]
    if complete:
        if open_tag is not None:
            last = open_tag == plan.last.tag
            faults.append(f"unclosed-last:{open_tag}" if last else f"unclosed:{open_tag}")
            close(open_tag, opened)
            open_tag = None
        elif opened.strip() and len(plan) == 1 and not start:
            # No tags at all: what a model writes that was not trained on any is its one stage.
            faults += [f"unopened:{plan.last.tag}", f"unclosed-last:{plan.last.tag}"]
            close(plan.last.tag, opened)
        elif opened.strip():
            faults.append(f"stray:{plan.last.tag}")
        faults += [f"missing:{tag}" for tag in _left_out(plan.stages, contents, faults)]
    return Reading(contents, open_tag, opened if open_tag else "", tuple(faults))


def _order_faults(
    tag: str, contents: dict[str, str], plan: Plan, places: dict[str, int], faults: list[str]
) -> list[str]:
    """The faults of beginning `tag` after `contents` were written, with `faults` so far; `places`
    are those of the plan's tags."""
    at = places[tag]
    if tag in contents:
        return [f"repeated:{tag}"]
    if any(places[earlier] > at for earlier in contents):
        return [f"misplaced:{tag}"]
    return [f"skipped:{tag}" for tag in _left_out(plan.stages[:at], contents, faults)]


def _left_out(stages: tuple[Stage, ...], contents: dict[str, str], faults: list[str]) -> list[str]:
    """Those that should have been written, were not, and were not yet named for it: a stage left
    out is the fault of the step that left it out, not of every later one."""
    return [
        stage.tag
        for stage in stages
        if not stage.optional and stage.tag not in contents and f"skipped:{stage.tag}" not in faults
    ]


def _same(a: str, b: str) -> bool:
    return a.casefold().split() == b.casefold().split()


def new_faults(before: Reading, after: Reading) -> tuple[str, ...]:
    """The faults of `after` that `before`, an earlier reading of the same turn, did not have."""
    seen = list(before.faults)
    fresh = []
    for fault in after.faults:
        if fault in seen:
            seen.remove(fault)
        else:
            fresh.append(fault)
    return tuple(fresh)


def next_stage(reading: Reading, plan: Plan) -> Stage | None:
    """The first stage after the last one that was begun; None when the plan is done."""
    begun = [*reading.contents, *([reading.open] if reading.open else [])]
    at = max((plan.index(tag) for tag in begun), default=-1)
    return plan.stages[at + 1] if at + 1 < len(plan) else None


def conclusion(text: str, plan: Plan) -> str:
    """The answer in a reply: the last stage's text. Without one, the text after the last tag, or
    all of it: an answer is always something the model wrote."""
    reading = read(text, plan, complete=True)
    if reading.contents.get(plan.last.tag):
        return reading.contents[plan.last.tag]
    names = "|".join(stage.tag for stage in plan)
    pieces = [piece.strip() for piece in re.split(rf"</?(?:{names})>", text)]
    return next((piece for piece in reversed(pieces) if piece), "")


def incomplete(chain: Chain, plan: Plan, budget: str = "") -> str:
    """Why the answer of a chain is not whole, in a sentence; "" if it is. `budget` is named in it.

    Whole is a last stage with something in it that the model ended itself, by its closing tag or
    by its turn. What it ended with is said by the chain's last step, since nothing follows it.
    """
    tag, last = plan.last.tag, chain.last
    finish, faults = (last.finish, last.faults) if last else ("stop", ())
    contents = read(chain.text, plan, complete=chain.done).contents
    written = bool(contents.get(tag))
    if tag not in contents and budget:  # else it would have been opened by force
        finish = "budget"
    unclosed = f"unclosed-last:{tag}" in faults
    if written and (finish == "eos" or not (unclosed or f"unclosed:{tag}" in faults)):
        return ""
    whole = " whole" * written
    if finish == "budget":
        spent = f"The budget of {budget}" if budget else "The budget"
        why = f"{spent} ended before {tag} was written{whole}."
    elif finish == "eos":
        why = f"The model ended its turn before it wrote {tag}."
    elif written and not unclosed:
        why = f"The model began another stage before it ended {tag}."
    elif finish == "length" or unclosed:
        why = f"{tag} reached the most tokens it may have before it was written{whole}."
    else:
        why = f"The model wrote nothing as {tag}."
    fallback = not written and conclusion(chain.text, plan)
    return f"{why} The answer is what it wrote last before that." if fallback else why
