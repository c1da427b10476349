"""What all verifiers have in common: how they are asked, whom, and how numbers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cot_engine.core.binding import Binding
from cot_engine.errors import ConfigError, shown
from cot_engine.judging.protocol import Case
from cot_engine.judging.verifiers.scale import Aggregate, Reading
from cot_engine.judging.verifiers.words import SENTENCE, Script, Steps, Turn

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`turns` are what is asked; `ask` in place of them is what stands behind the question and the
    response (or both responses) in one turn of the user. `steps`, `sentence`, `sentences` and
    `opens` are as in `words.Script`; `aggregate`, `low`, `high`, `centre` and `spread` as in
    `scale.Reading`.

    `model` is asked: a folder, a name or an address, a backend that is open, or None for the model
    that searches; opened by `backend` (None: by what claims it) with `options`, such as a device.
    Raises ConfigError for what will not do.
    """

    turns: tuple[Turn, ...] = ()
    ask: str = ""
    steps: Steps = "stage"
    sentence: str = SENTENCE
    sentences: Mapping[str, str] = field(default_factory=dict, hash=False)
    opens: bool | None = None
    aggregate: Aggregate = "mean"
    low: float | None = None
    high: float | None = None
    centre: float = 0.0
    spread: float | None = None
    model: Any = None
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    script: Script = field(init=False, repr=False, compare=False)
    reading: Reading = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.turns and self.ask:
            raise ConfigError("A verifier has turns and ask.", "ask is one turn: leave one out.")
        pairwise = bool(getattr(self, "pairwise", False))
        turns = self.turns or ((_one_turn(self.ask, pairwise),) if self.ask else self._default())
        rest = (self.steps, self.sentence, self.sentences, self.opens, pairwise)
        object.__setattr__(self, "script", Script(turns, *rest))
        read = Reading(self.aggregate, self.low, self.high, self.centre, self.spread)
        object.__setattr__(self, "reading", read)
        if self.model is None and (self.backend or self.options):
            what = "backend" if self.backend else "options"
            raise ConfigError(f"A verifier has {what} and no model.", "Say which model is opened.")

    def _default(self) -> tuple[Turn, ...]:
        """What is asked where nothing is said."""
        return (_one_turn(self._words(), bool(getattr(self, "pairwise", False))),)

    def _words(self) -> str:
        return "{sentence} Reply with yes or no, and nothing else."

    @property
    def binding(self) -> Any:
        """The model of its own, for `Ask.verifying`."""
        if not isinstance(self.model, str):
            return self.model
        options = tuple(sorted(self.options.items()))
        return Binding(self.model, self.backend, options) if self.model else None

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """What an engine opens for it before a search begins."""
        found = self.binding
        return (found,) if isinstance(found, Binding) else ()


def _one_turn(ask: str, pairwise: bool) -> Turn:
    if not isinstance(ask, str):
        raise ConfigError(f"ask is {shown(ask)}.", "It must be a text.")
    if pairwise:
        both = "So far:\n{before}\n\nAttempt 1:\n{first}\n\nAttempt 2:\n{second}"
        return Turn("user", f"Question: {{question}}\n\n{both}\n\n{ask}")
    return Turn("user", f"Question: {{question}}\n\nResponse:\n{{response}}\n\n{ask}")


def recent(places: Sequence[T], new: int, case: Case, steps: int) -> Sequence[T]:
    """Of the places of a dialogue about so many `steps`, those that count: of the last `new` steps
    where a step is what the numbers are about, all where it is the whole, or where places are not
    those of steps."""
    if case.about == "whole" or steps < 1 or len(places) % steps:
        return places
    return places[-(len(places) // steps) * new :]
