"""Tables that a person wrote, TOML mostly, as frozen values: one reader of every configuration.

A dataclass says by its type hints what a table may hold, and what is said here in an Annotated
type what is allowed beside the type:

    steps: Annotated[int, between(1, 1000)] | None = None
    schedule: Literal["linear", "cosine"] = "cosine"

What will not do is a sentence with the table, the key, the value, what is allowed and near misses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cot_engine.core.plain import Wrong, checked, reader
from cot_engine.errors import ConfigError, CotEngineError, UnknownNameError, shown
from cot_engine.files.reading import named

Value = TypeVar("Value")
Of = Callable[[Any], Callable[[Any], Any]]
"""The reader of what a type hint and what is said beside it allow."""


def between(low: float, high: float) -> Of:
    """A whole number, or any number as a float, from `low` to `high`."""

    def of(kind: Any) -> Callable[[Any], Any]:
        kinds, some = ((int,), "a whole") if kind is int else ((int, float), "a")
        good = checked(
            lambda value: type(value) in kinds and low <= value <= high,  # which NaN is not
            f"{some} number, {low:,} to {high:,}",
        )
        return lambda value: kind(good(value))

    return of


def must(be: str, good: Callable[[Any], bool], make: Callable[[Any], Any] = lambda v: v) -> Of:
    """What is `good`, as `make` makes it."""
    read = checked(good, be)
    return lambda kind: lambda value: make(read(value))


def is_text(value: Any) -> bool:
    """Is it a text with something in it?"""
    return isinstance(value, str) and bool(value.strip())


Text = Annotated[str, must("a text", is_text)]


def from_table(kind: type[Value], table: Any, name: str = "") -> Value:
    """The frozen value of a table, which errors call `name` ("" for a whole file). Raises
    UnknownNameError for a key that there is not, ConfigError for all else."""
    wanted: Any = kind
    try:
        made: Value = reader(wanted)(table)
        return made
    except Wrong as wrong:
        where, facts = f"{name}{wrong.where}".removeprefix("."), wrong.facts
    value, known = facts.get("value"), facts.get("known", ())
    if "strange" in facts:
        raise unknown(facts["strange"], known, where)
    if missing := facts.get("missing"):
        said, table = ", ".join(missing), where.rpartition(".")[0]
        said = f"[{table}] has no {said}." if table else f"{said} is missing."
        raise ConfigError(said, f'Add it, such as {missing[0]} = "...".')
    said = f"{where or 'The table'} is {shown(value)}."
    if facts["must"] == "an object":
        raise ConfigError(said, f"Write it as a table, [{where}].")
    hint = f"It must be {' or '.join(map(str, known)) or facts['must']}."
    if known and isinstance(value, str):
        near = UnknownNameError(where, value, known).hint
        hint += f" {near}" if near.startswith("Did") else ""
    raise ConfigError(said, hint)


def unknown(key: str, known: Iterable[str], table: str = "") -> UnknownNameError:
    """The error of a key that a table, or a whole file (""), may not have."""
    return UnknownNameError(f"key of [{table}] called" if table else "key called", key, known)


@contextmanager
def located(path: str | os.PathLike[str], *extended: Path) -> Iterator[None]:
    """What is wrong within is said to be wrong in that file, or in those that it extends, as a
    ConfigError."""
    try:
        yield
    except CotEngineError as error:
        more = f" or {', '.join(map(named, extended))}, which it extends" if extended else ""
        message = f"{error.message.removesuffix('.')}, in {os.fspath(path)!r}{more}."
        raise ConfigError(message, error.hint) from None
