"""What an option is: its default, its check, what is said of it; and those that every search has.

An option is a field of a frozen dataclass (`options.config.RunConfig`) that is declared with
`option`. From that one place come its check, its keys in files and in the environment, its flag
and the flag's help, and its part in comparisons. Those of `SearchOptions` reach a search and its
trace as the user gave them: to add one, declare it there and read it from `session.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args

from cot_engine.core.stages import DETAILS, Detail
from cot_engine.errors import ConfigError, UnknownNameError, shown

Check = Callable[[str, Any], None]
"""Raises ConfigError for a value of the option of that name that will not do."""

Group = Literal["search", "judging", "model", "writing", "sampling", "running", "reading"]
"""What an option decides, in the order of the command line: how a search goes, who judges it and
how, what model does it, what it writes, how tokens are drawn; and, which changes no result, how
many run at a time and what may be read. An engine is made with those of model and running."""


@dataclass(frozen=True, slots=True)
class Option:
    """What is said of an option. In `help` "{}" stands for its default, `metavar` for its value;
    `short` is its second flag ("-t"). `label` tells cells of a comparison apart that differ in it.
    """

    group: Group
    check: Check
    help: str = ""
    metavar: str = ""
    short: str = ""
    label: str = ""


def option(
    default: Any, group: Group, check: Check, help: str = "", metavar: str = "", **more: Any
) -> Any:
    """The field of an option; `more` are fields of Option. A dict is copied for each value, and
    leaves its hash alone."""
    metavar = metavar or "|".join(getattr(check, "names", ()))
    metadata = {"option": Option(group, check, help, metavar, **more)}
    if isinstance(default, dict):
        return field(default_factory=default.copy, hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


def about(each: Field[Any]) -> Option:
    told: Option = each.metadata["option"]
    return told


def options_of(kind: type, *groups: Group) -> Iterator[Field[Any]]:
    """The options of a class by group, all if none is named; of each group its own come first,
    then those it has from SearchOptions."""
    shared = {each.name for each in fields(SearchOptions)}
    for group in groups or get_args(Group):
        found = [each for each in fields(kind) if about(each).group == group]
        yield from sorted(found, key=lambda each: each.name in shared)


# --- checks --------------------------------------------------------------------------------------


def text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} is {shown(value)}.", "Give a text that is not empty.")


class OneOf:
    """Allows these values. `names` are those that can be written."""

    def __init__(self, *allowed: Any) -> None:
        self.allowed = allowed
        self.names = [item for item in allowed if item is not None]

    def __call__(self, name: str, value: Any) -> None:
        if value not in self.allowed:
            near = UnknownNameError(name, shown(value).strip("'"), self.names).hint
            listed = f"It must be {', '.join(self.names[:-1])} or {self.names[-1]}."
            hint = f"{near} {listed}" if near.startswith("Did") else listed
            raise ConfigError(f"{name} is {shown(value)}.", hint)


def number(low: float, high: float, whole: bool = False) -> Check:
    """Allows numbers from `low` to `high`; NaN is none, and no integer is turned into a float."""

    def check(name: str, value: Any) -> None:
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (good and low <= value <= high):
            kind = "a whole number" if whole else "a number"
            hint = f"It must be {kind} from {low} to {high}."
            raise ConfigError(f"{name} is {shown(value)}.", hint)

    return check


# --- the options of a search ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """Options that a configuration, the settings of a search and its trace hold alike."""

    tournament: str = option(
        "knockout", "judging", text, "Who meets whom. [{}]", "NAME", label="{}"
    )
    orders: Literal["both", "one"] = option(
        *("both", "judging", OneOf("both", "one"), "Judge in both orders, or one. [{}]"),
        label="{} order(s)",
    )
    judge_image: Literal["seen", "blank", "swap"] = option(
        *("seen", "judging", OneOf("seen", "blank", "swap"), "What the judge sees. [{}]"),
        label="judge sees {}",
    )
    detail: Detail = option(
        "normal", "writing", OneOf(*DETAILS), "How much is written. [{}]", label="{}"
    )
    seed: int = option(0, "sampling", number(0, 2**63 - 1, whole=True), "Of all draws. [{}]", "N")


def shared(given: SearchOptions) -> dict[str, Any]:
    """The options that `given` shares with all that has SearchOptions, for making another."""
    return {each.name: getattr(given, each.name) for each in fields(SearchOptions)}
