"""Other people's parts: one guard for judges, scorers, strategies, listeners and backends.

A part may raise anything and return anything. What breaks its contract becomes an error that names
the part and what it gave: that search fails, and nothing else does.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NoReturn, cast, get_args

from cot_engine.core.match import Verdict
from cot_engine.errors import CotEngineError, InputError, ModelError, StrategyError, said, shown

Kind = Literal["strategy", "judge", "scorer", "listener", "backend"]

Scale = Literal["probability", "log", "logit", "any"]
"""What a scorer's numbers are: probabilities, their logarithms (nats), their log-odds, or any."""

LARGEST = 1e100
"""The largest margin or score, either way: sums and differences of such numbers stay finite."""

_MOST_LEAVES = 1000  # of a parameter that a trace keeps
_DEEPEST = 20


class OutOfBudget(Exception):
    """What was asked cannot be paid for; the arena leaves the matches to the tie rule."""


# --- the guard -----------------------------------------------------------------------------------


class Part:
    """A part and what errors call it: its kind, its name, and its type where that says more."""

    __slots__ = ("kind", "label", "part")

    def __init__(self, kind: Kind, part: Any, name: str = "") -> None:
        self.kind, self.part = kind, part
        own = part if isinstance(part, type) or inspect.isroutine(part) else type(part)
        own_name = getattr(own, "__name__", type(part).__name__)
        self.label = f"{name} ({own_name})" if name and name != own_name else own_name

    def broke(self, what: str, hint: str = "") -> NoReturn:
        """Raises the error that the part `what`, such as "gave None"."""
        raise self.error(what, hint)

    def error(self, what: str, hint: str = "") -> CotEngineError:
        error = (ModelError if self.kind == "backend" else StrategyError)(
            f"The {self.kind} {self.label} {what}{'' if what.endswith('.') else '.'}", hint
        )
        error.part = self
        return error

    def method(self, name: str) -> Callable[..., Any]:
        """The part's method of that name. Raises StrategyError for a class in place of an object,
        or one that has no such method."""
        if isinstance(self.part, type):
            self.broke("is a class", f"Give an object of it: {self.part.__name__}().")
        found: Callable[..., Any] | None = getattr(self.part, name, None)
        if not callable(found):
            self.broke(f"has no method {name}()", f"A {self.kind} needs one.")
        return found


class guard:
    """`with guard(part):` whatever is raised inside becomes an error that names the part.

    What comes from outside goes on as it is: the cancellation of this task, an interrupt (those
    reach the main thread alone), the end of a coroutine that nobody awaits any longer. So do the
    errors in `asked`, which the engine raised when the part asked it, those of a part inside this
    one, and what a part may raise on purpose: a backend any CotEngineError, a judge or a scorer
    OutOfBudget, or an InputError for what it cannot judge.
    """

    __slots__ = ("asked", "part", "task")

    def __init__(self, part: Part, asked: Sequence[BaseException] = ()) -> None:
        self.part, self.asked = part, asked

    def __enter__(self) -> None:
        self.task = _task()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or from_outside(error, self.task) or self._passes(error):
            return
        # Where the engine itself had failed, what the part made of it is not what counts.
        for lost in self.asked:
            if isinstance(lost, CotEngineError) and not isinstance(lost, InputError):
                raise lost
        hint = getattr(error, "hint", "") if isinstance(error, CotEngineError) else ""
        raise self.part.error(f"raised {said(error)}", hint or _HINTS[self.part.kind]) from error

    def _passes(self, error: BaseException) -> bool:
        part = self.part
        if part.kind == "backend":
            return isinstance(error, CotEngineError)
        inner = getattr(error, "part", None)  # a stranger's error may have no such field
        if inner is not None and (inner is part or part.kind in ("judge", "scorer")):
            return True
        if part.kind not in ("judge", "scorer"):
            return False
        if type(error) is InputError or isinstance(error, OutOfBudget):
            return True
        return isinstance(error, CotEngineError) and any(error is each for each in self.asked)


_HINTS = {
    "strategy": "cot_engine.testing.check_strategy tells what a strategy must keep to.",
    "judge": "cot_engine.testing.check_judge tells what a judge must keep to.",
    "scorer": "cot_engine.testing.check_scorer tells what a scorer must keep to.",
    "listener": "Whoever listens to a search must take every event, and not fail.",
    "backend": "That is a defect of the backend, not of the question.",
}


def from_outside(error: BaseException, task: asyncio.Task[Any] | None = None) -> bool:
    """Whether an exception came upon a part, which ran in `task`, and was not raised by it."""
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    if isinstance(error, GeneratorExit):
        return task is not None and task is not _task()
    main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and main


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


# --- judges and scorers --------------------------------------------------------------------------


