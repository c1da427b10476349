"""What the page's form offers: strategies with their parameters, judges, units of a budget."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, Literal

from cot_engine import plugins
from cot_engine.errors import CotEngineError
from cot_engine.options.auto import ABOUT
from cot_engine.options.config import SHORT, RunConfig

UNITS = {
    "new tokens": "new tokens",
    "tokens": "tokens",
    "flops": "FLOPs",
    "seconds": "seconds",
    "calls": "calls",
}
"""What a budget may be in, and what that is called."""
_NAMES = {"n": "Candidates", "keep": "Kept", "fill": "Fill budget", "extra": "Extra"}


@dataclass(frozen=True)
class Input:
    """One parameter as a control: `kind` is that of its input, `choices` are those of a list, and
    `needed` says that it has no default."""

    name: str
    label: str
    kind: Literal["number", "checkbox", "text", "choice"]
    value: Any
    step: str = "1"
    least: str = ""
    choices: tuple[str, ...] = ()
    needed: bool = False


@dataclass(frozen=True)
class Choice:
    """A strategy or a judge by its name, with what it says of itself."""

    name: str
    said: str
    inputs: tuple[Input, ...] = ()


def strategies(config: RunConfig) -> list[Choice]:
    """Those that are installed, the server's own first. One that is broken is left out: `list
    strategies` says what is wrong with it."""
    found = [Choice(plugins.AUTO, ABOUT), *_choices("strategy", config.parameters)]
    return sorted(found, key=lambda each: each.name != config.strategy)


def judges(config: RunConfig) -> list[Choice]:
    """Those that need nothing said, the server's own first."""
    own = Choice(config.judge, "What the model's profile names, or what the server was told.")
    ready = [
        each for each in _choices("judge", {}) if not any(input.needed for input in each.inputs)
    ]
    return [own, *(each for each in ready if each.name != config.judge)]


def _choices(kind: Literal["strategy", "judge"], values: dict[str, Any]) -> Iterator[Choice]:
    for name in plugins.names(kind):
        try:
            part = plugins.load(kind, name)
        except CotEngineError:
            continue
        said = " ".join((part.__doc__ or "").partition("\n\n")[0].split())
        inputs = sorted(_inputs(part, values), key=lambda each: each.kind == "checkbox")
        yield Choice(name, said, tuple(inputs))


def _inputs(part: Any, values: dict[str, Any]) -> Iterator[Input]:
    if not (isinstance(part, type) and is_dataclass(part)):
        return
    try:
        hints = typing.get_type_hints(part)
    except (NameError, TypeError):  # a stranger's, that names what is not there
        return
    for each in fields(part):
        if each.init and (made := _input(each, hints[each.name], values)) is not None:
            yield made


def _input(each: Field[Any], hint: Any, values: dict[str, Any]) -> Input | None:
    """A control for a parameter; None for what no control can give, unless it has to be given."""
    value = values.get(each.name, each.default)
    if value is MISSING and each.default_factory is not MISSING:
        return None  # no plain value
    needed = value is MISSING
    value = "" if value is None or needed else value
    label = _NAMES.get(each.name, each.name.replace("_", " ").capitalize())
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if hint is bool:
        return Input(each.name, label, "checkbox", value, needed=needed)
    if hint is int:
        least = "1" if each.name in SHORT else ""
        return Input(each.name, label, "number", value, least=least, needed=needed)
    if hint is float:
        return Input(each.name, label, "number", value, "any", needed=needed)
    if typing.get_origin(hint) is Literal:
        choices = tuple(map(str, typing.get_args(hint)))
        return Input(each.name, label, "choice", value, choices=choices, needed=needed)
    return Input(each.name, label, "text", value, needed=needed) if hint is str or needed else None
