"""Frozen values to what JSON has and back, by their type hints alone: events, and configurations.

`plain` takes apart what `reader` puts together again. A field with the metadata {"read": False} is
not part of it, one that is {"sparse": True} is left out while empty; a class that is written as
another value says so in a method `written`.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal

from cot_engine.errors import cut, shown


def plain(value: Any) -> Any:
    """The value as dicts, lists, texts and numbers."""
    if is_dataclass(value):
        value = value.written() if hasattr(value, "written") else value
        found = _fields(value.__class__)
        values = {name: (f, getattr(value, name)) for name, f in found.items()}
        return {
            k: plain(v)
            for k, (f, v) in values.items()
            if not f.metadata.get("sparse") or (v and v != f.default)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value


@functools.cache
def _fields(kind: Any) -> dict[str, Any]:
    return {f.name: f for f in fields(kind) if f.metadata.get("read", True)}


class Wrong(ValueError):
    """A value is not what its field holds: where it stands, and what is wrong with it.

    For who says it in other words (`tables.py`): the `value` and what it `must` be, or the `known`
    ones; the key that is `strange` among the known; the `missing` keys."""

    def __init__(self, where: str, why: str = "", **facts: Any) -> None:
        super().__init__(where, why)
        self.where, self.why, self.facts = where, why, facts

    def inside(self, outer: str) -> Wrong:
        self.where = outer + self.where
        return self

    def __str__(self) -> str:
        value, must = self.facts.get("value"), self.facts.get("must")
        why = self.why or f"is {cut(json.dumps(value))}, not {must}"
        return f"{self.where.removeprefix('.')} {why}".lstrip()


_PLAIN = {  # types that JSON has, with what an error calls them
    str: ((str,), "a text"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),  # finite, since JSON has no other
    bool: ((bool,), "true or false"),
}


@functools.cache
def reader(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of the type `kind` of what `plain` wrote, or raises Wrong.

    Type hints are the one description of what a trace or a table may hold: what has been read
    needs no further check of types. What an Annotated type adds makes its reader of the type.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _record_reader(kind)
    if origin is typing.Annotated:
        made: Callable[[Any], Any] = args[1](args[0])
        return made
    if origin is tuple:
        return _tuple_reader(args)
    if origin is dict:
        return _dict_reader(*map(reader, args))
    if origin in (typing.Union, types.UnionType):
        (other,) = (reader(arg) for arg in args if arg is not type(None))
        return lambda value: None if value is None else other(value)
    if kind is Any:
        return lambda value: value
    if origin is Literal:
        said = " or ".join(json.dumps(name) for name in args)
        kinds = {type(name) for name in args}
        return checked(lambda value: type(value) in kinds and value in args, said, args)
    allowed, said = _PLAIN[kind]
    return checked(lambda value: type(value) in allowed, said)  # True is no 1


def checked(
    good: Callable[[Any], bool], must: str, known: Iterable[Any] = ()
) -> Callable[[Any], Any]:
    """A reader that gives back what is `good` as it is; anything else is not what it `must` be."""

    def read(value: Any) -> Any:
        if not good(value):
            raise Wrong("", value=value, must=must, known=known)
        return value

    return read


def _record_reader(kind: type) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    known = _fields(kind)
    readers = {name: reader(hints[name]) for name in known}
    needed = {
        name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING
    }
    is_object = checked(lambda value: isinstance(value, dict), "an object")

    def read(value: Any) -> Any:
        if strange := is_object(value).keys() - known.keys():
            name = min(strange)
            raise Wrong("", f"has no field {shown(name)}", strange=name, known=known)
        if missing := needed - value.keys():
            inside = [name for name in known if name in missing]
            raise Wrong(f".{min(missing)}", "is missing", missing=inside)
        made = {}
        for name, item in value.items():
            try:
                made[name] = readers[name](item)
            except Wrong as wrong:
                raise wrong.inside(f".{name}") from None
        return kind(**made)

    return read


def _tuple_reader(args: tuple[Any, ...]) -> Callable[[Any], Any]:
    each = reader(args[0])
    some = args[-1] is Ellipsis
    said = "a list" if some else f"a list of {len(args)}"
    is_list = checked(lambda v: isinstance(v, list) and (some or len(v) == len(args)), said)
    readers = None if some else [reader(arg) for arg in args]

    def read(value: Any) -> Any:
        made = []
        for at, item in enumerate(is_list(value)):
            try:
                made.append((readers[at] if readers else each)(item))
            except Wrong as wrong:
                raise wrong.inside(f"[{at}]") from None
        return tuple(made)

    return read


def _dict_reader(
    key_of: Callable[[Any], Any], value_of: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    is_object = checked(lambda value: isinstance(value, dict), "an object")

    def read(value: Any) -> Any:
        made = {}
        for key, item in is_object(value).items():
            try:
                made[key_of(key)] = value_of(item)
            except Wrong as wrong:
                raise wrong.inside(f"[{shown(key)}]") from None
        return made

    return read
