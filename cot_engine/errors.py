"""Errors a user can act on: what was wrong, with the value and the limit, and what to do next."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


def shown(value: Any, most: int = 80) -> str:
    """A value as an error names it: its repr, cut to `most` characters. Never raises, not even for
    an integer that is too long for Python to print."""
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = cut.maxlong = most
    try:
        text = cut.repr(value)
    except Exception:  # a repr that fails; digits without end, which may also be deep inside
        digits = value.bit_length() * 0.30103 if isinstance(value, int) else 0
        text = f"<{type(value).__name__}{f' of {digits:,.0f} digits' if digits else ''}>"
    return text if len(text) <= most else f"{text[: most - 1]}…"


class CotEngineError(Exception):
    """Base of every error raised on purpose. `hint` is the next step; `exit_code` the CLI's."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(CotEngineError):
    """The image, the question or an option is not usable."""


class ImageError(InputError):
    """An image cannot be read, or is beyond a limit."""


class UnknownNameError(InputError):
    """A strategy, judge, stage, model ... of that name does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
        super().__init__(f"There is no {kind} {shown(name)}.", hint)


class ConfigError(InputError):
    """A configuration value is unknown, of the wrong type or out of range."""


class ModelError(CotEngineError):
    """A checkpoint cannot be loaded, or cannot do what was asked."""


class BudgetError(CotEngineError):
    """The budget cannot pay for even one short answer."""


class StrategyError(CotEngineError):
    """A strategy, judge or plug-in broke the contract it runs under."""


class IncompleteAnswer(CotEngineError):
    """The command line's: the answer it printed is not whole, and nobody said that this will do."""

    exit_code = 4


class TraceError(CotEngineError):
    """A trace cannot be written or read."""


class StoreError(CotEngineError):
    """A store of results cannot be opened, read or written."""


class AblationFailed(CotEngineError):
    """Some searches of an ablation failed; the others are stored."""

    exit_code = 3
