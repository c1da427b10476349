"""Strategies, judges, scorers and backends: an object, or a name with parameters, made once.

A name is built in, or an entry point of an installed package: two lines in its pyproject.toml. Each
is imported only when it is asked for, and one that is broken is explained and hides no other:

    [project.entry-points."cot_engine.strategies"]
    my-beam = "my_package:MyBeam"

Parameters are the fields of the dataclass. They are given beside the name, or in it, as they are
where only a text can be given: "rationale(length=100)". In quotes one may hold commas and brackets.

A verifier (`judging.verifiers`) is a scorer or a judge by its kind, its recipe's name or its
file's: "token(ask=...)", "yes-no", "skywork.toml". Whatever gives numbers is a judge, too: it
prefers what it gives the higher one.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib import import_module, metadata
from types import MappingProxyType
from typing import Any, Literal

from cot_engine.core.parts import from_outside
from cot_engine.errors import (
    ConfigError,
    CotEngineError,
    StrategyError,
    UnknownNameError,
    said,
    shown,
)

Kind = Literal["strategy", "judge", "scorer", "backend"]
GROUPS: dict[str, str] = {
    "strategy": "cot_engine.strategies",
    "judge": "cot_engine.judges",
    "scorer": "cot_engine.scorers",
    "backend": "cot_engine.backends",
}
AUTO = "auto"
"""A strategy's name that stands for another: `options.auto` says for which."""
_BUILT_IN: dict[str, tuple[str, str]] = {
    "judge": ("cot_engine.judging.judges", "JUDGES"),
    "scorer": ("cot_engine.judging.judges", "SCORERS"),
    "backend": ("cot_engine.backends.opening", "BACKENDS"),
}
_VERIFIERS = "cot_engine.judging.verifiers.files"
_METHOD = {"strategy": "search", "judge": "compare", "scorer": "score", "backend": "open"}
_CALL = re.compile(r"([^()]*)\((.*)\)", re.DOTALL)
_PAIR = re.compile(r'(?:[^,"]|"[^"]*")+')
_NUMBERS: tuple[Kind, ...] = ("judge", "scorer")
_OURS = "cot-engine"
_log = logging.getLogger("cot_engine")


def names(kind: Kind) -> list[str]:
    """The names to choose from, sorted. Imports no plug-in."""
    return sorted({*_built_in(kind), *_found(kind)})


def choices(kind: Kind) -> list[str]:
    """What may be asked for by name: `names`, and "auto" before the strategies."""
    return [*([AUTO] if kind == "strategy" else []), *names(kind)]


def load(kind: Kind, name: str) -> Any:
    """What the name, its parameters left aside, stands for: a class, a function that makes one, or
    an object.

    A built-in goes before a package's part of the same name, and a package's before that of one
    later in the alphabet; that is logged as a warning. Raises UnknownNameError with the near
    misses, or StrategyError naming the package if the part cannot be imported.
    """
    name, _ = spelled(name)
    built_in, found = _built_in(kind), _found(kind).get(name, [])
    if not _exists(kind, name):
        if kind in _NUMBERS and is_verifier(name):
            return _verifiers().named  # which makes it
        if kind == "judge" and _exists("scorer", name):
            return load("scorer", name)
    if name in built_in:
        _warn_of_others(kind, name, _OURS, found)
        return built_in[name]
    if not found:
        verifiers = _verifiers().all_names() if kind in _NUMBERS else []
        raise UnknownNameError(kind, name, [*choices(kind), *verifiers])
    point, *others = found
    _warn_of_others(kind, name, _package(point), others)
    try:
        return point.load()
    except BaseException as error:
        if from_outside(error):
            raise
        raise StrategyError(
            f"The {kind} {name!r} of package {_package(point)!r} cannot be imported:"
            f" {said(error)}.",
            f"It names {point.value!r}. Repair or uninstall the package, or choose another.",
        ) from error


