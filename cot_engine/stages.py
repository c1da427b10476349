"""Plans of stages, and the tag grammar: read what a model wrote, name its faults, repair it.

A well-formed reply is `<TAG>content</TAG>` once for every stage of the plan, in order. Anything
else is data, never an exception: `read` names each fault and FAULTS says what is done about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.reading import read_toml
from cot_engine.types import Chain

Detail = Literal["brief", "normal", "full"]
DETAILS: tuple[Detail, ...] = ("brief", "normal", "full")
_LENGTH_FACTOR = {"brief": 0.5, "normal": 1.0, "full": 2.0}
_LONGEST = 16_384  # tokens that a stage may have
_TAG = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One tagged part of the response.

    `purpose` tells the model what to write, `question` asks a judge which of two is better.
    `length` is the most new tokens; `width` the number of candidates (None: the strategy's n).
    An `optional` stage may be skipped by the model without fault; one that `needs_image` is left
    out of the plan of a problem without images.
    """

    tag: str
    purpose: str
    question: str
    length: int = 512
    width: int | None = None
    optional: bool = False
    needs_image: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.tag, str) and _TAG.fullmatch(self.tag)):
            raise ConfigError(
                f"A stage's tag is {shown(self.tag)}.",
                "Use 1 to 32 capital letters, digits or underscores, a letter first.",
            )
        if not (type(self.length) is int and 1 <= self.length <= _LONGEST):
            raise ConfigError(
                f"Stage {self.tag} has length {shown(self.length)}.",
                f"It must be 1 to {_LONGEST} tokens.",
            )
        if self.width is not None and not (type(self.width) is int and 1 <= self.width <= 1024):
            raise ConfigError(
                f"Stage {self.tag} has width {shown(self.width)}.", "It must be 1 to 1024."
            )

    @property
    def open(self) -> str:
        return f"<{self.tag}>"

    @property
    def close(self) -> str:
        return f"</{self.tag}>"


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered stages of one problem. The last one holds the answer that is shown."""

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("The plan has no stages.", "Declare at least one [[stage]].")
        tags = [stage.tag for stage in self.stages]
        twice = sorted({tag for tag in tags if tags.count(tag) > 1})
        if twice:
            raise ConfigError(f"The plan names {', '.join(twice)} more than once.")
        if self.stages[-1].optional or self.stages[-1].needs_image:
            raise ConfigError(
                f"The last stage, {tags[-1]}, holds the answer.",
                "It can be neither optional nor needs_image.",
            )

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, tag: str) -> Stage:
        for stage in self.stages:
            if stage.tag == tag:
                return stage
        raise UnknownNameError("stage", tag, [stage.tag for stage in self.stages])

    @property
    def last(self) -> Stage:
        return self.stages[-1]

    def index(self, tag: str) -> int:
        return self.stages.index(self[tag])

    def span(self, tag: str) -> tuple[float, float]:
        """Where a stage begins and ends in the plan, by the lengths declared: fractions of their
        sum, 0 to 1. For pacing, so that what comes early does not use up what is there for all."""
        at, lengths = self.index(tag), [stage.length for stage in self.stages]
        return sum(lengths[:at]) / sum(lengths), sum(lengths[: at + 1]) / sum(lengths)

    def fit(self, images: int, detail: Detail = "normal") -> Plan:
        """The plan for one problem: stages that need an image dropped, lengths by detail."""
        kept = tuple(stage for stage in self.stages if images or not stage.needs_image)
        factor = _LENGTH_FACTOR[detail]
        lengths = (min(max(1, round(s.length * factor)), _LONGEST) for s in kept)
        return Plan(tuple(replace(s, length=n) for s, n in zip(kept, lengths, strict=True)))

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """Read `[[stage]]` tables whose keys are the fields of Stage.

        Raises ConfigError for a missing file, broken TOML, unknown keys or wrong types.
        """
        data = read_toml(path, "plan", ConfigError)
        unknown = sorted(set(data) - {"stage"})
        tables = data.get("stage", [])
        if unknown or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(
                f"The plan {str(path)!r} has {', '.join(unknown) or 'no [[stage]] tables'}.",
                "It must hold [[stage]] tables and nothing else.",
            )
        return cls(tuple(_stage(table, str(path)) for table in tables))


def _stage(table: dict, path: str) -> Stage:
    kinds = {"tag": str, "purpose": str, "question": str, "length": int, "width": int}
    kinds |= {"optional": bool, "needs_image": bool}
    known = [f.name for f in fields(Stage)]
    for key, value in table.items():
        if key not in known:
            raise UnknownNameError(f"stage key in {path!r} called", key, known)
        if type(value) is not kinds[key]:
            raise ConfigError(
                f"Stage key {key} in {path!r} is {shown(value)}.", f"Give a {kinds[key].__name__}."
            )
    missing = [key for key in ("tag", "purpose", "question") if key not in table]
    if missing:
        raise ConfigError(f"A [[stage]] in {path!r} lacks {', '.join(missing)}.")
    return Stage(**table)


DEFAULT_PLAN = Plan(
    (
        Stage(
            "SUMMARY",
            "Outline in a sentence or two how you will approach the question. No analysis yet.",
            "Which one outlines a better approach to the question, without analysing it yet?",
            length=256,
        ),
        Stage(
            "CAPTION",
            "Describe what the image shows, with the details that the question needs.",
            "Which one describes the image more accurately and completely, in what the question"
            " needs?",
            length=512,
            needs_image=True,
        ),
        Stage(
            "REASONING",
            "Work out the answer step by step from the description and the question.",
            "Which one reasons with fewer errors from the description to an answer? Check every"
            " calculation.",
            length=1024,
        ),
        Stage(
            "CONCLUSION",
            "Give the final answer only.",
            "Which one follows from the reasoning and answers the question?",
            length=256,
        ),
    )
)
"""The four stages of LLaVA-o1 / LLaVA-CoT (arXiv 2411.10440)."""


# --- reading what a model wrote ------------------------------------------------------------------

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
            faults += _order_faults(tag, contents, plan, faults)
            open_tag = tag
        elif open_tag is not None:
            if tag != open_tag:
                faults.append(f"mismatched:{open_tag}")
            close(open_tag, between)
            open_tag = None
        else:
            faults += _order_faults(tag, contents, plan, faults) or [f"unopened:{tag}"]
            close(tag, between)

    opened = text[start:]
    if complete:
        if open_tag is not None:
            last = open_tag == plan.last.tag
            faults.append(f"unclosed-last:{open_tag}" if last else f"unclosed:{open_tag}")
            close(open_tag, opened)
            open_tag = None
        elif opened.strip():
            faults.append(f"stray:{plan.last.tag}")
        faults += [f"missing:{tag}" for tag in _left_out(plan.stages, contents, faults)]
    return Reading(contents, open_tag, opened if open_tag else "", tuple(faults))


def _order_faults(tag: str, contents: dict[str, str], plan: Plan, faults: list[str]) -> list[str]:
    """The faults of beginning `tag` after `contents` were written, with `faults` so far."""
    at = plan.index(tag)
    if tag in contents:
        return [f"repeated:{tag}"]
    if any(plan.index(earlier) > at for earlier in contents):
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
    contents = read(chain.text, plan).contents
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