class _Through:
    """An Ask as a part gets it: it remembers what the engine raised, and ends with the call."""

    def __init__(self, ask: Any, errors: list[BaseException] | None = None) -> None:
        self._ask = ask
        self._errors: list[BaseException] = [] if errors is None else errors
        self._others: list[_Through] = []

    @property
    def info(self) -> Any:
        return self._ask.info

    async def choose(self, *args: Any, **named: Any) -> Any:
        return await self._noted("choose", args, named)

    async def write(self, *args: Any, **named: Any) -> Any:
        return await self._noted("write", args, named)

    async def measure(self, *args: Any, **named: Any) -> Any:
        return await self._noted("measure", args, named)

    async def verifying(self, *args: Any, **named: Any) -> Any:
        other = _Through(await self._noted("verifying", args, named), self._errors)
        self._others.append(other)
        return other

    def end(self) -> None:
        """The part has given its answer: nothing more is asked."""
        self._ask = None
        for other in self._others:
            other.end()

    async def _noted(self, method: str, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._ask is None:
            raise RuntimeError("It asked after it had given its answer.")
        try:
            return await getattr(self._ask, method)(*args, **named)
        except Exception as error:
            self._errors.append(error)
            raise


async def verdicts(
    judge: Any, pairs: Sequence[Any], case: Any, ask: Any, name: str = ""
) -> list[Verdict]:
    """What a judge says of ordered pairs: a sound verdict for each.

    Raises StrategyError for a judge that breaks its contract, OutOfBudget, InputError for what
    cannot be judged, and whatever the engine raised when the judge asked it.
    """
    part = Part("judge", judge, name)
    given = await _given(part, "compare", pairs, case, ask, ("verdicts on", "Verdict", "pair"))
    return [_verdict(part, verdict) for verdict in given]


async def scores(
    scorer: Any, chains: Sequence[Any], case: Any, ask: Any, name: str = ""
) -> list[float]:
    """What a scorer gives chains: a finite number for each, which its scale has. Raises as
    `verdicts` does."""
    part, on = Part("scorer", scorer, name), scale(scorer, name)
    low, high = _RANGES[on]
    given = await _given(part, "score", chains, case, ask, ("numbers for", "number", "chain"))
    numbers = []
    for value in given:
        if (number := finite(value)) is None:
            part.broke(f"gave the score {shown(value)}", _NUMBER)
        if not low - _ROUNDING <= number <= high + _ROUNDING:
            part.broke(f"gave the score {shown(value)}, and its scale is {on}", _SCALES[on])
        numbers.append(number)
    return numbers


def scale(scorer: Any, name: str = "") -> Scale:
    """What a scorer says its numbers are; "any" if it says nothing. Raises StrategyError for what
    is no scale."""
    part = Part("scorer", scorer, name)
    with guard(part):
        said: Any = getattr(scorer, "scale", "any")
        for known in get_args(Scale):
            if isinstance(said, str) and said == known:
                return cast(Scale, known)
        part.broke(f"gave {shown(said)} as its scale", f"It must be {_EITHER}.")


def probabilities(scorer: Any, numbers: Sequence[float], name: str = "") -> list[float]:
    """What a scorer gave, as probabilities: numbers of 0 to 1. Raises StrategyError for a scorer
    whose numbers are of any scale: nobody knows what they say."""
    on = scale(scorer, name)
    if on == "any":
        Part("scorer", scorer, name).broke(
            "is asked for probabilities and does not say what its numbers are",
            f"Give it a scale ({_EITHER}); a reward model's numbers become log-odds by its centre"
            " and spread. Or use it where numbers are only compared.",
        )
    return [_probability(number, on) for number in numbers]


def _probability(number: float, on: Scale) -> float:
    if on == "logit":  # by the side that cannot overflow
        small = math.exp(-abs(number))
        return (1.0 if number >= 0 else small) / (1.0 + small)
    return min(1.0, max(0.0, math.exp(min(0.0, number)) if on == "log" else number))


_ROUNDING = 1e-4  # what arithmetic in low precision may leave a number outside its range
_RANGES: dict[Scale, tuple[float, float]] = {
    "probability": (0.0, 1.0),
    "log": (-math.inf, 0.0),
    "logit": (-math.inf, math.inf),
    "any": (-math.inf, math.inf),
}
_SCALES: dict[Scale, str] = {
    "probability": "A probability is a number from 0 to 1.",
    "log": "The logarithm of a probability is 0 at most.",
}
_EITHER = '"probability", "log", "logit" or "any"'


async def _given(
    part: Part, method: str, items: Sequence[Any], case: Any, ask: Any, words: tuple[str, str, str]
) -> Sequence[Any]:
    """What the part's method gives, if that is one thing for each item. `words` for errors: what it
    gives to how many, what that is, and what an item is."""
    given = await _answer(part, method, items, case, ask)
    some, one, item = words
    if not isinstance(given, (list, tuple)):
        part.broke(
            f"gave {shown(given)}", f"{method}() must give a list of a {one} for each {item}."
        )
    if len(given) != len(items):
        part.broke(
            f"gave {len(given)} {some} {len(items)} {item}s", "It must give one for each, in order."
        )
    return given


async def _answer(part: Part, method: str, items: Sequence[Any], case: Any, ask: Any) -> Any:
    through = _Through(ask)
    try:
        with guard(part, through._errors):
            # A list of its own: it may do with it what it likes.
            coming = part.method(method)(list(items), case, through)
            if not inspect.isawaitable(coming):
                part.broke(
                    f"gave {shown(coming)} where its answer is awaited",
                    f"Write it as async def {method}(...), without yield.",
                )
            return await coming
    finally:
        through.end()
        through._errors.clear()  # their tracebacks lead back here


def symmetric(judge: Any, name: str = "") -> bool:
    """Whether the judge says that it is symmetric. Raises StrategyError if it does not say."""
    part = Part("judge", judge, name)
    with guard(part):
        if isinstance(value := getattr(judge, "symmetric", None), bool):
            return value
    part.broke(
        f"has {shown(value)} as symmetric",
        "It must be True or False: whether (b, a) is by construction the reverse of (a, b).",
    )


_NUMBER = f"It must be a finite number, at most {LARGEST:g} either way."
_SIGNS = {"first": 1, "second": -1, "tie": 0}


def finite(value: Any) -> float | None:
    """`value` as a float, if it is a number (numpy's and torch's too) of a sensible size."""
    if type(value) is not float:
        if isinstance(value, (bool, str, bytes)) or not hasattr(type(value), "__float__"):
            return None
        try:
            value = float(value)
        except Exception:
            return None
    return value if -LARGEST <= value <= LARGEST else None  # neither holds for NaN


def _verdict(part: Part, verdict: Any) -> Verdict:
    """The verdict, as a plain one that JSON has words for, if it is sound."""
    if not isinstance(verdict, Verdict):
        part.broke(f"gave {shown(verdict)} as a verdict", "Give a Verdict for each pair.")
    outcome, given = verdict.outcome, verdict.margin
    if not isinstance(outcome, str) or outcome not in _SIGNS:
        part.broke(f"gave the outcome {shown(outcome)}", "It must be first, second or tie.")
    if (margin := finite(given)) is None:
        part.broke(f"gave the margin {shown(given)}", _NUMBER)
    if type(verdict.readable) is not bool:
        part.broke(f"gave {shown(verdict.readable)} as readable", "It must be True or False.")
    if not isinstance(verdict.text, str):
        part.broke(f"gave {shown(verdict.text)} as a verdict's text", "It must be text.")
    if margin * _SIGNS[outcome] < 0 or not (verdict.readable or outcome == "tie"):
        part.broke(
            f"contradicts itself: {shown(verdict, 160)}",
            "A margin above 0 favours the first, below 0 the second; what cannot be read is a tie.",
        )
    if type(verdict) is Verdict and type(given) is float and type(verdict.text) is str:
        return verdict
    return Verdict(outcome, margin, verdict.readable, str(verdict.text))


# --- listeners -----------------------------------------------------------------------------------


def listener(listen: Callable[[Any], Any] | None) -> Callable[[Any], None]:
    """`listen`, guarded. The function that is returned raises StrategyError where it fails."""
    if listen is None:
        return lambda event: None
    part = Part("listener", listen)

    def tell(event: Any) -> None:
        with guard(part):
            given = listen(event)
            if inspect.iscoroutine(given):
                given.close()
                part.broke("is an async function", "Give a plain one: nobody awaits it.")

    return tell


# --- parameters, for a trace ---------------------------------------------------------------------


def parameters(part: Any) -> dict[str, Any]:
    """The fields of a strategy as a trace keeps them, whatever they hold.

    Text, finite numbers, true, false and none stay, a tuple or a set becomes a list, an object its
    repr without its address (which differs from run to run). What is deep or long is cut.
    """
    if not is_dataclass(part) or isinstance(part, type):
        return {}
    left = [_MOST_LEAVES]
    return {f.name: _plain(getattr(part, f.name, None), left, _DEEPEST) for f in fields(part)}


def _plain(value: Any, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if value is None or type(value) is bool:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if type(value) in (int, float):
        return value if finite(value) is not None else shown(value)
    if depth == 0 or left[0] < 0:
        return _named(value)
    try:
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=_named)
        if isinstance(value, (list, tuple)):
            return [_plain(item, left, depth - 1) for item in _some(value, left)]
        if isinstance(value, Mapping):
            names = _some(list(value), left)
            return {
                key if isinstance(key, str) else _named(key): _plain(value[key], left, depth - 1)
                for key in names
            }
        if is_dataclass(value) and not isinstance(value, type):
            return {
                f.name: _plain(getattr(value, f.name, None), left, depth - 1) for f in fields(value)
            }
        if (number := finite(value)) is not None:  # numpy's, say
            return int(value) if hasattr(type(value), "__index__") else number
    except Exception:  # an object that is not what it says
        return _named(value)
    return _named(value)


def _some(items: Sequence[Any], left: list[int]) -> Sequence[Any]:
    return items[: max(0, left[0])]


def _named(value: Any) -> str:
    return shown(value, 200)
