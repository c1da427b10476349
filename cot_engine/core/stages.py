"""Plans of stages, and the tag grammar: read what a model wrote, name its faults, repair it.

A well-formed reply is `<TAG>content</TAG>` once for every stage of the plan, in order. Anything
else is data, never an exception: `read` names each fault and FAULTS says what is done about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cot_engine.core.tables import from_table, located
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.files.reading import read_toml

Detail = Literal["brief", "normal", "full"]
DETAILS: tuple[Detail, ...] = ("brief", "normal", "full")
_LENGTH_FACTOR = {"brief": 0.5, "normal": 1.0, "full": 2.0}
LONGEST = 16_384  # tokens that a stage may have
_TAG = re.compile(r"[A-Z][A-Z0-9_]{0,31}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One tagged part of the response.

    `purpose` tells the model what to write, `question` asks a judge which of two is better.
    `length` is the most new tokens; `width` the number of candidates (None: the strategy's n).
    An `optional` stage may be skipped by the model without fault; one that `needs_image` is left
    out of the plan of a problem without images. Raises ConfigError for a tag, length or width that
    will not do.
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
        if not (type(self.length) is int and 1 <= self.length <= LONGEST):
            raise ConfigError(
                f"Stage {self.tag} has length {shown(self.length)}.",
                f"It must be 1 to {LONGEST} tokens.",
            )
        if self.width is not None and not (type(self.width) is int and 1 <= self.width <= 1024):
            raise ConfigError(
                f"Stage {self.tag} has width {shown(self.width)}.", "It must be 1 to 1024."
            )

    @property
    def open(self) -> str:
        """The tag that begins it, such as "<SUMMARY>"."""
        return f"<{self.tag}>"

    @property
    def close(self) -> str:
        """The tag that ends it, such as "</SUMMARY>"."""
        return f"</{self.tag}>"


@dataclass(frozen=True, slots=True)
class Plan:
    """The ordered stages of one problem. The last one holds the answer that is shown.

    It can be iterated over, and `plan["CAPTION"]` is the stage of that tag. Raises ConfigError for
    no stages, a tag that stands twice or a last stage that may be left out, UnknownNameError for a
    tag that it does not have.
    """

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
        """The stage that holds the answer."""
        return self.stages[-1]

    def index(self, tag: str) -> int:
        """The place of a stage, from 0 on. Raises UnknownNameError."""
        return self.stages.index(self[tag])

    def span(self, tag: str) -> tuple[float, float]:
        """Where a stage begins and ends in the plan, by the lengths declared: fractions of their
        sum, 0 to 1. For pacing, so that what comes early does not use up what is there for all.
        Raises UnknownNameError."""
        at, lengths = self.index(tag), [stage.length for stage in self.stages]
        return sum(lengths[:at]) / sum(lengths), sum(lengths[: at + 1]) / sum(lengths)

    def fit(self, images: int, detail: Detail = "normal") -> Plan:
        """The plan for one problem: stages that need an image dropped, lengths by detail."""
        kept = tuple(stage for stage in self.stages if images or not stage.needs_image)
        factor = _LENGTH_FACTOR[detail]
        lengths = (min(max(1, round(s.length * factor)), LONGEST) for s in kept)
        return Plan(tuple(replace(s, length=n) for s, n in zip(kept, lengths, strict=True)))

    @classmethod
    def from_toml(cls, path: str | Path) -> Plan:
        """Read `[[stage]]` tables whose keys are the fields of Stage.

        Raises ConfigError for a missing file, broken TOML or wrong types, UnknownNameError for
        keys that a stage does not have.
        """
        data = read_toml(path, "plan", ConfigError)
        unknown = sorted(set(data) - {"stage"})
        tables = data.get("stage", [])
        if unknown or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
            raise ConfigError(
                f"The plan {str(path)!r} has {', '.join(unknown) or 'no [[stage]] tables'}.",
                "It must hold [[stage]] tables and nothing else.",
            )
        with located(path):
            return cls(tuple(from_table(Stage, table, "stage") for table in tables))


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