def make(kind: Kind, given: Any, parameters: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """A part from its name, with its parameters, the fields of its dataclass; an object is the part
    itself, and takes none.

    Text, as a command line gives it, becomes what the field's type says ("4" an int, "true" a
    bool, "none" a None). Raises ConfigError or UnknownNameError for a parameter that is wrong,
    StrategyError for what is no part of that kind.
    """
    if not isinstance(given, str):
        if parameters:
            raise ConfigError(
                f"A {kind} object was given beside {', '.join(parameters)}.",
                "The object carries its own; leave these out.",
            )
        if kind == "judge" and not _has(given, "judge") and _has(given, "scorer"):
            given = _by_numbers(given)
        return _sound(kind, given, f"{shown(given)} is not a {kind}.")
    name, own = spelled(given)
    if twice := sorted(own.keys() & parameters.keys()):
        raise ConfigError(f"{shown(given)} has {twice[0]}, which is also given beside it.")
    parameters = {**parameters, **own}
    if not _exists(kind, name):
        if kind in _NUMBERS and is_verifier(name):
            return _verifier(kind, name, parameters)
        if kind == "judge" and _exists("scorer", name):
            return _by_numbers(make("scorer", name, parameters))
    part = load(kind, name)
    ready = _ready(kind, part)
    known = _parameters(kind, part)
    unknown = sorted(set(parameters) - {f.name for f in known})
    if unknown and not known:
        raise ConfigError(f"The {kind} {name} has no parameters; {unknown[0]!r} was given.")
    if unknown:
        raise UnknownNameError(f"parameter of {kind} {name} called", unknown[0], _names(known))
    required = [f for f in known if f.default is MISSING and f.default_factory is MISSING]
    missing = sorted(set(_names(required)) - set(parameters))
    if missing:
        raise ConfigError(f"The {kind} {name} needs {', '.join(missing)}.", "There is no default.")
    try:
        hints = typing.get_type_hints(part) if known else {}
        values = {key: _parameter(key, value, hints[key]) for key, value in parameters.items()}
        made = part if ready else part(**values)
    except CotEngineError:
        raise
    except BaseException as error:
        if from_outside(error):
            raise
        raise StrategyError(f"The {kind} {name!r} cannot be made: {said(error)}.") from error
    return _sound(kind, made, f"The {kind} {name!r} is {shown(made)}.")


def exists(kind: Kind, name: str) -> bool:
    """Whether a name, its parameters left aside, stands for something: a part, a verifier, or in a
    judge's place a scorer. Imports no plug-in. Raises ConfigError for what cannot be read."""
    name, _ = spelled(name)
    if _exists(kind, name) or (kind in _NUMBERS and is_verifier(name)):
        return True
    return kind == "judge" and _exists("scorer", name)


def is_verifier(name: str) -> bool:
    """Whether a name, its parameters left aside, is that of a kind of verifier, of a recipe or of a
    file, and of nothing else."""
    name, _ = spelled(name)
    return not any(_exists(kind, name) for kind in _NUMBERS) and _verifiers().is_verifier(name)


def reaches_out(name: str) -> bool:
    """Whether a name may stand for a file or for another model: not everybody's to choose."""
    plain, own = spelled(name)
    return is_verifier(plain) and (bool(own) or plain.endswith(".toml"))


def source_of(name: str) -> bytes:
    """What a verifier is made from beside code. Raises ConfigError for a file that is not there."""
    found: bytes = _verifiers().source(spelled(name)[0])
    return found


def parameters(kind: Kind, name: str) -> list[str]:
    """The names of a part's parameters. Raises what `load` raises."""
    return _names(_parameters(kind, load(kind, name)))


def spelled(text: str) -> tuple[str, dict[str, str]]:
    """ "rationale(length=100)" as its name and parameters, which are text still. Raises
    ConfigError."""
    found = _CALL.fullmatch(text)
    if found is None:
        return text, {}
    pairs = [pair.partition("=") for pair in _PAIR.findall(found[2]) if pair.strip()]
    own = {key.strip(): _unquoted(value.strip()) for key, _, value in pairs}
    if len(own) < len(pairs) or not all(key.isidentifier() and own[key] for key in own):
        raise ConfigError(
            f"{shown(text)} cannot be read.", "Write its parameters like this: name(a=1, b=2)."
        )
    return found[1].strip(), own


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def _verifier(kind: Kind, name: str, given: Mapping[str, Any]) -> Any:
    files = _verifiers()
    hints = files.types()
    values = {k: _parameter(k, v, hints[k]) if k in hints else v for k, v in given.items()}
    made = files.named(name, values)
    if kind == "judge":
        return made if _has(made, "judge") else _by_numbers(made)
    if not _has(made, "scorer"):
        raise ConfigError(
            f"The verifier {shown(name)} compares pairs, and a number for each is asked for.",
            "Name it as the judge, or one that is pointwise here.",
        )
    return made


def _by_numbers(scorer: Any) -> Any:
    """The judge that prefers what a scorer gives the higher number."""
    return import_module("cot_engine.judging.judges").ScorerJudge(scorer)


def _has(part: Any, kind: Kind) -> bool:
    return not isinstance(part, type) and callable(getattr(part, _METHOD[kind], None))


def _verifiers() -> Any:
    return import_module(_VERIFIERS)  # by its name: it may import this module


def _exists(kind: Kind, name: str) -> bool:
    return name in _built_in(kind) or name in _found(kind)


def _sound(kind: Kind, part: Any, otherwise: str) -> Any:
    if isinstance(part, type) or not callable(getattr(part, _METHOD[kind], None)):
        raise StrategyError(otherwise, f"It must be an object with a method {_METHOD[kind]}().")
    return part


def _ready(kind: Kind, part: Any) -> bool:
    """Whether it is the part itself, and not what makes one."""
    return not isinstance(part, type) and hasattr(part, _METHOD[kind])


def _parameters(kind: Kind, part: Any) -> list[Field[Any]]:
    made = is_dataclass(part) and not _ready(kind, part)
    return [f for f in fields(part) if f.init] if made else []


# --- finding -------------------------------------------------------------------------------------


def _built_in(kind: Kind) -> Mapping[str, Any]:
    """Those that need no entry point. (Our strategies have entry points, like a stranger's.)"""
    where = _BUILT_IN.get(kind)  # by its name, as an entry point has it: it may import this module
    return getattr(import_module(where[0]), where[1]) if where else {}


def _found(kind: Kind) -> dict[str, list[metadata.EntryPoint]]:
    return _read(kind, tuple(sys.path))


@functools.cache  # reading the metadata of all that is installed takes longer than a short search
def _read(kind: Kind, path: tuple[str, ...]) -> dict[str, list[metadata.EntryPoint]]:
    """The entry points of each name, the one that counts first.

    Packages are read one at a time: `metadata.entry_points()` fails for all if one is malformed.
    """
    found: dict[str, list[metadata.EntryPoint]] = {}
    seen = set()
    for package in metadata.distributions():
        try:
            points = package.entry_points.select(group=GROUPS[kind])
            if not points or (name := _canonical(package.name)) in seen:
                continue  # none, or a second copy further down the path
            seen.add(name)
        except Exception as error:
            _log.warning("The entry points of a package cannot be read: %r", error)
            continue
        for point in points:
            found.setdefault(point.name, []).append(point)
    for same in found.values():
        same.sort(key=lambda point: (_package(point) != _OURS, _package(point)))
    return found


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _package(point: metadata.EntryPoint) -> str:
    return _canonical(point.dist.name) if point.dist else "unknown"


def _warn_of_others(kind: Kind, name: str, package: str, others: list[metadata.EntryPoint]) -> None:
    for other in others:
        _log.warning(
            "The %s %r is that of %s; package %s has one of the same name, which is not used.",
            *(kind, name, package, _package(other)),
        )


# --- parameters ----------------------------------------------------------------------------------


def _names(known: list[Field[Any]]) -> list[str]:
    return [f.name for f in known]


def _parameter(name: str, value: Any, kind: Any) -> Any:
    try:
        return convert(value, kind)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{name} is {shown(value)}.", f"It must be {_described(kind)}.") from None


def convert(value: Any, kind: Any) -> Any:
    """`value` as one of type `kind`, read from text where it is text. Raises ValueError.

    Knows bool, int, float, str, None, Literal, unions, and lists or tuples of these (text is cut
    at commas). A value for any other type is taken as it is.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    text = value.strip() if isinstance(value, str) else None
    if origin in (typing.Union, types.UnionType):
        for arm in sorted(args, key=lambda arm: arm is str):  # text is what nothing else reads
            try:
                return convert(value, arm)
            except (ValueError, TypeError):
                continue
        raise ValueError(value)
    if origin is Literal:
        matching = [arg for arg in args if value == arg or text == str(arg)]
        return matching[0] if matching else _refuse(value)
    if kind in (None, type(None)):
        return None if value is None or text in ("", "none", "None") else _refuse(value)
    if kind is bool:
        words = {"true": True, "yes": True, "on": True, "1": True}
        words |= {"false": False, "no": False, "off": False, "0": False}
        if isinstance(value, bool):
            return value
        return words[text.lower()] if text and text.lower() in words else _refuse(value)
    if kind is int:
        return int(text) if text is not None else value if type(value) is int else _refuse(value)
    if kind is float:
        if isinstance(value, bool):
            _refuse(value)
        number = float(value)
        return number if math.isfinite(number) else _refuse(value)
    if kind is str:
        return value if isinstance(value, str) else _refuse(value)
    if origin in (tuple, list):
        items = [part for part in text.split(",") if part.strip()] if text is not None else value
        if not isinstance(items, (list, tuple)):
            _refuse(value)
        if origin is tuple and (len(args) != 2 or args[1] is not Ellipsis):
            return tuple(convert(item, arg) for item, arg in zip(items, args, strict=True))
        return origin(convert(item, args[0]) for item in items)
    return value


def _refuse(value: Any) -> Any:
    raise ValueError(value)


def _described(kind: Any) -> str:
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_described(arm) for arm in typing.get_args(kind))
    return plain.get(kind, "none" if kind is type(None) else str(kind).replace("typing.", ""))
