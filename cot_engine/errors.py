"""Errors a user can act on: what was wrong, with the value and the limit, and what to do next."""

from __future__ import annotations

import difflib
import re
import reprlib
import shlex
from collections.abc import Iterable
from typing import Any

from cot_engine.escape import visible

LONGEST = 200
"""Characters of one value that an error shows: of a longer one, its beginning and its end."""
SHORT = 80
"""Characters of a value that is not all that an error is about."""
_WHOLE = 2_000  # of a message, whatever it is made of
_SAID = 300  # of what an exception says
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_LONG = re.compile(rf"'[^']{{{LONGEST},}}'|\"[^\"]{{{LONGEST},}}\"|\S{{{LONGEST},}}")


def readable(text: str) -> str:
    """A sentence about somebody's values, fit to be read: what a terminal would obey is made
    visible, and of a value that is very long both ends are kept."""
    text = _LONG.sub(lambda found: cut(found[0], LONGEST), visible(text))
    return cut(text, _WHOLE)


def cut(text: str, most: int = SHORT) -> str:
    """No more than `most` (60 or more) characters of a text, which is shown as it is: where it has
    more, how many, and both its ends."""
    if len(text) <= most:
        return text
    middle, end = f" ... ({len(text):,} characters) ... ", most // 4
    return text[: most - end - len(middle)] + middle + text[-end:]


def shown(value: Any, most: int = SHORT) -> str:
    """A value as an error names it: its repr on one line, cut to `most` characters, and without
    addresses, which differ from run to run. Raises nothing, not even for an integer that is too
    long for Python to print."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, most, 4 * most, most
    try:
        text = short.repr(value)
        if type(value) is not str:  # whose repr has one line, and whose every character counts
            text = " ".join(_ADDRESS.sub("", text).split())
    except KeyboardInterrupt:
        raise
    except BaseException:  # a repr that fails; digits without end, which may also be deep inside
        digits = value.bit_length() * 0.30103 if isinstance(value, int) else 0
        text = f"<{type(value).__name__}{f' of {digits:,.0f} digits' if digits else ''}>"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def message(error: BaseException) -> str:
    """What an exception says, as far as it can; never raises."""
    try:
        return str(error)
    except BaseException as failed:
        return f"<its text raises {type(failed).__name__}>"


def said(error: BaseException) -> str:
    """What an exception is and says, without its hint, on one line, cut; never raises."""
    own = getattr(error, "message", None) if isinstance(error, CotEngineError) else None
    text = cut(" ".join((own if isinstance(own, str) else message(error)).split()), _SAID)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def install(extra: str) -> str:
    """What to do for a package that only `extra` needs: by its own name, for an index may hold
    something else under ours."""
    from importlib import metadata

    try:
        wanted = metadata.requires("cot-engine") or []
    except metadata.PackageNotFoundError:  # run from its source
        wanted = []
    marked = (entry.partition(";") for entry in wanted)
    needed = [shlex.quote(name.strip()) for name, _, when in marked if _is_for(extra, when)]
    checkout = f"pip install '.[{extra}]'"
    if not needed:
        return f"In a checkout of cot-engine: {checkout}."
    return f"Install it: pip install {' '.join(needed)} (in a checkout of cot-engine: {checkout})."


def _is_for(extra: str, marker: str) -> bool:
    return re.search(rf"""extra *== *["']{extra}["']""", marker) is not None


class CotEngineError(Exception):
    """Base of every error raised on purpose. `hint` is the next step; `exit_code` the CLI's."""

    exit_code = 2
    part: Any = None
    """Whose error it is, where a part broke its contract (`core.parts.Part`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = readable(message), readable(hint)
        super().__init__(self.message)

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


class BackendGone(ModelError):
    """A backend has ended for good: it answers nothing more, another one of the same model may."""


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


class NoTrace(StoreError):
    """A search is stored without its trace; one that is damaged is no such."""


class AblationFailed(CotEngineError):
    """Some searches of an ablation failed; the others are stored."""

    exit_code = 3


class QuestionsFailed(CotEngineError):
    """Some questions of a file could not be answered; the others were."""

    exit_code = 3
