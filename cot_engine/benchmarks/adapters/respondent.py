"""What a harness's model does, whichever harness it is: an engine made of its model arguments, a
conversation as a question with pictures, an answer as what is scored and the columns beside it.
"""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cot_engine import (
    Answer,
    BudgetError,
    ConfigError,
    CotEngineError,
    Engine,
    ImageError,
    InputError,
    RunConfig,
    StrategyError,
    UnknownNameError,
    read,
)

_OPTIONS = tuple(each.name for each in fields(RunConfig))
_OF_ONE = (InputError, BudgetError, StrategyError)
"""What one question fails of; what would befall every other too (the model, the disk) is raised."""
_SYSTEM = ("system", "developer")
_WHO = {"user": "User", "assistant": "Assistant"}
_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
NO_CONCLUSION = "The model wrote no conclusion."


@contextmanager
def importing(harness: str, command: str) -> Iterator[None]:
    """Around the imports of a harness: raises CotEngineError, with the command that installs it,
    if it is not there or does not load."""
    try:
        yield
    except (ImportError, RuntimeError) as error:  # the latter from torchvision, for the wrong torch
        said = " ".join(str(error).split())
        raise CotEngineError(
            f"{harness} cannot be imported: {said.rstrip('.')}.",
            f"Install it into an environment of its own: {command} (docs/harnesses.md has all).",
        ) from error


# --- what is asked -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a message: whatever `load_image` reads."""

    source: Any


Part = str | Picture
Turns = Sequence[tuple[str, Sequence[Part]]]
"""A conversation: (role, parts) each, the last one the user's."""


def question_of(turns: Turns) -> tuple[list[Any], str]:
    """The pictures and the question, its text as the harness made it.

    A search has one question, behind its pictures. So where pictures stand between texts their
    places are marked, `<image 1>`, as MMMU's own questions have it; what a system said and earlier
    turns become text before the question. Raises InputError.
    """
    turns = [(role, [part for part in parts if part != ""]) for role, parts in turns]
    _check_roles([role for role, _ in turns])
    kinds = [isinstance(part, Picture) for _, parts in turns for part in parts]
    marked = kinds not in (sorted(kinds), sorted(kinds, reverse=True))
    pictures: list[Any] = []

    def text(parts: Sequence[Part]) -> str:
        lines = []
        for part in parts:
            if isinstance(part, str):
                lines.append(part)
                continue
            pictures.append(part.source)
            if marked:
                lines.append(f"<image {len(pictures)}>")
        return "\n".join(lines)

    written = [(role, text(parts)) for role, parts in turns]
    system = [said for role, said in written if role in _SYSTEM]
    earlier = [f"{_WHO[role]}: {said}" for role, said in written[:-1] if role in _WHO]
    before = ["Earlier in this conversation:\n" + "\n".join(earlier)] if earlier else []
    return pictures, "\n\n".join([*system, *before, written[-1][1]])


def _check_roles(roles: list[str]) -> None:
    for role in roles:
        if role not in (*_SYSTEM, *_WHO):
            raise InputError(f"A message is the {role}'s.", "There are no tools in a search.")
    if not roles or roles[-1] != "user":
        last = roles[-1] if roles else "nobody"
        raise InputError(f"The last message is the {last}'s.", "It must be the user's.")


def picture_of(text: str) -> Picture:
    """A picture from an address as harnesses write them: `data:` with base64, a path, a URL (which
    is read with `allow_url` only). Raises ImageError."""
    begin = _DATA.match(text)
    if begin is None:
        return Picture(text)
    try:
        return Picture(binascii.a2b_base64(text[begin.end() :].encode("ascii", "replace")))
    except ValueError as error:
        raise ImageError(f"An image's data is not base64: {error}.", "Encode its bytes.") from None


