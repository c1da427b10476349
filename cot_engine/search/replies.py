"""What a backend answers, checked before a search relies on it.

A reply with too few rows or a log-probability that is no number would be a wrong answer, quietly.
It is a ModelError that names the backend and what it gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from cot_engine.core.parts import Part, finite
from cot_engine.core.requests import (
    Choose,
    Chosen,
    Generate,
    Generated,
    Generation,
    Measure,
    Measured,
)
from cot_engine.core.usage import Usage
from cot_engine.errors import shown

_FINISHES = ("stop", "eos", "length", "budget")


def usage(backend: Part, given: Any) -> Usage:
    """What a request costs, by an estimate or a reply. Raises ModelError."""
    if not isinstance(given, Usage):
        backend.broke(f"gave {shown(given)} as usage", "It must be a Usage.")
    for value in (
        *(given.encodes, given.prefilled, given.cached, given.decoded),
        *(given.flops, given.calls, given.seconds),
    ):
        if (type(value) is not int and finite(value) is None) or value < 0:
            backend.broke(f"gave {shown(given, 200)}", "Each must be a number, at least 0.")
    return given


def generated(backend: Part, request: Generate, given: Generated) -> None:
    """Raises ModelError unless `given` has a sound generation for each seed of `request`."""
    found, seeds = given.generations, len(request.seeds)
    if not isinstance(found, (tuple, list)) or len(found) != seeds:
        _wrong_number(backend, found, seeds, "seeds", "Generation")
    for each in found:
        if not isinstance(each, Generation) or not isinstance(each.text, str):
            backend.broke(f"gave {shown(each)} as a generation", "It must be a Generation.")
        if finite(each.logprob) is None:
            backend.broke(
                f"gave the log-probability {shown(each.logprob)} to a continuation in"
                f" {_where(request)}",
                "It must be a finite number: the weights or the number format may be broken.",
            )
        if not isinstance(each.finish, str) or each.finish not in _FINISHES:
            backend.broke(
                f"gave finish={shown(each.finish)}", f"It is one of {', '.join(_FINISHES)}."
            )
        if not isinstance(each.ids, tuple):
            backend.broke(f"gave ids={shown(each.ids)}", "It must be a tuple of token ids.")
        if len(each.ids) > request.max_new_tokens:
            backend.broke(
                f"gave {len(each.ids)} tokens where {request.max_new_tokens} were asked for",
                "A budget could not be kept so.",
            )


def chosen(backend: Part, request: Choose, given: Chosen) -> None:
    """Raises ModelError unless `given` has a finite log-probability for each tail and choice."""
    rows, tails = given.logprobs, len(request.tails)
    if not isinstance(rows, (tuple, list)) or len(rows) != tails:
        _wrong_number(backend, rows, tails, "questions", "row")
    for row in rows:
        if not isinstance(row, (tuple, list)) or len(row) != len(request.choices):
            _wrong_number(backend, row, len(request.choices), "choices", "log-probability")
        for value in row:
            if finite(value) is None:
                backend.broke(
                    f"gave the log-probability {shown(value)} to a choice",
                    "It must be a finite number: the weights or the number format may be broken.",
                )


def measured(backend: Part, request: Measure, given: Measured) -> None:
    """Raises ModelError unless `given` has finite numbers for each place of each dialogue: one for
    each choice, or a state, all of one width."""
    found, dialogues = given.numbers, request.dialogues
    if not isinstance(found, (tuple, list)) or len(found) != len(dialogues):
        _wrong_number(backend, found, len(dialogues), "dialogues", "tuple of places")
    widths = {len(request.choices)} if request.choices else set()
    for places, dialogue in zip(found, dialogues, strict=True):
        if not isinstance(places, (tuple, list)) or len(places) != dialogue.places:
            _wrong_number(backend, places, dialogue.places, "places", "tuple of numbers")
        for row in places:
            if not isinstance(row, (tuple, list)) or len(row) not in (widths or {len(row)}):
                _wrong_number(backend, row, max(widths, default=1), "choices", "number")
            widths.add(len(row))
            for value in row:
                if finite(value) is None:
                    backend.broke(
                        f"gave the number {shown(value)} to a place in an answer",
                        "It must be a finite number: the weights or the number format may be"
                        " broken.",
                    )


def _wrong_number(backend: Part, given: Any, wanted: int, of: str, one: str) -> NoReturn:
    what = f"{len(given)} replies" if isinstance(given, Sequence) else shown(given)
    backend.broke(f"gave {what} to {wanted} {of}", f"It must give one {one} for each.")


def _where(request: Generate) -> str:
    """The part of a reply that a request writes, by the stage that its prefix left open."""
    return (
        f"the {request.role} request behind {shown(''.join(s.text for s in request.prefix)[-40:])}"
    )