# --- what is answered ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question. `text` is the CONCLUSION, which alone is scored, and empty where
    there is none: then `error` says why. `columns` is all else, as JSON has it."""

    text: str
    error: str = ""
    columns: dict[str, Any] = field(default_factory=dict)
    answer: Answer | None = None


class Respondent:
    """An engine and the options that it is asked with, made once for a harness's model.

    `given` are the harness's model arguments: fields of RunConfig (model, strategy, judge, budget,
    in_flight, ...), parameters of the strategy by their own names (n, keep, ...), and `traces`, a
    folder that each search's trace is written to. Raises CotEngineError for what will not do, and
    for a model that cannot be loaded, before anything is asked.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        options = dict(given)
        self.traces = _folder(options.pop("traces", None))
        own = {key: options.pop(key) for key in _OPTIONS if key in options}
        parameters = own.pop("parameters", {})
        if not isinstance(parameters, Mapping):
            raise ConfigError(f"parameters is {parameters!r}.", "Give names with values.")
        self.config = RunConfig(**own, parameters={**parameters, **options})
        self.engine = Engine.from_pretrained(**self.config.of_engine)
        try:
            for _ in self.engine.solve_many([], config=self.config):
                pass  # nothing is asked: its names and parameters are looked up
        except UnknownNameError as error:
            self.engine.close()
            hint = f"{error.hint} Options of the engine are {', '.join((*_OPTIONS, 'traces'))}."
            raise ConfigError(error.message, hint) from None
        except BaseException:
            self.engine.close()
            raise

    def ask(self, pictures: list[Any], question: str, **options: Any) -> Reply:
        """One question. `options` go before those that it was made with."""
        try:
            return self._reply(
                self.engine.solve(pictures or None, question, config=self.config, **options)
            )
        except _OF_ONE as error:
            return _failed(error)

    async def aask(self, pictures: list[Any], question: str, **options: Any) -> Reply:
        """`ask`, awaitable: those that are awaited at once share the model's batch."""
        try:
            return self._reply(
                await self.engine.asolve(pictures or None, question, config=self.config, **options)
            )
        except _OF_ONE as error:
            return _failed(error)

    def ask_all(
        self, asked: Iterable[tuple[list[Any], str] | CotEngineError], **options: Any
    ) -> Iterator[Reply]:
        """Many questions, `in_flight` at a time, answered in their order. A question that could not
        even be put together is given as its error, which is then its reply."""
        failed: dict[int, Reply] = {}

        def good() -> Iterator[tuple[list[Any] | None, str]]:
            for place, one in enumerate(asked):
                if isinstance(one, CotEngineError):
                    failed[place] = _failed(one)
                else:
                    yield one[0] or None, one[1]

        place = 0
        answers = self.engine.solve_many(good(), config=self.config, on_error="keep", **options)
        for answer in answers:
            while place in failed:
                yield failed.pop(place)
                place += 1
            if isinstance(answer, CotEngineError) and not isinstance(answer, _OF_ONE):
                raise answer
            yield _failed(answer) if isinstance(answer, CotEngineError) else self._reply(answer)
            place += 1
        yield from (failed[place] for place in sorted(failed))

    def close(self) -> None:
        self.engine.close()

    def _reply(self, answer: Answer) -> Reply:
        started = answer.trace.started
        trace = f"{answer.problem.id}-{started.seed}"
        if self.traces is not None:
            path = self.traces / f"{trace}.jsonl"
            answer.trace.write(path)
            trace = str(path)
        text = answer.text.strip()
        error = "" if text else NO_CONCLUSION
        total = answer.total
        columns = {
            "stages": read(answer.chain.text, started.plan, complete=True).contents,
            "incomplete": answer.incomplete,
            "error": error,
            "new_tokens": total.decoded,
            "tokens": total.tokens,
            "flops": total.flops,
            "seconds": round(answer.seconds, 3),
            "usage": {role: asdict(used) for role, used in answer.usage.items()},
            "strategy": started.strategy,
            "parameters": started.parameters,
            "seed": started.seed,
            "trace": trace,
        }
        return Reply(text, error, columns, answer)


def _failed(error: CotEngineError) -> Reply:
    return Reply("", str(error), {"stages": {}, "incomplete": "", "error": str(error)})


def _folder(given: Any) -> Path | None:
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)) or not str(given).strip():
        raise ConfigError(f"traces is {given!r}.", "Give the name of a folder.")
    folder = Path(given).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        said = f"The folder {str(folder)!r} for the traces cannot be made: {error.strerror}."
        raise InputError(said, "Name another.") from None
    return folder
